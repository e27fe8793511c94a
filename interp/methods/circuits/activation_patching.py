from typing import Any

import numpy as np

from interp import Unsuitable
from interp.method import Paper, lens
from interp.methods.circuits._pairs import (
    Direction,
    Metric,
    Nodes,
    length_of,
    no_pairs,
    nodes_at,
    note_of,
    read_pair,
    sites_of,
)
from interp.methods.circuits._patching import Patcher
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair
from interp.sites import Node

PAPER = Paper(
    "Zhang, Fred and Nanda, Neel",
    "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods",
    2024,
    "ICLR",
    "https://arxiv.org/abs/2309.16042",
)


def passes(model: LanguageModel, nodes: Nodes, by_position: bool, sample: Any = None, **_: Any) -> tuple[float, float]:
    """Both runs, and for each node a forward from its layer on."""
    length = length_of(model, sample) if by_position else 1
    found = nodes_at(model, sites_of(model, nodes), length, by_position)
    ahead = sum(model.layers - (node.layer or 0) - (node.kind == "resid_post") for node in found)
    return 2 + ahead / model.layers, 0


@lens("Activation patching", PAPER, needs=no_pairs, cost=passes)
def activation_patching(
    model: LanguageModel,
    sample: PromptPair,
    *,
    nodes: Nodes = "heads and MLPs",
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    by_position: bool = True,
) -> Graph:
    """Put each part's activation from the other prompt in, run the rest again, and measure what changes.

        I(n) = m(base | n <- n(donor)) - m(base)
        noising: base = clean, donor = corrupted;    denoising: base = corrupted, donor = clean

    Parts of one layer are patched in one batch, and a run begins at the layer that is patched. Queries, keys and
    values are as attention uses them; the keys of grouped heads are patched together.

    Args:
        nodes: Which parts. Neurons are too many to patch one by one: attribution patching estimates them.
        metric: What is measured after the last token. KL divergence is that from the clean prompt's distribution.
        direction: Noising breaks the clean run and shows what is needed; denoising mends the corrupted run and shows
            what suffices.
        by_position: Patch each token by itself, or all at once.

    Returns:
        Graph of nodes in the metric's units. In noising, a part that speaks for the answer has a negative effect.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens; neurons.

    Assumes:
        That the two prompts differ in what is asked about and in nothing else: only differences can be seen.

    Misleads:
        Where another part takes over (backup heads) or two parts do the same, patching one of them changes nothing.
    """
    if nodes == "neurons":
        raise Unsuitable(
            "Neurons are too many to be patched one by one; take attribution patching, which is made for it."
        )
    pair = read_pair(model, sample, metric, direction)
    sites = sites_of(model, nodes)
    found = nodes_at(model, sites, pair.length, by_position)
    patcher = Patcher(model, pair, sites)
    values = patcher.effects([(node,) for node in found], "patching each part").numpy()
    return graph_of(found, values, pair, patcher.base, patcher.other)


def graph_of(nodes: list[Node], values: np.ndarray, pair: Any, base: float, donor: float, **more: Any) -> Graph:
    """A graph of nodes alone."""
    return Graph(
        tuple(map(str, nodes)), values, tokens=pair.tokens, others=pair.others, target=pair.target, units=pair.units,
        direction=pair.direction, base=base, donor=donor, total=float(np.abs(values).sum()),
        note=more.pop("note", note_of(pair, base, donor)), **more,
    )  # fmt: skip
