"""What is kept of a circuit, how two differ and agree; and the known circuit, which alone remains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from interp import circuit, zoo
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.results import Graph
from interp.samples import Prompt, PromptPair
from interp.sites import Node

CASES = json.loads((Path(__file__).parents[1] / "assets" / "prompts.json").read_text())
TWO_MATCHES = [
    PromptPair(each["prompt"], each["corrupted"], each["answer"], each["foil"]) for each in CASES["induction"][:3]
]


def graph(values: dict[str, float], edges: dict[tuple[str, str], float] | None = None) -> Graph:
    names, edges = tuple(values), edges or {}
    numbers = np.array([(names.index(a), names.index(b)) for a, b in edges], int).reshape(-1, 2)
    weights = np.array(list(edges.values()), float)
    total = float(np.abs(weights if len(weights) else list(values.values())).sum())
    return Graph(names, np.array(list(values.values())), numbers, weights, ("q",) * len(weights), total=total)


def test_the_strongest_nodes_that_make_up_a_share_are_kept() -> None:
    one = graph({"z.0.0@0": 5.0, "z.0.1@0": -4.0, "z.0.2@0": 1.0, "z.0.3@0": 0.0})
    for share, count in ((0.4, 1), (0.5, 1), (0.51, 2), (0.9, 2), (0.95, 3), (1.0, 3)):
        found = circuit.kept(one, None, share, (), 99, 99)
        assert found.nodes == [0, 1, 2][:count] and found.share == pytest.approx([0.5, 0.9, 1.0][count - 1])
    assert circuit.kept(one, None, 0.4, ("z.0.3@0", "nowhere"), 99, 99).nodes == [0, 3], "pinned ones stay"
    assert len(circuit.kept(one, None, 1.0, (), 2, 99).nodes) == 2


def test_edges_bring_their_ends_and_node_weights_borrow_edges() -> None:
    edged = graph({"a@0": 1.0, "b@0": 2.0, "c@0": 3.0}, {("a@0", "b@0"): 3.0, ("b@0", "c@0"): -1.0})
    found = circuit.kept(edged, edged, 0.7, (), 99, 99)
    assert found.edges == [("a@0", "b@0", 3.0, "q")] and found.nodes == [0, 1] and found.share == 0.75
    assert circuit.numbered(found, edged).tolist() == [[0, 1]]
    plain = graph({"c@0": 9.0, "b@0": 8.0, "a@0": 0.1})
    assert circuit.kept(plain, edged, 0.9, (), 99, 99).edges == [("b@0", "c@0", -1.0, "q")]


def test_a_difference_holds_what_either_has() -> None:
    before = graph({"a@0": 1.0, "b@0": 2.0}, {("a@0", "b@0"): 3.0})
    after = graph({"b@0": 5.0, "c@0": 1.0}, {("b@0", "c@0"): 1.0})
    found = circuit.difference(before, after)
    assert dict(zip(found.nodes, found.values, strict=True)) == {"a@0": -1.0, "b@0": 3.0, "c@0": 1.0}
    assert sorted(found.weights.tolist()) == [-3.0, 1.0] and found.total == 4.0
    same = circuit.difference(before, before)
    assert not same.values.any() and not same.weights.any() and not circuit.kept(same, same, 0.9, (), 9, 9).edges


def test_agreement_is_of_magnitudes_with_ties_shared() -> None:
    one = graph({"a@0": 1.0, "b@0": -2.0, "c@0": 3.0, "x@0": 9.0})
    names, pairs, r, rho = circuit.agreement(one, graph({"a@0": -1.0, "b@0": 4.0, "c@0": 9.0}))
    assert names == ["a@0", "b@0", "c@0"] and pairs.shape == (3, 2) and rho == pytest.approx(1) and 0.97 < r < 1
    assert np.isnan(circuit.agreement(one, graph({"a@0": 1.0}))[2])
    assert circuit._ranks(np.array([5.0, 1.0, 5.0])).tolist() == [1.5, 0.0, 1.5]


@pytest.mark.parametrize("pair", TWO_MATCHES, ids=[each.answer for each in TWO_MATCHES])
@pytest.mark.parametrize(
    "key",
    ["information_flow_routes", "attribution_patching", "edge_attribution_patching", "edge_attribution_patching_ig",
     "activation_patching", "acdc", "atp_star"],
)  # fmt: skip
def test_the_known_circuit_alone_remains(key: str, pair: PromptPair) -> None:
    """Of `induction`, whose weights are set by hand; with two layers AtP* has no term left for the earlier head."""
    result = METHODS[key](zoo.load("induction"), pair)
    # first-order effects through the softmax are far too large, so the second head of AtP's nodes is 1 % of the first;
    # edges have an end each, and those into the decoys, by the norms' slope, make up 1 % together
    share = 0.9 if len(result.edges) else 0.995
    found = circuit.kept(result, result, share, (), 120, 300)
    heads = {
        (node.layer, node.head) for node in (Node.parse(result.nodes[each]) for each in found.nodes) if node.kind == "z"
    }
    assert heads == ({(1, 2)} if key == "atp_star" else {(0, 1), (1, 2)})


def test_the_metric_and_memory_of_an_experiment() -> None:
    pair = TWO_MATCHES[0]
    experiment = Experiment("induction", pair, Call("attribution_patching"))
    result = experiment.run()
    assert isinstance(result, Graph)
    model = zoo.load("induction")
    answer, foil = (model.tokenizer.convert_tokens_to_ids(each) for each in (pair.answer, pair.foil))
    assert circuit.logit_difference(experiment, pair.clean, answer, foil) == pytest.approx(result.base, abs=1e-4)
    assert circuit.logit_difference(experiment, pair.corrupted, answer, foil) == pytest.approx(result.donor, abs=1e-4)
    assert 1e5 < circuit.memory(experiment) < 1e9
    assert circuit.memory(Experiment("stories", Prompt("a b c"), Call("information_flow_routes"))) > 0


def test_heads_that_act_alike_are_grouped() -> None:
    one = graph({"z.1.0@3": 1.0, "z.1.1@3": 2.0, "z.1.2@3": 3.0, "z.1.3@3": -1.0, "mlp_out.1@3": 1.0})
    assert circuit.grouped(one, list(range(5))) == (("layer 1 at 3 for", ("z.1.0@3", "z.1.1@3", "z.1.2@3")),)
