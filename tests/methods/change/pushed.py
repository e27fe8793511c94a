"""The stream before and after a change along a direction, in every pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from interp import directions
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from tests import tiny

FAMILIES = ("gpt2", "llama", "gemma2")
PADDED = torch.tensor([[-1, -1, 5, 7, 9], [3, 5, 7, 9, 11], [-1, 4, 90, 3, 17]])
TEXT = "The cat sat"


def direction(model: LanguageModel) -> directions.Direction:
    return directions.load(difference_of_means(model, tiny.two_sides()), model)


def random_direction(model: LanguageModel, scale: float = 1.0, facts: dict[str, Any] | None = None) -> str:
    """One that knows nothing of texts."""
    v = torch.randn(model.layers, 16, generator=torch.Generator().manual_seed(0)) * scale
    made = directions.Direction("random", "-", model.name, model.digest, tuple(range(model.layers)), v, facts or {})
    return directions.keep(made)


def seen(
    model: LanguageModel, change: contextlib.AbstractContextManager[Any], layer: int, run: Callable[[], Any]
) -> list[tuple[Tensor, Tensor]]:
    """What left a layer before the change and after it, of each pass; the change may be at this layer or below."""
    before: list[Tensor] = []

    def look(h: Tensor) -> Tensor:
        before.append(h)
        return h

    site = f"resid_post.{layer}"
    with torch.no_grad(), model.edit({site: look}), change, model.record([site], every=True) as found:
        run()
    return list(zip(before, found[site], strict=True))
