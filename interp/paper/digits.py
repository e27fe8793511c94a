"""Handwritten digits turned into others by erasing what a method says speaks for them (the paper's section 4.1)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.paper.attributions import METHODS

FOLDER = Path(__file__).parents[2] / "assets" / "paper"
SHARE = 0.2
"""How many of the pixels may be erased: the paper's 157 of 784."""
PAIRS = ((8, 3), (8, 6), (9, 1), (4, 1))
"""Which digit is turned into which, as in the paper."""


def network() -> nn.Sequential:
    """Two convolutions with an overlapping max-pooling between them, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@cache
def trained() -> nn.Sequential:
    """The embedded network, in double precision, frozen."""
    from safetensors.torch import load_file

    found = network()
    found.load_state_dict(load_file(FOLDER / "digits.safetensors"))
    return found.double().eval().requires_grad_(False)


@cache
def held_out() -> tuple[Float[Tensor, "digit 1 8 8"], Int[np.ndarray, digit]]:
    """Images the network was not trained on, from 0 (white) to 1 (ink), and their digits."""
    stored = np.load(FOLDER / "digits.npz")
    return torch.from_numpy(stored["images"].astype(np.float64) / 16)[:, None], stored["digits"]


def held_out_of(digit: int) -> Float[Tensor, "digit 1 8 8"]:
    """Those of one digit."""
    images, digits = held_out()
    return images[torch.from_numpy(digits == digit)]


def picture(image: Float[Tensor, "1 8 8"]) -> np.ndarray:
    """Dark ink on white, uint8 [8, 8]."""
    return (255 * (1 - image[0])).round().byte().numpy()


def differences(
    method: str, images: Float[Tensor, "digit 1 8 8"], this: int, other: int
) -> Float[Tensor, "digit 1 8 8"]:
    """What each pixel adds to the logit of `this` more than to that of `other`; the reference is a white page."""
    run, white = METHODS[method], torch.zeros_like(images)
    return run(trained(), images, white, this) - run(trained(), images, white, other)


def erased(images: Float[Tensor, "digit 1 8 8"], scores: Tensor, share: float = SHARE) -> Float[Tensor, "digit 1 8 8"]:
    """The images without the pixels of highest score, at most `share` of all, and only where the score is positive."""
    flat = scores.flatten(1)
    most = int(share * flat.shape[1])
    order = flat.argsort(dim=1, descending=True, stable=True)[:, :most]
    gone = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True) & (flat > 0)
    return images.masked_fill(gone.view_as(images), 0.0)


def log_odds(images: Float[Tensor, "digit 1 8 8"], this: int, other: int) -> Float[Tensor, digit]:
    """log p(this) - log p(other)."""
    logits = trained()(images)
    return logits[:, this] - logits[:, other]


def changes(seed: int = 0) -> dict[str, dict[str, float]]:
    """For each pair and method: how far erasing moves the log-odds from the one digit to the other, on average.

    Random erases as many pixels with ink: what a method must beat.
    """
    found: dict[str, dict[str, float]] = {}
    for this, other in PAIRS:
        chosen = held_out_of(this)
        before = log_odds(chosen, this, other)
        moved = {}
        for method in METHODS:
            after = erased(chosen, differences(method, chosen, this, other))
            moved[method] = float((before - log_odds(after, this, other)).mean())
        noise = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moved["Random ink"] = float((before - log_odds(erased(chosen, noise * (chosen > 0)), this, other)).mean())
        found[f"{this} to {other}"] = moved
    return found
