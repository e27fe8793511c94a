"""Makes `photos-vit`: a small vision transformer that learns from `photos` (run photos.py first).

    pip install torch transformers
    python assets/recipes/photos_vit.py --data FOLDER --teacher assets/models/photos --out assets/models/photos-vit

A transformer trained on so few photos alone learns little, so it is told more than the labels: for every view, what the
teacher answers, and what the teacher has at each of the 7 x 7 places where its stride is 16, one for each patch. It
starts where trained transformers are found (mimetic initialisation, Trockman and Kolter 2023, arXiv:2305.09828): each
head looks at its own neighbourhood. A run that was cut off goes on from its checkpoint (in --out).
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.nn.functional as F
from _data import load
from photos import MEAN, STD, augmented, judged, pixels
from torch import nn
from transformers import EfficientNetForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor

SIZE, PATCH, WIDTH = 112, 16, 192
GRID_BLOCK = 10
"""The last block of the teacher with stride 16: 112 channels at 7 x 7 places."""


def untrained(teacher: EfficientNetForImageClassification) -> ViTForImageClassification:
    """Eight blocks of width 192 on 49 patches."""
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=8, num_attention_heads=4, intermediate_size=4 * WIDTH, image_size=SIZE,
        patch_size=PATCH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        num_labels=teacher.config.num_labels,
        id2label=teacher.config.id2label, label2id=teacher.config.label2id,
    )  # fmt: skip
    network = ViTForImageClassification(config)
    with torch.no_grad():
        mimic(network)
    return network


def mimic(network: ViTForImageClassification) -> None:
    """Query-key products near 0.7 (Z + I), value-output near 0.4 (Z - I), Z ~ N(0, 1 / width); sinusoidal places."""

    def factors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        left, size, right = torch.linalg.svd(matrix)
        root = size[:rank].sqrt()
        return left[:, :rank] * root, right[:rank].T * root

    def noise() -> torch.Tensor:
        return torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH)

    heads = network.config.num_attention_heads
    each = WIDTH // heads
    for layer in network.vit.layers:
        attention = layer.attention
        for head in range(heads):
            rows = slice(head * each, (head + 1) * each)
            query, key = factors(0.7 * noise() + 0.7 * torch.eye(WIDTH), each)
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query.T, key.T
        value, out = factors(0.4 * noise() - 0.4 * torch.eye(WIDTH), WIDTH)
        attention.v_proj.weight.copy_(value.T)
        attention.o_proj.weight.copy_(out)
    side = SIZE // PATCH
    rate = 1 / 20 ** (torch.arange(WIDTH // 4) / (WIDTH // 4))
    angle = torch.arange(side)[:, None] * rate
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    rows, columns = wave[:, None].expand(side, side, -1), wave[None].expand(side, side, -1)
    network.vit.embeddings.position_embeddings[0, 1:] = 0.3 * torch.cat([rows, columns], 2).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--data", "--teacher", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    tiny, caltech = load(options.data)
    teacher = EfficientNetForImageClassification.from_pretrained(options.teacher, dtype=torch.float32).eval()
    teacher.requires_grad_(False).to(memory_format=torch.channels_last)
    grids: list[torch.Tensor] = []
    teacher.efficientnet.encoder.blocks[GRID_BLOCK].register_forward_hook(lambda *found: grids.append(found[2]))
    network = untrained(teacher)
    to_grid = nn.Linear(WIDTH, 112)
    weights = [*network.parameters(), *to_grid.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=0, betas=(0.9, 0.98), weight_decay=0.05)
    average = copy.deepcopy(network).eval()
    rng = random.Random(0)
    pools = [(photos, np.flatnonzero(~photos.held_out)) for photos in (tiny, caltech)]

    def batch(number: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = [], []
        for _ in range(number):
            photos, index = pools[rng.random() < 0.15]
            chosen = int(index[rng.randrange(len(index))])
            pictures.append(augmented(photos.picture(chosen), SIZE, rng))
            labels.append(int(photos.labels[chosen]))
        return pixels(pictures), torch.tensor(labels)

    parts = {"network": network, "average": average, "to_grid": to_grid, "optimizer": optimizer}
    kept = options.out / "checkpoint.pt"
    start, step, told = time.time(), 0, time.time()
    if kept.exists():
        found = torch.load(kept, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(found[name])
        step, start = found["step"], start - found["seconds"]
        rng.seed(step)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batch)
        while (done := (time.time() - start) / (60 * options.minutes)) < 1:
            views, labels = coming.result()
            coming = ahead.submit(batch)
            for group in optimizer.param_groups:
                group["lr"] = 1.5e-3 * min(1, step / 200) * 0.5 * (1 + math.cos(math.pi * done))
            grids.clear()
            with torch.no_grad():
                answers = teacher(views).logits
            with torch.autocast("cpu", torch.bfloat16):
                hidden = network.vit(views.contiguous()).last_hidden_state
                logits = network.classifier(hidden[:, 0])
                seen = to_grid(hidden[:, 1:])
            wanted = grids[0].flatten(2).transpose(1, 2)
            wanted = (wanted - wanted.mean((0, 1))) / (wanted.std((0, 1)) + 1e-3)
            mine, theirs = F.log_softmax(logits.float() / 2, 1), F.softmax(answers / 2, 1)
            answered = 4 * F.kl_div(mine, theirs, reduction="batchmean")
            loss = answered + 0.3 * F.cross_entropy(logits.float(), labels) + 2 * F.mse_loss(seen.float(), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step += 1
            with torch.no_grad():
                for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - min(0.998, step / (step + 20)))
            if time.time() - told > 120:
                told = time.time()
                options.out.mkdir(parents=True, exist_ok=True)
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "step": step, "seconds": told - start}, kept)
                right = float((logits.argmax(1) == labels).float().mean())
                minutes = (told - start) / 60
                print(f"{minutes:.1f} min, step {step}, loss {loss.item():.3f}, {right:.2f} right", flush=True)
    kept.unlink(missing_ok=True)
    average.half().save_pretrained(options.out)
    ViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3, resample=2
    ).save_pretrained(options.out)
    shipped = ViTForImageClassification.from_pretrained(options.out, dtype=torch.float32).eval()
    for name, photos in (("Tiny ImageNet", tiny), ("Caltech-101", caltech)):
        top1, top3, each = judged(shipped, photos, SIZE)
        print(f"{name}: {top1:.3f} / {top3:.3f}", {label: round(value, 2) for label, value in each.items()}, flush=True)


if __name__ == "__main__":
    main()
