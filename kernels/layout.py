"""A map of vectors in the plane: neighbours attract, random others repel, as in LargeVis and UMAP."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

EPOCHS, REPELLED = 200, 5
"""Steps, and how many random others repel each point in each."""


def neighbours(vectors: Float[Tensor, "n d"], k: int, block: int = 1024) -> tuple[Int[Tensor, "n k"], Tensor]:
    """The k nearest others of each vector by cosine, nearest first, and the cosines; never n x n numbers at once."""
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    k = min(k, len(unit) - 1)
    ids, cosines = [], []
    for start in range(0, len(unit), block):
        near = unit[start : start + block] @ unit.T
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -2
        found = near.topk(k, dim=1)
        ids.append(found.indices)
        cosines.append(found.values)
    return torch.cat(ids), torch.cat(cosines)


def principal(vectors: Float[Tensor, "n d"], seed: int = 0, steps: int = 8) -> Float[Tensor, "n 2"]:
    """Coordinates along the two directions of largest variance, by subspace iteration; the largest in size positive."""
    x = vectors.float() - vectors.float().mean(0)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(x.shape[1], min(10, x.shape[1]), generator=generator)
    for _ in range(steps):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
    projected = x @ basis
    _, turn = torch.linalg.eigh(projected.T @ projected)
    flat = torch.nn.functional.pad(projected @ turn.flip(1)[:, :2], (0, max(0, 2 - x.shape[1])))
    largest = flat.gather(0, flat.abs().argmax(0, keepdim=True))
    return flat * torch.where(largest < 0, -1.0, 1.0)


def layout(
    vectors: Float[Tensor, "n d"],
    near: tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]] | None = None,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> Float[np.ndarray, "n 2"]:
    """Points in [-1, 1]^2 for vectors, such that what is near by cosine lies near.

    From the principal plane, with a rate r that falls to nothing, and w_ij a similarity of neighbours in (0, 1]
    that falls with their distance, made symmetric (w + w' - w w') and of sum 1 at the average point:

        y_i += r ( sum_j w_ij 2 (y_j - y_i) / (1 + |y_j - y_i|^2)
                   + sum_m 2 (y_i - y_m) / ((1/10 + |y_i - y_m|^2) (1 + |y_i - y_m|^2)) )

    j: its neighbours, and those it is a neighbour of; m: five others drawn anew in each step.

    Args:
        near: `neighbours(vectors, k)`, where that is at hand.
    """
    n = len(vectors)
    if n < 3:
        return np.linspace(-1, 1, n, dtype=np.float32)[:, None].repeat(2, 1) if n > 1 else np.zeros((n, 2), np.float32)
    ids, cosines = near or neighbours(vectors, 15)
    source, goal, weight = _edges(ids.numpy()[:, :15], cosines.numpy()[:, :15])
    start = principal(torch.nn.functional.normalize(vectors.float(), dim=1), seed).numpy()
    y = 5 * start / max(float(start.std()), 1e-12)
    generator = np.random.default_rng(seed)
    y = (y + generator.normal(0, 1e-3, y.shape)).astype(np.float32)  # equal vectors must be able to part
    for step in range(epochs):
        rate = 1 - step / epochs
        apart = y[goal] - y[source]
        pull = (2 * weight / (1 + (apart * apart).sum(1)))[:, None] * apart
        others = generator.integers(0, n, (n, REPELLED))
        away = y[:, None] - y[others]
        square = (away * away).sum(2, keepdims=True)
        move = (away * (2 / ((0.1 + square) * (1 + square)))).sum(1)
        for axis in (0, 1):
            move[:, axis] += np.bincount(source, pull[:, axis], n)
        y += np.float32(rate) * np.clip(move, -4, 4)
    y -= (y.max(0) + y.min(0)) / 2
    return (y / max(float(np.abs(y).max()), 1e-12)).astype(np.float32)


def _edges(ids: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, goal and weight of every edge in both directions, each once."""
    n, k = ids.shape
    far = 1 - cosines
    own = far - far.min(1, keepdims=True)
    weight = np.exp(-own / np.maximum(own.mean(1, keepdims=True), 1e-6)).ravel().astype(np.float32)
    source, goal = np.repeat(np.arange(n), k), ids.ravel()
    pairs = np.r_[source * n + goal, goal * n + source]
    pairs, place = np.unique(pairs, return_inverse=True)
    there, back = np.zeros((2, len(pairs)), np.float32)
    there[place[: n * k]], back[place[n * k :]] = weight, weight
    both = there + back - there * back
    return pairs // n, pairs % n, both * (n / both.sum())
