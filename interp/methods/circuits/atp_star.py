from typing import Annotated

import torch

from interp import progress
from interp.method import Paper, Range, lens
from interp.methods.circuits._pairs import Direction, Metric, Nodes, no_pairs, read_pair, sites_of
from interp.methods.circuits._slopes import Scores, Slopes, graph, slopes
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair
from interp.sites import Site

PAPER = Paper(
    "Kramár, János and Lieberum, Tom and Shah, Rohin and Nanda, Neel",
    "AtP*: An efficient and scalable method for localizing LLM behaviour to components",
    2024,
    "arXiv",
    "https://arxiv.org/abs/2403.00745",
)


@lens("AtP*", PAPER, needs=no_pairs, cost=lambda model, **_: (2, 1 + (model.layers if model.layers > 1 else 0)))
def atp_star(
    model: LanguageModel,
    sample: PromptPair,
    *,
    nodes: Nodes = "heads and MLPs",
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    by_position: bool = True,
    top: Annotated[int, Range(1, 10_000)] = 300,
) -> Graph:
    """Estimate what patching each part would do, through the softmax and with effects that cancel kept apart.

        query t:  I(n) = sum_j (p'_tj - p_tj) dm/dp_tj,    p' with the donor's query
        key j:    I(n) = sum_t (p'_tj - p_tj) (dm/dp_tj - mean over i /= j of dm/dp_ti),    p' with the donor's key j
        others:   I(n) = (n(donor) - n(base)) . dm/dn (base)
        c(n) = 1/(L - 1) sum over layers l of |I_l(n)|

    I_l is I with no gradient coming back through what layer l's attention and MLP add (GradDrop); it is zero for parts
    of layer l itself, hence L - 1 (L for the residual stream). A backward with layer l dropped begins at what leaves
    it, as nothing differs above. With one layer, c = |I|.

    Args:
        nodes: Which parts. The softmax is taken again for queries and keys.
        metric: What is measured after the last token.
        direction: Noising takes the gradient on the clean run, denoising on the corrupted one.
        by_position: Each token by itself, or the sum over all before the magnitude is taken.
        top: How many neurons to list; other parts are all listed.

    Returns:
        Graph of nodes: magnitudes, in the metric's units, with the signed I of the plain gradient beside them.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens; KL divergence where
            its gradient is zero.

    Assumes:
        That dropping one layer at a time is enough to keep effects from cancelling, and that behind the softmax the
        metric is about linear.

    Misleads:
        A part whose effect goes through one layer only loses that term of the sum: with two layers, a part of the
        first that is read only by the second gets zero. The sum averages over layers, so c is smaller than the effect.
    """
    pair = read_pair(model, sample, metric, direction)
    many = model.layers > 1
    ran = slopes(model, pair, sites_of(model, nodes), drop=many, fix=True)
    plain = ran.scores(ran.slopes, by_position, fix=True)
    if not many:
        values = {site: each.abs() for site, each in plain.items()}
    else:
        values = _averaged(ran, by_position)
    return graph(ran, values, by_position, top, plain, "AtP, through the softmax", residual=ran.linear())


def _averaged(ran: Slopes, by_position: bool) -> Scores:
    layers = ran.model.layers
    total: dict[Site, torch.Tensor] = {}
    for layer in progress.track(range(layers), "dropping each layer's gradient"):
        for site, each in ran.scores(ran.without(layer), by_position, fix=True).items():
            total[site] = total.get(site, torch.zeros_like(each)) + each.abs()
    return {site: each / (layers if site.kind.startswith("resid") else layers - 1) for site, each in total.items()}
