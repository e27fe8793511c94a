"""Changing an activation at some tokens only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from interp.hooks import here


def positions_of(x: Tensor) -> Int[Tensor, "batch position"]:
    """The absolute position of each row and column of x [batch, position, ...], -1 where it is padding."""
    now = here().positions
    assert now is not None
    # variants of one prompt may run together where only the one's positions are known
    return now if len(now) == len(x) else now[:1].expand(len(x), -1)


def at_positions(positions: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`change` of an activation [batch, position, ...], at these positions alone; everywhere where none are given."""
    if not positions:
        return change

    def changed(x: Tensor) -> Tensor:
        chosen = torch.isin(positions_of(x), torch.tensor(positions, device=x.device))
        return torch.where(chosen.view(*chosen.shape, *[1] * (x.dim() - 2)), change(x), x)

    return changed
