from typing import Annotated, Any

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.circuits._edges import edge_graph, nearby
from interp.methods.circuits._pairs import Direction, Metric, no_pairs, read_pair
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair

PAPER = Paper(
    "Syed, Aaquib and Rager, Can and Conmy, Arthur",
    "Attribution Patching Outperforms Automated Circuit Discovery",
    2023,
    "BlackboxNLP at EMNLP 2024",
    "https://arxiv.org/abs/2310.10348",
)


def passes(model: LanguageModel, **_: Any) -> tuple[float, float]:
    """Both runs and one with its graph; a backward, and steps through single projections."""
    return 3, 1 + nearby(model)


@lens("EAP", PAPER, needs=no_pairs, cost=passes)
def edge_attribution_patching(
    model: LanguageModel,
    sample: PromptPair,
    *,
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    keep: Annotated[int, Range(1, 100_000)] = 2000,
    by_position: bool = True,
) -> Graph:
    """Estimate, by one gradient, what each connection between two parts carries from the other prompt to the answer.

        I(u@s -> v@t) = Delta_u[s] . (dm / d in_v as v reads it at t),    Delta_u = u(donor) - u(base) in the stream
        q, MLPs, logits: s = t, the gradient pulled back to the stream;    v: p_ts (J_v Delta_u[s]) . dm/dz_t
        k: scale cap'_ts p_ts (g_ts - sum_j p_tj g_tj) q_t . J_k Delta_u[s],    g = dm/dp, J at the base run

    Parts are the input, heads, MLPs and the logits. A head reads by its query at its own token and by keys and values
    at all tokens up to it. A head's Delta reaches the stream through the Jacobian of what lies between, a norm behind
    the attention included, so that what leaves a part adds up to its attribution patching. Of grouped heads each has
    its own share of key and value. A layer that an intervention repeats counts with all its passes together; one in
    the middle of a layer, between attention and MLP, is passed over.

    Args:
        metric: What is measured after the last token. KL divergence is that from the clean prompt's distribution.
        direction: Noising takes the slope on the clean run, denoising on the corrupted one.
        keep: How many edges are listed, the strongest first.
        by_position: Tell the tokens apart that an edge joins, or sum over them.

    Returns:
        Graph of edges in the metric's units. A part's value is the sum of what leaves it; nothing leaves the logits.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens; KL divergence in
            noising.

    Assumes:
        That the metric is nearly linear in what an edge carries, all the way from the base run to the donor's.

    Misleads:
        Where attention or a probability is saturated the slope is near zero, and a strong edge looks weak. Edges
        that cancel each other look strong although nothing depends on them together.
    """
    if metric == "KL divergence" and direction == "noising":
        raise Unsuitable(
            "The KL divergence has no slope at the clean run, where it is zero; choose denoising, or another metric."
        )
    return edge_graph(model, read_pair(model, sample, metric, direction), 0, keep, by_position)
