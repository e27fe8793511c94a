from typing import Annotated

from interp.method import Paper, Range, lens
from interp.methods.circuits._pairs import Direction, Metric, Nodes, no_pairs, read_pair, sites_of
from interp.methods.circuits._slopes import graph, slopes
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair

PAPER = Paper(
    "Nanda, Neel",
    "Attribution Patching: Activation Patching At Industrial Scale",
    2023,
    "Blog",
    "https://www.neelnanda.io/mechanistic-interpretability/attribution-patching",
)


@lens("Attribution patching (AtP)", PAPER, needs=no_pairs, cost=lambda model, **_: (2, 1))
def attribution_patching(
    model: LanguageModel,
    sample: PromptPair,
    *,
    nodes: Nodes = "heads and MLPs",
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    by_position: bool = True,
    top: Annotated[int, Range(1, 10_000)] = 300,
) -> Graph:
    """Estimate what patching each part would do, all parts at once, from one gradient.

        I(n) = (n(donor) - n(base)) . dm/dn (base)
        noising: base = clean, donor = corrupted;    denoising: base = corrupted, donor = clean

    Two forwards and a backward, however many parts there are.

    Args:
        nodes: Which parts. Queries, keys and values are as attention uses them.
        metric: What is measured after the last token.
        direction: Noising takes the gradient on the clean run, denoising on the corrupted one.
        by_position: Each token by itself, or the sum over all.
        top: How many neurons to list; other parts are all listed.

    Returns:
        Graph of nodes, signed, in the metric's units. Its residual is how far the same estimate for the whole prompt
        is from the truth.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens; KL divergence where
            its gradient is zero.

    Assumes:
        That the metric is about linear in the part, from what it is in one run to what it is in the other.

    Misleads:
        A saturated softmax has no slope, so queries and keys that matter get nothing; and where a direct and an
        indirect effect cancel to first order, so does a part that matters. AtP* mends both.
    """
    pair = read_pair(model, sample, metric, direction)
    ran = slopes(model, pair, sites_of(model, nodes))
    return graph(ran, ran.scores(ran.slopes, by_position), by_position, top, residual=ran.linear())
