"""First-order patching against central differences of exact patching, and sums of parts against wholes."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable
from interp.methods.circuits._pairs import Metric, Nodes, read_pair
from interp.methods.circuits.activation_patching import activation_patching
from interp.methods.circuits.attribution_patching import attribution_patching
from interp.model import LanguageModel
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
SHARE = 0.02
"""How far parts are moved towards the donor: some norms compute in float32, so not too little."""
KINDS: tuple[Nodes, ...] = ("heads and MLPs", "q, k, v", "residual stream", "attention and MLPs", "patterns", "neurons")


@functools.lru_cache(16)
def double(family: str) -> LanguageModel:
    model = tiny.language(family)
    return LanguageModel(copy.deepcopy(model.network).double(), model.tokenizer, f"double {family}")


class Moved:
    """The metric of the base run where one part is a share of the way to the donor."""

    def __init__(self, model: LanguageModel, metric: Metric) -> None:
        self.model, self.pair = model, read_pair(model, PAIR, metric)

    @functools.lru_cache(64)  # noqa: B019
    def ends(self, site: Site) -> tuple[Tensor, Tensor]:
        found = []
        for ids in (self.pair.base, self.pair.donor):
            with torch.no_grad(), self.model.record([site]) as record:
                self.model(ids)
            found.append(record[site])
        return found[0], found[1]

    def score(self, node: Node, share: float) -> float:
        site, at = Site(node.kind, node.layer), node.position
        base, donor = self.ends(site)
        index: tuple[object, ...] = (0, at, slice(None) if node.head is None else node.head)
        if node.kind == "pattern":
            index = (0, node.head, at)
        elif node.channel is not None:
            index = (0, at, node.channel)
        way = torch.zeros_like(base)
        way[index] = (donor - base)[index]
        with torch.no_grad(), self.model.edit({site: lambda value: value + share * way}):
            return float(self.pair.score(self.model(self.pair.base)[:, -1]))

    def slope(self, node: Node) -> float:
        ends = [self.score(node, sign * SHARE) for sign in (2, 1, -1, -2)]
        return (8 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / (12 * SHARE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2", "olmo2", "gpt_neox"])
def test_an_estimate_is_the_slope_of_exact_patching(family: str) -> None:
    model, rng = double(family), np.random.default_rng(0)
    for metric in ("logit difference", "log-probability") if family == "llama" else ("logit difference",):
        moved = Moved(model, metric)  # type: ignore[arg-type]
        for kind in KINDS:
            graph = attribution_patching(model, PAIR, nodes=kind, metric=metric)  # type: ignore[arg-type]
            scale, order = np.abs(graph.values).max(), np.argsort(-np.abs(graph.values))
            for index in [*order[:2], rng.choice(order)]:
                slope = moved.slope(Node.parse(graph.nodes[index]))
                assert graph.values[index] == pytest.approx(slope, abs=2e-3 * scale), graph.nodes[index]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "phi3"])
def test_heads_add_up_to_their_attention(family: str) -> None:
    model = double(family)
    for by_position in (True, False):
        heads = attribution_patching(model, PAIR, by_position=by_position)
        whole = attribution_patching(model, PAIR, nodes="attention and MLPs", by_position=by_position)
        scale = np.abs(whole.values).max()
        for name, value in zip(whole.nodes, whole.values, strict=True):
            kind, layer, *_ = name.replace("@", ".").split(".")
            place = name.partition("@")[2]
            if kind == "attn_out":
                own = [f"z.{layer}.{head}" + (f"@{place}" if place else "") for head in range(model.parts.heads)]
                parts = sum(heads.value(each) for each in own)
            else:
                parts = heads.value(name)
            # GPT-2's and OPT's norms stay in float64
            tolerance = 1e-10 if family in ("gpt2", "opt") else 1e-5
            assert parts == pytest.approx(value, abs=tolerance * scale), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_add_up_to_their_mlp(family: str) -> None:
    model = double(family)
    neurons = attribution_patching(model, PAIR, nodes="neurons", top=10_000)
    whole = attribution_patching(model, PAIR, nodes="attention and MLPs")
    scale = np.abs(whole.values).max()
    sums: dict[str, float] = {}
    for name, value in zip(neurons.nodes, neurons.values, strict=True):
        node = Node.parse(name)
        key = f"mlp_out.{node.layer}@{node.position}"
        sums[key] = sums.get(key, 0) + value
    assert sums.keys() == {name for name in whole.nodes if name.startswith("mlp")}
    for name, value in sums.items():
        assert value == pytest.approx(whole.value(name), abs=1e-5 * scale), name


def test_the_strongest_neurons_are_listed_and_all_are_counted() -> None:
    model = tiny.language("llama")
    for by_position, count in ((True, 3 * 17 * 32), (False, 3 * 32)):
        every = attribution_patching(model, PAIR, nodes="neurons", top=10_000, by_position=by_position)
        assert len(every.nodes) == len(set(every.nodes)) == count
        assert (np.diff(np.abs(every.values)) <= 0).all()
        assert every.total == pytest.approx(np.abs(every.values).sum())
        some = attribution_patching(model, PAIR, nodes="neurons", top=7, by_position=by_position)
        assert some.nodes == every.nodes[:7] and some.total == pytest.approx(every.total)
        np.testing.assert_array_equal(some.values, every.values[:7])


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3_text"])
def test_summed_over_tokens_an_estimate_is_the_sum_of_those_by_token(family: str) -> None:
    for kind in KINDS[:5]:
        sums: dict[str, float] = {}
        graph = attribution_patching(tiny.language(family), PAIR, nodes=kind)
        for name, value in zip(graph.nodes, graph.values, strict=True):
            key = name.partition("@")[0]
            sums[key] = sums.get(key, 0) + value
        whole = attribution_patching(tiny.language(family), PAIR, nodes=kind, by_position=False)
        assert list(whole.nodes) == list(sums)
        np.testing.assert_allclose(whole.values, list(sums.values()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["opt", "gemma2", "mixtral"])
def test_nodes_and_ends_are_those_of_exact_patching(family: str, direction: str) -> None:
    model = tiny.language(family)
    for kind in KINDS[:5]:
        settings = {"direction": direction, "nodes": kind, "by_position": False}
        estimate = attribution_patching(model, PAIR, **settings)
        exact = activation_patching(model, PAIR, **settings)
        assert estimate.nodes == exact.nodes and estimate.direction == direction
        assert estimate.base == pytest.approx(exact.base, abs=1e-5)
        assert estimate.donor == pytest.approx(exact.donor, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_residual_is_how_far_the_whole_prompts_estimate_is_from_its_effect(family: str) -> None:
    model = tiny.language(family)
    graph = attribution_patching(model, PAIR, nodes="residual stream", by_position=False)
    way = graph.donor - graph.base
    assert graph.residual is not None
    assert graph.residual.value == pytest.approx(abs(graph.value("resid_pre.0") - way) / abs(way), rel=1e-4)


def test_kl_divergence_has_no_slope_where_it_is_zero() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="denoising") as problem:
        attribution_patching(model, PAIR, metric="KL divergence")
    assert str(problem.value).endswith(".")
    assert attribution_patching(model, PAIR, metric="KL divergence", direction="denoising").values.any()


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_two_forwards_and_a_backward_whatever_the_parts(kind: Nodes) -> None:
    graph = attribution_patching(tiny.language("gpt2"), PAIR, nodes=kind)
    assert (graph.forwards, graph.backwards) == (2, 1)
