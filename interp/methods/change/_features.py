"""Changing the activations of an SAE's features, with everything else that the site holds left as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block, here
from interp.methods.change._places import positions_of
from interp.methods.features._saes import open_sae
from interp.model import Model
from interp.sae import SAE


def chosen(model: Model, name: str, features: tuple[int, ...]) -> SAE:
    """The SAE of that name, or the model's own where none is named, seen to have these features.

    Raises:
        Unsuitable: none is here, it does not fit the model, or it has no such feature.
    """
    found = open_sae(model, name)
    if max(features) >= found.d_sae:
        raise Unsuitable(f"{found.name} has features 0 to {found.d_sae - 1}, not {max(features)}.")
    return found


def turned(
    model: Model,
    found: SAE,
    features: tuple[int, ...],
    positions: tuple[int, ...],
    turn: Callable[[Tensor], Tensor],
) -> Block:
    """A block in which the activations f [batch, position, feature] of `features` are turn(f).

    h <- h + sum_i (turn(f_i) - f_i) d x_hat / d f_i at the site that the SAE writes, f read at the site that it reads,
    as the earlier changes left it. Tokens are positions; in an image, places of the map row by row.

    Raises (in a forward):
        Unsuitable: a transcoder's target is reached and what it reads was not.
    """
    reads, writes = model.resolve(found.site), model.resolve(found.target)
    which, at = (torch.tensor(each, dtype=torch.long, device=model.device) for each in (features, positions))
    kept = object()  # each forward has a scratch of its own, so threads and streams can't read each other's

    def change(activation: Tensor, x: Tensor) -> Tensor:
        f = found.columns(x, which)
        moved = found.shift(x, which, turn(f) - f)
        if positions:
            known = here().positions is not None
            places = positions_of(x) if known else torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
            moved = torch.where(torch.isin(places, at).unsqueeze(-1), moved, 0.0)
        return activation + found.unrows(moved, activation, model)

    def both(activation: Tensor) -> Tensor:
        return change(activation, found.rows(activation, model))

    def read(activation: Tensor) -> Tensor:
        here().scratch[kept] = found.rows(activation, model)
        return activation

    def write(activation: Tensor) -> Tensor:
        if kept not in here().scratch:
            raise Unsuitable(f"{found.name} reads {reads}, which is skipped here; change the layers or the features.")
        return change(activation, here().scratch[kept])

    return model.edit({reads: both} if reads == writes else {reads: read, writes: write})
