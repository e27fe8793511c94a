from typing import Annotated, Literal

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Features, Positions, Range, SAEName, Unset, intervention
from interp.methods.change._features import chosen
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import before, between, chosen_places, pair, same_token, stream_sae
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site


@intervention("Replace by the transport", ATO, needs=no_blocks)
def transport_replace(
    model: LanguageModel,
    sample: Prompt,
    *,
    source: Annotated[Site | None, Unset("the layer before the target")] = None,
    target: Annotated[Site | None, Unset("the middle of the model, or the layer of the SAE")] = None,
    by: Literal["transport", "identity", "mean", "random"] = "transport",
    rank: Annotated[int, Range(0, 2**14)] = 0,
    share: Annotated[float, Range(0, 1)] = 1.0,
    sae: Annotated[str, SAEName()] = "",
    features: Annotated[tuple[int, ...], Features()] = (),
    positions: Annotated[tuple[int, ...], Positions()] = (),
    operators: str = "",
    seed: int = 0,
) -> Block | None:
    """Put in place of a layer what a linear map makes of an earlier one: all that was made in between is lost.

        h <- h + share (T x + b - h)                                  or, of some features alone,
        h <- h + share sum_i (f_i(T x + b) - f_i(h)) d x_hat / d f_i

    x is the source of the same token in the same forward, as earlier changes left it.

    Args:
        source: The residual stream that is read.
        target: The residual stream that is replaced.
        by: The map: the transport, or for comparison the identity (T = 1), the mean (T = 0), or a random map of the
            same rank that keeps the spread of the true one.
        rank: The rank of the transport, by reduced-rank regression, and of the random map; 0 is all there is.
        share: How much of it is replaced. 0 leaves the model as it is.
        sae: Whose features, if some are chosen; the model's own unless given.
        features: Numbers of the features that are replaced, from 0; the whole stream unless given.
        positions: At which tokens, from 0; at all but special tokens unless given.
        operators: The key of a fit, of the same token; the first there is unless given.
        seed: Number that fixes the random map.

    Raises:
        Unsuitable: no operators of the same token, no such streams, or no such features at the target.

    Assumes:
        That later layers read the replaced stream as they read their own.

    Misleads:
        With T x also goes what no map could carry, so a large effect says that something was made in between, not what.
    """
    if share == 0:
        return None
    of = same_token(model, operators)
    found = chosen(model, sae, features) if features else None
    if found is not None:
        _, at = stream_sae(model, found.name, of)
        if target is not None and of.number(model.resolve(target)) != at:
            raise Unsuitable(f"{found.name} reads {of.streams[at]}, not {target}; choose features of that layer.")
        a, b = before(model, of, found, source, at), at
    else:
        a, b = pair(model, of, source, target)
    kind = ("reduced rank" if rank else "ridge") if by == "transport" else by
    made = of.operator(of.streams[a], of.streams[b], kind, rank, seed).to(model.device)
    places = chosen_places(model, sample, positions)
    which = torch.tensor(features, dtype=torch.long, device=model.device)

    def replace(h: Tensor, x: Tensor) -> Tensor:
        if found is None:
            moved = made(x) - h
        else:
            moved = found.shift(h, which, found.columns(made(x), which) - found.columns(h, which))
        return torch.where(places(h), h + share * moved, h)

    return between(model, of.streams[a], of.streams[b], replace)
