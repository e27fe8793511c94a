from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float

from interp import Unsuitable
from interp.method import Positions, Range, SAEName, Unset, lens
from interp.methods.features._saes import best, listed, open_index, shown_tokens
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._fitting import FIRES
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import HALF, Array, before, held_out, layer_of, predicted, read, stream_sae
from interp.model import LanguageModel
from interp.results import FeatureList, Residual
from interp.samples import Prompt
from interp.sites import Site
from interp.transport import Policy, need


@lens("Transported features", ATO, needs=no_blocks, cost=lambda model, **_: (1, 0))
def transported_features(
    model: LanguageModel,
    sample: Prompt,
    *,
    sae: Annotated[str, SAEName()] = "",
    source: Annotated[Site | None, Unset("what leaves the layer before")] = None,
    policy: Policy = "same",
    operators: str = "",
    positions: Annotated[tuple[int, ...], Positions()] = (),
    top: Annotated[int, Range(1, 200)] = 20,
) -> FeatureList:
    """Say of the features that fire at one layer which came from an earlier one, and which were made in between.

        carried_i(t) = f_i(T x(t) + b) / f_i(y(t))                             where it fires
        R^2 = 1 - sum (f_i(y) - f_i(T x + b))^2 / sum (f_i(y) - mean)^2        over held-out tokens

    A feature is carried where the whole 95 % interval of its R^2 lies above 0.5, made where it lies below, and open
    otherwise; where none is known, the token on which it fires most decides.

    Args:
        sae: An SAE of the residual stream, whose layer is the target; the model's own past the middle unless given.
        source: Where features may come from: an earlier residual stream.
        policy: Which token a source is taken from; that of the operators where these are named.
        operators: The key of a fit; the first of that policy unless given.
        positions: The tokens that count, from 0; all but special tokens unless given.
        top: How many features to list, those that fire most first.

    Returns:
        FeatureList with the activations on every token, the share of each that is carried, and the held-out R^2 with
        its interval. The residual is the share of all activations here that the transport does not give.

    Raises:
        Unsuitable: no operators, no SAE of the residual stream, no source that comes before it, or no such token.

    Assumes:
        That the texts of the fit are like this prompt.

    Misleads:
        What is predictable from a layer need not be copied from it, and what is made anew may have been there in a form
        that no linear map reads.
    """
    of = need(model, operators, policy)
    found, b = stream_sae(model, sae, of)
    a = before(model, of, found, source, b)
    seen = read(model, sample, of)
    length = seen.y.shape[1]
    if wrong := [each for each in positions if each >= length]:
        raise Unsuitable(f"The prompt has positions 0 to {length - 1}, not {wrong[0]}.")
    places = list(positions or seen.plain)
    from_there = [each for each in places if of.policy == "same" or each in seen.places]
    x = seen.x[a]
    if x is None:
        from_there = []
    f, given = torch.zeros(2, length, found.d_sae, device=found.W_dec.device)
    with torch.no_grad():
        f[places] = found.encode(seen.y[b, places].to(f))
        if x is not None and from_there:
            given[from_there] = found.encode(predicted(of, x[from_there], a, b).to(f))
    if not f.isfinite().all():
        raise Unsuitable("The activations here are not finite; undo the last change.")
    order = best(f.amax(0).double().cpu().numpy(), top)
    grid, other = (each[:, order].T.double().cpu().numpy() for each in (f, given))
    sourced = np.isin(np.arange(length), from_there)
    carried = np.where((grid > FIRES) & sourced, other / np.maximum(grid, FIRES), np.nan)
    known, tokens = held_out(of, found, a, b)[order], shown_tokens(model, sample)
    names = of.names[a], of.names[b]
    reasons = [_reason(*each, tokens, *names) for each in zip(grid, carried, known, strict=True)]
    whole = float(f[from_there].sum()) if from_there else 0.0
    common = float(torch.minimum(f, given).clamp(min=0)[from_there].sum()) if from_there else 0.0
    residual = Residual(
        1 - common / whole, f"the share of the activations at {layer_of(names[1])} not given by {layer_of(names[0])}"
    ) if whole > 0 else None  # fmt: skip
    note = "" if len(order) else "No feature fires here."
    if len(order) and not from_there:
        note = f"None of these tokens has a source at {layer_of(names[0])} by these operators; look at other tokens."
    return listed(
        model, [(found, int(each)) for each in order], grid.max(1, initial=0), "activation",
        {found.name: open_index(model, found)}, tokens=tokens, grid=grid, reasons=reasons, carried=carried,
        held_out=known, residual=residual, note=note,
    )  # fmt: skip


def _reason(
    f: Float[Array, token], carried: Float[Array, token], known: Float[Array, 3], tokens: Sequence[str], source: str,
    target: str,
) -> str:  # fmt: skip
    at = int(f.argmax())
    here = (
        f"{100 * carried[at]:.0f} % on {tokens[at]!r}" if np.isfinite(carried[at]) else f"no source on {tokens[at]!r}"
    )
    value, low, high = known
    if np.isfinite(known).all():
        verdict = "carried" if low > HALF else "made" if high < HALF else "open"
        tested = f"held out R² {value:.2f} ({low:.2f} to {high:.2f})"
    else:
        verdict = "open" if np.isnan(carried[at]) else "carried" if carried[at] > HALF else "made"
        tested = "by this prompt alone"
    source = "the embedding" if source == "embed" else source
    place = f"from {source}" if verdict == "carried" else f"between {source} and {target}"
    return f"{verdict} {place}: {here}; {tested}"
