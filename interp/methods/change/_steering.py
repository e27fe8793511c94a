"""What interventions along a direction share: which vector after which layer, and at which tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, directions
from interp.directions import Direction
from interp.hooks import Block, here
from interp.methods.change._places import positions_of
from interp.model import LanguageModel
from interp.sites import Site

Where = Literal["all", "prompt", "generated"]


def at_layer(model: LanguageModel, name: str, layer: int | None) -> tuple[Direction, int, Float[Tensor, d]]:
    """The direction of that name, the layer (its best unless given), and its vector there, on the model's device.

    Raises:
        Unsuitable: no such direction, or it is not known after that layer.
    """
    found = directions.load(name, model)
    at = found.best if layer is None else layer
    return found, at, found.at(at).to(model.device)


def pushed(
    model: LanguageModel,
    layers: Sequence[int],
    change: Callable[[Tensor], Tensor],
    where: Where,
    positions: tuple[int, ...],
) -> Block:
    """A block in which the stream after these layers is changed at the tokens that are asked for.

    Raises (in a forward):
        Unsuitable: what comes out is not finite.
    """
    at = torch.tensor(positions, dtype=torch.long, device=model.device)

    def edit(h: Tensor) -> Tensor:
        new = finite(change(h))
        chosen = places(h, where)
        if positions:
            inside = torch.isin(positions_of(h), at)
            chosen = inside if chosen is None else chosen & inside
        return new if chosen is None else torch.where(chosen.unsqueeze(-1), new, h)

    return model.edit({Site("resid_post", layer): edit for layer in layers})


def scale_of(found: Direction, layer: int, v: Float[Tensor, d], strength: float, unit: str) -> float:
    """What v is multiplied by: the strength in shifts, or in mean lengths of the stream.

    Raises:
        Unsuitable: nothing is known of the length of the stream.
    """
    if unit == "shift":
        return strength
    norm = found.fact("norm", layer)
    if math.isnan(norm):
        raise Unsuitable(f"{found.name} does not say how long the stream is; give the strength in shifts.")
    return strength * norm / float(v.norm())


def added(h: Tensor, step: Tensor, keep_norm: bool) -> Tensor:
    """h + step, brought back to the length of h where that is kept."""
    new = h + step.to(h)
    return new * (h.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True).clamp(min=1e-30)) if keep_norm else new


def places(h: Tensor, where: Where) -> Tensor | None:
    """Which tokens of h [batch, position, d] are meant, [batch, position]; None: all."""
    if where == "all":
        return None
    generated = here().generated
    assert generated is not None
    generated = generated if len(generated) == len(h) else generated[:1].expand(len(h), -1)
    return generated if where == "generated" else ~generated


def finite(h: Tensor) -> Tensor:
    """h, seen to be finite."""
    if not bool(h.isfinite().all()):
        raise Unsuitable("This strength makes numbers overflow; choose a smaller one.")
    return h
