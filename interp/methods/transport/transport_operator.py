from typing import Annotated, Any

from interp import Unsuitable
from interp.batch import Origin
from interp.method import Range, Sites, fit
from interp.methods.features.build_index import passes as windows
from interp.methods.reading._prompts import no_blocks, residual_sites
from interp.methods.transport._fitting import Reading, fitted
from interp.methods.transport._papers import ATO
from interp.model import LanguageModel
from interp.samples import TextSet
from interp.sites import Site
from interp.transport import Policy


def passes(model: LanguageModel, sample: Any = None, context: int = 128, **_: Any) -> tuple[float, float]:
    """A forward for each window of the texts."""
    return windows(model, sample, context)


@fit("Activation transport operators", ATO, needs=no_blocks, cost=passes)
def transport_operator(
    model: LanguageModel,
    data: TextSet,
    *,
    policy: Policy = "same",
    sites: Annotated[tuple[Site, ...], Sites()] = (),
    context: Annotated[int, Range(4, 4096)] = 128,
    seed: int = 0,
    precise: bool = False,
    name: str = "",
) -> str:
    """Fit the linear map from the residual stream at each layer to that at every other, and judge it on other texts.

        T = argmin E |y - T x - b|^2 + penalty |T|^2 = S_yx (S_xx + penalty)^-1,    b = mean y - T mean x
        x = v_l(t)  or  v_l(t - 1)  or  sum_s A(t, s) v_l(s),    y = v_{l+k}(t)

    Of every five documents three are fitted on, one chooses the penalty of each pair (by the error where y is whitened)
    and is then fitted on too, and one judges: `interp.transport.Operators` says what is kept of it. Sums of products
    are all that is kept of the texts, so memory does not grow with them; what was cancelled goes on from the last of
    its shards when it is asked for again. A is the mean over heads of the pattern of the first layer that reads v_l.

    Args:
        policy: Which token a source is taken from: the same, the previous one, or all weighted by attention.
        sites: The residual streams, from first to last; all unless given.
        context: Tokens that are read together; longer texts are cut.
        seed: Number that fixes which documents judge.
        precise: Form products in float64 rather than float32; takes twice as long.
        name: What the fit is called in lists.

    Returns:
        The key of the fit, as the lenses of transport take it.

    Raises:
        Unsuitable: too few documents, or a site that is no residual stream.

    Assumes:
        Texts like those that will be looked at, and 20 tokens or more for each direction of the stream.

    Misleads:
        What is linearly predictable need not be what is copied: a later layer may compute anew what an earlier one
        holds already.
    """
    found = tuple(dict.fromkeys(model.resolve(each) for each in sites)) or residual_sites(model)
    streams = residual_sites(model)
    if wrong := [each for each in found if each not in streams]:
        raise Unsuitable(f"Operators lead between residual streams ({streams[0]} to {streams[-1]}), not {wrong[0]}.")
    if len(found) < 2:
        raise Unsuitable("An operator leads from one stream to another; give two sites or more.")
    ordered = tuple(str(each) for each in streams if each in found)
    reading = Reading(Origin.of(model), data, name, ordered, policy, min(context, model.limit), seed, precise)
    return fitted(model, reading)
