from typing import Annotated, Any

from interp.method import Paper, Range, lens
from interp.methods.circuits._edges import edge_graph, nearby
from interp.methods.circuits._pairs import Direction, Metric, no_pairs, read_pair
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair

PAPER = Paper(
    "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
    "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms",
    2024,
    "COLM",
    "https://arxiv.org/abs/2403.17806",
)


def passes(model: LanguageModel, steps: int, **_: Any) -> tuple[float, float]:
    """Both runs; for every step a forward, a backward, and steps through single projections."""
    return 2 + steps, steps * (1 + nearby(model))


@lens("EAP-IG", PAPER, needs=no_pairs, cost=passes)
def edge_attribution_patching_ig(
    model: LanguageModel,
    sample: PromptPair,
    *,
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    steps: Annotated[int, Range(1, 64)] = 5,
    keep: Annotated[int, Range(1, 100_000)] = 2000,
    by_position: bool = True,
) -> Graph:
    """Average the gradients of edge attribution patching over inputs on the way from one prompt to the other.

        I(u@s -> v@t) = 1/n sum_k Delta_u[s] . (dm / d in_v as v reads it at t, on the run from x_k)
        x_k = x(base) + (k - 1/2)/n (x(donor) - x(base)),  k = 1 .. n;    Delta_u = u(donor) - u(base)

    x is what enters the first layer, and the edges are those of edge attribution patching. Those that leave x add up
    to m(donor) - m(base) as n grows. Each x_k lies in the middle of one of n equal parts of the way, which favours
    neither prompt; the paper's begin at the corrupted one.

    Args:
        metric: What is measured after the last token. KL divergence is that from the clean prompt's distribution.
        direction: Noising goes from the clean prompt to the corrupted one, denoising back.
        steps: How many inputs on the way. The residual says what they miss.
        keep: How many edges are listed, the strongest first.
        by_position: Tell the tokens apart that an edge joins, or sum over them.

    Returns:
        Graph of edges in the metric's units. A part's value is the sum of what leaves it; nothing leaves the logits.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens.

    Assumes:
        That what the model does on mixtures of the two prompts' embeddings lies between what it does on either.

    Misleads:
        Mixtures are inputs that the model never saw. Only what leaves the input adds up to the difference: behind it
        the differences are those of the two ends, and the slopes those of the way.
    """
    return edge_graph(model, read_pair(model, sample, metric, direction), steps, keep, by_position)
