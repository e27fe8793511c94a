"""What is kept of a circuit, how two agree, how they differ, and what they cost: sums over `Graph`s."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from interp import Unsuitable, zoo
from interp.experiment import Experiment
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import Prompt, PromptPair
from interp.sites import Node


@dataclass(frozen=True)
class Kept:
    """What is drawn: numbers of nodes; edges as source, target, weight, port; their share of all that is counted."""

    nodes: list[int]
    edges: list[tuple[str, str, float, str]]
    share: float


def kept(graph: Graph, edged: Graph | None, share: float, always: tuple[str, ...], nodes: int, edges: int) -> Kept:
    """The strongest edges that make up `share` of all, with their ends; without edges of its own, the strongest nodes.

    A node-weighted graph borrows the edges of `edged` among its nodes, those that are strongest there.

    Args:
        always: names of nodes that are kept whatever they weigh.
        nodes, edges: how many are kept at most.
    """
    place = {name: index for index, name in enumerate(graph.nodes)}
    fixed = [place[name] for name in always if name in place]
    if len(graph.edges):
        order = np.argsort(-np.abs(graph.weights), kind="stable")
        taken = _enough(np.abs(graph.weights[order]), share, graph.total)[:edges]
        chosen = order[: len(taken)]
        used = dict.fromkeys([*graph.edges[chosen].ravel().tolist(), *fixed])
        found = [_edge(graph, int(each)) for each in chosen]
        return Kept(list(used), found, _part(float(np.abs(graph.weights[chosen]).sum()), graph.total))
    order = np.argsort(-np.abs(graph.values), kind="stable")
    taken = _enough(np.abs(graph.values[order]), share, graph.total)[:nodes]
    chosen = order[: len(taken)]
    used = dict.fromkeys([*chosen.tolist(), *fixed])
    names = {graph.nodes[each] for each in used}
    found = []
    if edged is not None:
        for each in np.argsort(-np.abs(edged.weights), kind="stable"):
            edge = _edge(edged, int(each))
            if edge[0] in names and edge[1] in names and len(found) < edges and edge[2]:
                found.append(edge)
    return Kept(list(used), found, _part(float(np.abs(graph.values[chosen]).sum()), graph.total))


def _enough(magnitudes: np.ndarray, share: float, total: float) -> np.ndarray:
    """The fewest of the largest that make up the share; those of zero never."""
    sums = np.cumsum(magnitudes)
    whole = total if total == total and total > 0 else float(sums[-1]) if len(sums) else 0.0
    count = int(np.searchsorted(sums, share * whole * (1 - 1e-9))) + 1
    return magnitudes[:count][magnitudes[:count] > 1e-9 * max(whole, 1e-30)]


def _part(kept: float, total: float) -> float:
    return min(kept / total, 1.0) if total == total and total > 0 else 1.0


def _edge(graph: Graph, index: int) -> tuple[str, str, float, str]:
    source, target = graph.edges[index]
    port = graph.ports[index] if graph.ports else ""
    return graph.nodes[source], graph.nodes[target], float(graph.weights[index]), port


def numbered(found: Kept, graph: Graph) -> np.ndarray:
    """The kept edges as numbers of the kept nodes, [edge, 2]."""
    place = {graph.nodes[each]: index for index, each in enumerate(found.nodes)}
    return np.array([(place[source], place[target]) for source, target, _, _ in found.edges], int).reshape(-1, 2)


def difference(before: Graph, after: Graph) -> Graph:
    """after - before, of the nodes and edges of both."""
    names = list(dict.fromkeys([*before.nodes, *after.nodes]))
    place = {name: index for index, name in enumerate(names)}
    values = np.zeros(len(names))
    edges: dict[tuple[int, int, str], float] = defaultdict(float)
    for sign, graph in ((-1, before), (1, after)):
        for name, value in zip(graph.nodes, graph.values, strict=True):
            values[place[name]] += sign * value
        for index in range(len(graph.edges)):
            source, target, weight, port = _edge(graph, index)
            edges[place[source], place[target], port] += sign * weight
    weights = np.array(list(edges.values()))
    return dataclasses.replace(
        after, nodes=tuple(names), values=values, edges=np.array([key[:2] for key in edges], int).reshape(-1, 2),
        weights=weights, ports=tuple(key[2] for key in edges), beside=np.zeros(0), beside_name="", residual=None,
        total=float(np.abs(weights if len(weights) else values).sum()), bound=float("nan"), note="",
    )  # fmt: skip


def agreement(one: Graph, other: Graph) -> tuple[list[str], np.ndarray, float, float]:
    """The nodes of both, their magnitudes [node, 2], and Pearson's and Spearman's correlation of these (NaN: none)."""
    theirs = dict(zip(other.nodes, other.values, strict=True))
    names = [name for name in one.nodes if name in theirs]
    mine = dict(zip(one.nodes, one.values, strict=True))
    pairs = np.abs(np.array([(mine[name], theirs[name]) for name in names], float).reshape(-1, 2))

    def correlation(x: np.ndarray) -> float:
        if len(x) < 3 or not x.std(0).all():
            return float("nan")
        return float(np.corrcoef(x.T)[0, 1])

    ranks = np.stack([_ranks(column) for column in pairs.T], 1) if len(pairs) else pairs
    return names, pairs, correlation(pairs), correlation(ranks)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def grouped(graph: Graph, nodes: list[int]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Groups (name, nodes) of three or more heads of one layer, at one token, of one sign."""
    sets: dict[tuple[int, int, bool], list[str]] = defaultdict(list)
    for index in nodes:
        node = Node.parse(graph.nodes[index])
        if node.kind == "z" and node.position is not None and node.layer is not None:
            sets[node.layer, node.position, bool(graph.values[index] >= 0)].append(graph.nodes[index])
    return tuple(
        (f"layer {layer} at {position} {'for' if sign else 'against'}", tuple(names))
        for (layer, position, sign), names in sorted(sets.items())
        if len(names) >= 3
    )


def logit_difference(experiment: Experiment, text: str, answer: int, foil: int) -> float:
    """z_answer - z_foil after a prompt, under the experiment's interventions."""
    from interp.methods import METHODS
    from interp.methods.reading._prompts import last_logits

    model = _language(experiment)
    with ExitStack() as stack:
        for call in experiment.interventions:
            stack.enter_context(METHODS[call.method](model, experiment.sample, **call.settings))
        logits = last_logits(model, Prompt(text))
    return float(logits[answer] - logits[foil])


def memory(experiment: Experiment) -> float:
    """About how many bytes a circuit method needs besides the model: activations, twice where there are gradients."""
    from interp.methods.circuits._patching import BATCH, TOKENS

    model, sample = _language(experiment), experiment.sample
    text = sample.clean if isinstance(sample, PromptPair) else getattr(sample, "text", "")
    length = model.inputs(text, cut=True).shape[1]
    heads, width = model.parts.heads, model.config.hidden_size
    layer = length * width * 14 + heads * length**2
    rows = max(1, min(BATCH, TOKENS // length))
    return 4.0 * (3 * model.layers * layer + rows * (2 * layer + model.config.vocab_size))


def _language(experiment: Experiment) -> LanguageModel:
    model = zoo.load(experiment.model)
    if not isinstance(model, LanguageModel):
        raise Unsuitable(f"{model.name} reads images; circuits are looked for in language models.")
    return model
