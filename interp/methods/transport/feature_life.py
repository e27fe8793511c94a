from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Range, SAEName, lens
from interp.methods.features._saes import feature_of
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._fitting import FIRES
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import HALF, Array, held_out, layer_of, predicted, read, stream_sae
from interp.model import LanguageModel
from interp.results import TokenGrid
from interp.samples import Prompt
from interp.transport import need


@lens("Life of a feature", ATO, needs=no_blocks, cost=lambda model, **_: (1, 0))
def feature_life(
    model: LanguageModel,
    sample: Prompt,
    *,
    sae: Annotated[str, SAEName()] = "",
    feature: Annotated[int, Range(0, 2**24)] = 0,
    operators: str = "",
) -> TokenGrid:
    """Follow one feature through the layers: where it appears, how long it is carried, where it is overwritten.

        activation_l(t) = f_i(T_lk x_l(t) + b_lk),    activation_k(t) = f_i(x_k(t)),    k: the layer of the SAE
        share_l(t) = activation_l(t) / activation_k(t)        where it fires

    Layers after k are read backwards, by the map that predicts x_k from x_l. It is there at a layer where the interval
    of the held-out R^2 lies above 0.5, and so at all layers between that one and k.

    Args:
        sae: An SAE of the residual stream; the model's own past the middle unless given.
        feature: The number of the feature.
        operators: The key of a fit; the first of the same token unless given. Others read no layer backwards.

    Returns:
        TokenGrid, a row for each layer and a column for each token, with `row_values`: the held-out R^2 of reading the
        feature off that layer and the ends of its 95 % interval, 1 at its own. NaN on special tokens.

    Raises:
        Unsuitable: no operators, no SAE of the residual stream, or no such feature.

    Assumes:
        That a linear map reads the feature where it is. Layers are read one by one, not along a path.

    Misleads:
        A layer that is not read well may hold the feature in another form, and one that is may hold its cause.
    """
    of = need(model, operators)
    found, own = stream_sae(model, sae, of)
    number = feature_of(found, feature)
    seen = read(model, sample, of)
    activation = np.full((len(of.streams), seen.y.shape[1]), np.nan)
    facts = np.full((len(of.streams), 3), np.nan)

    def fires(rows: Tensor) -> Array:
        with torch.no_grad():
            return (
                found.columns(rows.to(found.W_dec), torch.tensor([number], device=found.W_dec.device))[:, 0]
                .double()
                .cpu()
                .numpy()
            )

    for layer in range(len(of.streams)):
        if layer == own:
            activation[layer, list(seen.plain)], facts[layer] = fires(seen.y[own, list(seen.plain)]), 1.0
        elif layer < own or of.policy == "same":
            x, places = seen.x[layer], list(seen.places)
            facts[layer] = held_out(of, found, layer, own)[number]
            if x is not None and places:
                activation[layer, places] = fires(predicted(of, x[places], layer, own))
    here = activation[own]
    share = np.where(here > FIRES, activation / np.maximum(here, FIRES), np.nan)
    return TokenGrid(
        of.names, tuple(model.tokens(sample.text)), np.stack([activation, share]), ("activation", "share"),
        row_values=facts, row_names=("R²", "low", "high"), note=in_words(of.names, facts, own),
    )  # fmt: skip


def in_words(names: Sequence[str], facts: Float[Array, "row 3"], own: int) -> str:
    """The life of a feature from its R^2 (value, low, high) at each layer: made, carried, overwritten."""
    if np.isnan(np.delete(facts[:, 0], own)).all():
        return (
            "How well it is read off other layers is not known: it fires on too few other texts, or the operators were "
            "fitted before this SAE was here."
        )
    there = facts[:, 1] > HALF
    first = last = own
    while first > 0 and there[first - 1]:
        first -= 1
    while last < len(names) - 1 and there[last + 1]:
        last += 1
    r2 = lambda row: f"R² {facts[row, 0]:.2f}"  # noqa: E731
    if first == 0:
        born = "It is there from the embedding on" if names[0] == "embed" else f"It is there from layer {names[0]} on"
        born += f" ({r2(0)})" if own else ""
    else:
        known = [f"{r2(first - 1)} before it"] if np.isfinite(facts[first - 1, 0]) else []
        known += [f"{facts[first, 0]:.2f} after"] if first != own and known else []
        born = f"It is made in layer {names[first]}" + (f" ({', '.join(known)})" if known else "")
    if last == len(names) - 1:
        return f"{born}, and carried to the end." if last > own else f"{born}, the last one."
    lost = f"overwritten in layer {names[last + 1]} ({r2(last + 1)})"
    if np.isnan(facts[last + 1, 0]):
        return f"{born}, and carried through {layer_of(names[last])}; what comes after is not known."
    return f"{born}, carried through {layer_of(names[last])} and {lost}." if last > first else f"{born} and {lost}."
