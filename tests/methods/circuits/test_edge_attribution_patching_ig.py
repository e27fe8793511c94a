"""Sums that the integral promises, and the one step in the middle written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import zoo
from interp.methods.circuits._pairs import Metric, read_pair
from interp.methods.circuits.edge_attribution_patching import edge_attribution_patching
from interp.methods.circuits.edge_attribution_patching_ig import edge_attribution_patching_ig
from interp.model import LanguageModel, gradient
from interp.results import Graph
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
START = Site("resid_pre", 0)


def gap(graph: Graph) -> float:
    """How far the edges of the input are from the difference of both runs, as a share of it."""
    leaving = sum(value for name, value in zip(graph.nodes, graph.values, strict=True) if name.startswith(str(START)))
    return float(abs(leaving - (graph.donor - graph.base)) / abs(graph.donor - graph.base))


@pytest.mark.parametrize("metric", ["logit difference", "KL divergence"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3", "gpt_neox", "olmo2"])
def test_the_edges_of_the_input_add_up_to_the_difference_of_both_runs(family: str, metric: Metric) -> None:
    model = tiny.language(family)
    graphs = [edge_attribution_patching_ig(model, PAIR, metric=metric, steps=steps) for steps in (1, 4, 16, 64)]
    gaps = [gap(graph) for graph in graphs]
    for graph, value in zip(graphs, gaps, strict=True):
        assert graph.residual is not None and graph.residual.value == pytest.approx(value, rel=1e-6, abs=1e-9)
    # not of a mixture of experts, which jumps where another expert is chosen
    assert gaps[-1] < 2e-3 and gaps[-1] < 0.3 * gaps[-2] and gaps[-1] < 0.01 * gaps[0], gaps


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_leaves_a_part_is_its_change_times_the_mean_slope_on_the_way(family: str) -> None:
    model, steps = tiny.language(family), 3
    pair = read_pair(model, PAIR)
    sites = [START, *(Site(kind, layer) for layer in range(model.layers) for kind in ("z", "mlp_out"))]
    with torch.no_grad(), model.record(sites) as base:
        model(pair.base)
    with torch.no_grad(), model.record(sites) as donor:
        model(pair.donor)
    graph = edge_attribution_patching_ig(model, PAIR, steps=steps)
    expected = dict.fromkeys(graph.nodes, 0.0)
    for step in range(steps):
        stream = torch.lerp(base[START], donor[START], (step + 0.5) / steps)
        with model.edit({START: lambda _, stream=stream: stream}), model.record(sites, grad=True) as way:
            score = pair.score(model(pair.base)[:, -1]).sum()
        for site, slope in zip(sites, gradient(score, [way[site] for site in sites]), strict=True):
            product = (slope * (donor[site] - base[site])).sum(-1)[0]
            for place, at in enumerate(product):
                for head, value in enumerate(at) if at.dim() else [(None, at)]:
                    expected[str(Node(Site(site.kind, site.layer, head), place))] += float(value) / steps
    scale = max(map(abs, expected.values()))
    np.testing.assert_allclose(graph.values, list(expected.values()), atol=1e-4 * scale)


def test_with_one_step_between_prompts_that_hardly_differ_it_is_edge_attribution_patching() -> None:
    model = tiny.language("llama")
    table = model.weight("model.embed_tokens.weight").clone()
    ids = {letter: model.tokenizer(letter)["input_ids"][-1] for letter in "cd"}
    table[ids["d"]] = table[ids["c"]] + 1e-2 * (table[ids["d"]] - table[ids["c"]])
    pair = PromptPair("The cat sat", "The dat sat", "a", "b")
    with model.swap({"model.embed_tokens.weight": table}):
        at_base = edge_attribution_patching(model, pair, by_position=False)
        between = edge_attribution_patching_ig(model, pair, by_position=False, steps=1)
    np.testing.assert_allclose(between.values, at_base.values, atol=0.05 * np.abs(at_base.values).max())


def test_the_known_circuit_is_found() -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    graph = edge_attribution_patching_ig(
        model, PromptPair("The cat, the cow: c", "The cat, the sow: c", "o", "a"), by_position=False, steps=64
    )
    top = {(graph.nodes[source], graph.nodes[target]) for source, target in graph.edges[:3]}
    assert top == {("resid_pre.0", "z.0.1"), ("z.0.1", "z.1.2"), ("z.1.2", "logits")}
    assert np.abs(graph.weights[3:]).max() < 0.03 * np.abs(graph.weights).max() and gap(graph) < 1e-2
