"""Pairs of texts that are one prompt with two answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from interp import Unsuitable, directions, hooks, progress
from interp.directions import Direction
from interp.model import LanguageModel
from interp.samples import Contrast


@dataclass(frozen=True)
class Answered:
    """Token ids of both texts of a pair; the first `shared` are the prompt."""

    positive: Int[Tensor, position]
    negative: Int[Tensor, position]
    shared: int


def answered(model: LanguageModel, data: Contrast) -> list[Answered]:
    """The two texts of each pair, cut where their tokens first differ: prompt before, answers behind.

    Raises:
        Unsuitable: unequal sides, texts that begin differently, or of which one is the beginning of the other.
    """
    if not data.positive or len(data.positive) != len(data.negative):
        raise Unsuitable(
            f"Pairs need as many texts on both sides, not {len(data.positive)} and {len(data.negative)}; give each "
            "prompt once with either answer."
        )
    special = set(model.tokenizer.all_special_ids)
    found = []
    for number, texts in enumerate(zip(data.positive, data.negative, strict=True), 1):
        positive, negative = (model.inputs(text)[0] for text in texts)
        least = min(len(positive), len(negative))
        same = (positive[:least] == negative[:least]).long().cumprod(0)
        shared = int(same.sum())
        if not set(positive[:shared].tolist()) - special:
            raise Unsuitable(f"The texts of pair {number} begin differently; give one prompt with two answers.")
        if shared == least:
            raise Unsuitable(f"Pair {number} needs two answers that differ, and neither the beginning of the other.")
        found.append(Answered(positive, negative, shared))
    return found


def kept(key: str, make: Callable[[], Direction]) -> str:
    """The key, under which what `make` finds on the unchanged model is kept, unless it is already."""
    with progress.alone(key):
        if not (directions.folder() / f"{key}.safetensors").exists():
            with hooks.alone():
                directions.keep(make(), key)
    return key
