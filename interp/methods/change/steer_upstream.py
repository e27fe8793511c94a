from typing import Annotated, Literal

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Positions, Range, SAEName, Unset, intervention
from interp.methods.features._saes import feature_of
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import before, chosen_places, same_token, stream_sae
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site

LARGEST = 1e6


@intervention("Steer upstream", ATO, needs=no_blocks)
def steer_upstream(
    model: LanguageModel,
    sample: Prompt,
    *,
    source: Annotated[Site | None, Unset("what leaves the layer before the SAE's")] = None,
    sae: Annotated[str, SAEName()] = "",
    feature: Annotated[int, Range(0, 2**24)] = 0,
    by: float = 0.0,
    metric: Literal["covariance", "euclid"] = "covariance",
    positions: Annotated[tuple[int, ...], Positions()] = (),
    operators: str = "",
) -> Block | None:
    """Move an earlier layer by the least that, as the operator has it, moves a later feature's direction by so much.

        x <- x + delta,    <T delta, d> = by,    d = W_dec,i / |W_dec,i|
        covariance:  delta = by S T^T d / (d^T T S T^T d),    least delta^T S^-1 delta
        euclid:      delta = by T^T d / |T^T d|^2,            least |delta|

    S is the covariance of the source on the fit: a change is small where the texts vary that much anyway.

    Args:
        source: The residual stream that is moved.
        sae: An SAE of the residual stream; the model's own past the middle unless given.
        feature: The number of the feature that is to move.
        by: How far along its decoder direction, in the units of the stream. 0 leaves the model as it is.
        metric: What small means: by the spread of the source, or by length.
        positions: At which tokens, from 0; at all but special tokens unless given.
        operators: The key of a fit, of the same token; the first there is unless given.

    Raises:
        Unsuitable: no operators of the same token, no such stream or feature, or one that the source says nothing of.

    Assumes:
        That the layers between do to a change what they do, on the average, to differences between texts.

    Misleads:
        What goes with the feature in texts moves with it; and a feature that is made in between, and not carried, moves
        less than was asked for, or not at all.
    """
    if by == 0:
        return None
    if abs(by) > LARGEST:
        raise Unsuitable(f"Steer by a number between {-LARGEST:.0f} and {LARGEST:.0f}.")
    of = same_token(model, operators)
    found, b = stream_sae(model, sae, of)
    number = feature_of(found, feature)
    a = before(model, of, found, source, b)
    row = found.W_dec[number].double().cpu()
    gradient = of.map(a, b).T @ (row / row.norm().clamp(min=1e-12))
    along = of.covariance(a, a) @ gradient if metric == "covariance" else gradient
    slope = float(along @ gradient)
    if not slope > 0:
        raise Unsuitable(
            f"{of.streams[a]} says nothing of feature {number}; choose a source nearer to {of.streams[b]}."
        )
    delta = (by / slope * along).to(model.device, torch.float32)
    places = chosen_places(model, sample, positions)

    def steer(x: Tensor) -> Tensor:
        return torch.where(places(x), x + delta, x)

    return model.edit({of.streams[a]: steer})
