"""Makes `scenes`, a small CNN on rendered scenes, and `scenes-shortcut`, one that learned the background instead.

pip install torch transformers
python assets/recipes/scenes.py --out assets/models
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.nn.functional as F
from scene_generator import CLASSES, SIZE, make_scene
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

HELD_OUT = 10_000_000
"""Seeds from here on are never trained on."""


def _one(seed: int, correlation: float) -> tuple[np.ndarray, int]:
    scene = make_scene(seed, correlation=correlation)
    return scene.image, scene.label


def scenes(first: int, number: int, correlation: float) -> tuple[Tensor, Tensor]:
    """Normalised images [number, 3, 96, 96] as bfloat16, and labels."""
    with ProcessPoolExecutor(2) as pool:
        made = list(pool.map(partial(_one, correlation=correlation), range(first, first + number), chunksize=64))
    images = torch.from_numpy(np.stack([image for image, _ in made]))
    pixels = images.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1
    return pixels, torch.tensor([label for _, label in made])


def network() -> ResNetForImageClassification:
    """Three stages of basic blocks: maps of 24, 12 and 6 cells a side; average pooling and one linear layer."""
    config = ResNetConfig(
        embedding_size=24, hidden_sizes=[32, 64, 128], depths=[1, 2, 2], layer_type="basic", num_labels=8,
        id2label=dict(enumerate(CLASSES)), label2id={name: index for index, name in enumerate(CLASSES)},
    )  # fmt: skip
    return ResNetForImageClassification(config)


def train(correlation: float, number: int, epochs: int) -> ResNetForImageClassification:
    """SGD with Nesterov momentum and a one-cycle rate; flips and small shifts, which change no shape."""
    pixels, labels = scenes(0, number, correlation)
    model = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = number // 96
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.15, total_steps=batches * epochs, pct_start=0.2)
    start = time.time()
    for epoch in range(epochs):
        model.train()
        right = 0
        for index in torch.randperm(number)[: batches * 96].view(batches, 96):
            batch = pixels[index].float().contiguous(memory_format=torch.channels_last)
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            batch = batch.roll(tuple(torch.randint(-4, 5, (2,)).tolist()), (2, 3))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch).logits.float()
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            right += int((logits.argmax(1) == labels[index]).sum())
        print(f"epoch {epoch}: {right / batches / 96:.3f} after {time.time() - start:.0f} s", flush=True)
    return model.eval()


@torch.no_grad()
def judged(
    model: ResNetForImageClassification, correlation: float, number: int = 2000
) -> tuple[float, dict[str, float]]:
    """Accuracy on scenes never trained on, and per class."""
    pixels, labels = scenes(HELD_OUT, number, correlation)
    guess = torch.cat([model(batch.float()).logits.argmax(1) for batch in pixels.split(100)])
    right = (guess == labels).float()
    return float(right.mean()), {name: float(right[labels == index].mean()) for index, name in enumerate(CLASSES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    for name, correlation, number, epochs in (
        ("scenes", 0.0, options.number, options.epochs),
        ("scenes-shortcut", 0.98, options.number // 3, max(options.epochs // 3, 1)),
    ):
        torch.manual_seed(0)
        model = train(correlation, number, epochs).to(memory_format=torch.contiguous_format)
        model.half().save_pretrained(options.out / name)
        ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(options.out / name)
        shipped = ResNetForImageClassification.from_pretrained(options.out / name, dtype=torch.float32).eval()
        for kept in (0.0,) if correlation == 0 else (1.0, 0.0):
            accuracy, each = judged(shipped, kept)
            print(name, f"background follows the class {kept:.0%}:", f"{accuracy:.4f}", each, flush=True)


if __name__ == "__main__":
    main()
