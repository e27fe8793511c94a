"""What tells a tensor that depends on the input from one that does not, and how a missing rule is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Mark:
    """What a tensor that depends on the input carries."""

    origin: str = ""
    """conv or linear: the last of them behind it, which tells the genomics default what to do"""
    choice: bool = False
    """a comparison or index made of it, which no multiplier can follow"""
    streams: tuple[Tensor, Tensor] | None = None
    """the positive and the negative part of its difference from the reference, for RevealCancel"""


def mark_of(tensor: Tensor) -> Mark | None:
    return getattr(tensor, "_deeplift", None)


def marked(tensor: Tensor, mark: Mark) -> Tensor:
    tensor._deeplift = mark  # type: ignore[attr-defined]
    return tensor


def refusal(name: str, chooses: bool = False) -> str:
    if chooses:
        return f"{name} chooses by values that depend on the input, and DeepLIFT has no rule for choices."
    return f"DeepLIFT has no rule for the operation {name!r} that this model uses; Integrated Gradients needs none."


def depends(value: Any) -> bool:
    """Whether it is a tensor that depends on the input."""
    return isinstance(value, Tensor) and mark_of(value) is not None
