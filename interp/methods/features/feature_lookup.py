from typing import Annotated, Literal

import numpy as np
import torch

from interp import Unsuitable
from interp import sae as shelf
from interp.method import Positions, Range, SAEName, lens
from interp.methods.features._saes import (
    TEMPLETON,
    attribute,
    best,
    listed,
    look,
    metric_of,
    need_index,
    open_index,
    open_sae,
    shown_tokens,
)
from interp.model import Model
from interp.results import FeatureList, Residual
from interp.samples import Image, Prompt, Target

By = Literal["activation", "attribution", "surprise"]


@lens(
    "Feature lookup",
    TEMPLETON,
    cost=lambda model, by, **_: (2, 1) if by == "attribution" else (1, 0),
)
def feature_lookup(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    layers: Literal["this", "all"] = "this",
    by: By = "activation",
    target: Target = Target(),
    foil: Target = Target(),
    positions: Annotated[tuple[int, ...], Positions()] = (),
    top: Annotated[int, Range(1, 200)] = 20,
    index: str = "",
) -> FeatureList:
    """List the features that fire on a prompt or an image, by how strongly they fire, matter or surprise.

        activation:   v_i = max_t f_i(t)
        attribution:  v_i = sum_t f_i(t) <d x_hat(t)/d f_i, d m/d x(t)>
        surprise:     v_i = max_t f_i(t) / max f_i * -ln(density_i)

    m is the logit of the target, less the foil's where one is given. For attribution the SAE stands in place with its
    error kept, so that the attributions, what the SAE's bias has and what its error has add up to <x, d m/d x>.

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        layers: Its features alone, or those of all SAEs (all transcoders, if it is one) of this model.
        by: What features are ranked by. Surprise needs an index: how rarely they fire, and how strongly at most.
        target: For attribution, the token or class to explain; the model's first guess unless given.
        foil: For attribution, one to compare with: why the target rather than this.
        positions: The tokens that count, or patches row by row, from 0; all but special tokens unless given.
        top: How many features to list.
        index: Which index to take densities, maxima and examples from; the SAE's own unless given.

    Returns:
        FeatureList with the activations on every token or patch that counts. By attribution its residual is the share
        that the errors have in the magnitudes of all parts.

    Raises:
        Unsuitable: no SAE for this model, no such target or position, or no index where one is needed.

    Assumes:
        That directions which fire rarely are what the model computes with. Attribution is a slope times a value: it
        holds for small changes.

    Misleads:
        A feature that fires strongly need not matter, and the SAE's error can hold what no feature has. Two SAEs of the
        same layer name different features.
    """
    found = open_sae(model, sae)
    saes = [found]
    if layers == "all":
        saes = [open_sae(model, each) for each in shelf.available(model)]
        saes = [each for each in saes if each.is_transcoder == found.is_transcoder] or [found]
    seen, logits = look(model, sample, saes, positions)
    metric, name = metric_of(model, target, foil, logits)
    get = need_index if by == "surprise" else open_index
    indexes = {each.name: get(model, each, index if each.name == found.name else "") for each in saes}
    active = [each.encode() for each in seen]
    residual, note, units = None, "", "activation"
    if by == "activation":
        values = [_largest(f) for f in active]
    elif by == "surprise":
        units, values = "share of the maximum x nat", []
        for each, f in zip(saes, active, strict=True):
            known = indexes[each.name]
            assert known is not None
            highest = _largest(f)
            # one more token, on which everything fires: a feature that never fired is rare, not infinitely so
            rare = -np.log((known.count + 1) / (known.n_tokens + 1))
            values.append(rare * highest / np.maximum(np.maximum(known.maximum, highest), 1e-12))
    else:
        shared = attribute(model, sample, seen, metric)
        values = [each.parts.sum(0).cpu().numpy() for each in shared]
        units = f"logit of {name}"
        sizes = [
            sum(float(each.parts.abs().sum()) for each in shared),
            sum(abs(each.bias) for each in shared),
            sum(abs(each.error) for each in shared),
        ]
        share = sizes[2] / sum(sizes) if sum(sizes) else 0.0
        residual = Residual(share, "the share of the SAE's error in the magnitudes of all parts of <x, gradient>")
        if len(shared) == 1:
            one = shared[0]
            note = (
                f"All features together have {float(one.parts.sum()):+.3g}, the SAE's bias {one.bias:+.3g}, "
                f"its error {one.error:+.3g} of {one.whole:+.3g} logits."
            )
    if not any(np.isfinite(each).all() for each in values):
        raise Unsuitable("The activations here are not finite; undo the last change.")
    together = np.concatenate(values)
    starts = np.cumsum([0, *(each.d_sae for each in saes)])
    order = best(np.abs(together), top)
    which = np.searchsorted(starts, order, side="right") - 1
    picked = [(saes[one], int(number - starts[one])) for one, number in zip(which, order, strict=True)]
    grids = [seen[one].grid(active[one][:, [feature]]) for one, (_, feature) in zip(which, picked, strict=True)]
    reasons = [_reason(each[0], shown_tokens(model, sample)) for each in grids]
    if not picked:
        note = "No feature fires here."
    return listed(
        model, picked, together[order], units, indexes, tokens=shown_tokens(model, sample),
        grid=np.concatenate(grids) if grids else np.zeros((0, *seen[0].shape)), reasons=reasons, residual=residual,
        note=note,
    )  # fmt: skip


def _largest(f: torch.Tensor) -> np.ndarray:
    """Of each feature the activation of the largest magnitude, with its sign."""
    at = f.abs().argmax(0, keepdim=True)
    return f.gather(0, at)[0].double().cpu().numpy()


def _reason(grid: np.ndarray, tokens: tuple[str, ...]) -> str:
    place = np.unravel_index(int(np.abs(grid).argmax()), grid.shape)
    if tokens:
        return f"most on {tokens[place[0]]!r}, {grid[place]:.3g}"
    return f"most at row {place[0]}, column {place[1]}, {grid[place]:.3g}"
