"""Every edge against a central difference through the model's own sites, and what leaves a part against its slope."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, zoo
from interp.methods.circuits import _edges
from interp.methods.circuits._pairs import Pair, read_pair
from interp.methods.circuits.activation_patching import activation_patching
from interp.methods.circuits.edge_attribution_patching import edge_attribution_patching
from interp.model import LanguageModel, gradient
from interp.results import Graph
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
SHARE = 0.02
"""How far edges are patched towards the donor: some norms compute in float32, so not too little."""
START = Site("resid_pre", 0)


@functools.lru_cache(16)
def double(family: str) -> LanguageModel:
    model = tiny.language(family)
    if family == "mixtral":  # its experts multiply in float32 at most
        return model
    return LanguageModel(copy.deepcopy(model.network).double(), model.tokenizer, f"double {family}")


def weights(graph: Graph) -> dict[tuple[str, str, str], float]:
    names = [(graph.nodes[source], graph.nodes[target]) for source, target in graph.edges]
    return {(*ends, port): float(each) for ends, port, each in zip(names, graph.ports, graph.weights, strict=True)}


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_what_leaves_a_part_is_its_own_attribution(family: str, direction: str) -> None:
    model = double(family)
    pair = read_pair(model, PAIR, "log-probability", direction)  # type: ignore[arg-type]
    sites = [START, *(Site(kind, layer) for layer in range(model.layers) for kind in ("z", "mlp_out"))]
    with model.record(sites, grad=True) as base:
        score = pair.score(model(pair.base)[:, -1]).sum()
    with torch.no_grad(), model.record(sites) as donor:
        model(pair.donor)
    slopes = dict(zip(sites, gradient(score, [base[site] for site in sites]), strict=True))
    graph = edge_attribution_patching(model, PAIR, metric="log-probability", direction=direction)
    found, tolerance = {}, 1e-4 if model.dtype == torch.float32 else 1e-5
    for site in sites:
        product = (slopes[site] * (donor[site] - base[site])).detach().sum(-1)[0]
        for place in range(pair.length):
            for head in range(product.shape[1]) if product.dim() == 2 else [None]:
                value = float(product[place] if head is None else product[place, head])
                found[str(Node(Site(site.kind, site.layer, head), place))] = value
    scale = max(map(abs, found.values()))
    assert set(graph.nodes) == {*found, f"logits@{pair.length - 1}"}
    for name, value in found.items():
        assert graph.value(name) == pytest.approx(value, abs=tolerance * scale), name
    assert graph.residual is not None and graph.residual.value < tolerance
    whole = edge_attribution_patching(model, PAIR, metric="log-probability", direction=direction, by_position=False)
    for site in {name.partition("@")[0] for name in found}:
        total = sum(value for name, value in found.items() if name.partition("@")[0] == site)
        assert whole.value(site) == pytest.approx(total, abs=tolerance * scale), site


class Bumped:
    """The metric of the base run where one reader sees a little of the donor's output of one part, through sites."""

    def __init__(self, model: LanguageModel, pair: Pair) -> None:
        self.model, self.pair = model, pair
        kinds = ("q", "k", "v", "pattern", "z", "mlp_out", "attn_out")
        sites = [START, *(Site(kind, layer) for layer in range(model.layers) for kind in kinds)]
        with torch.no_grad(), model.record(sites) as self.base, model.scorings() as self.scorings:
            model(pair.base)
        with torch.no_grad(), model.record(sites) as self.donor:
            model(pair.donor)
        self.parallel = model.refuses(Site("resid_mid", 0)) is not None

    def look(self, site: Site, changed: Tensor, seen: list[Site]) -> list[Tensor]:
        with torch.no_grad(), self.model.edit({site: lambda _: changed}), self.model.record(seen) as found:
            self.model(self.pair.base)
        return [found[each] for each in seen]

    def written(self, source: Node, share: float) -> Tensor:
        """What a part adds to the stream at its token when it is a share of the way to the donor's."""
        site = source.site
        assert site is not None
        whole = Site(site.kind, site.layer)
        way = self.donor[whole] - self.base[whole]
        if site.kind != "z":
            return share * way[0, source.position]
        moved = torch.zeros_like(way)
        moved[:, source.position, site.head] = way[:, source.position, site.head]
        out = Site("attn_out", site.layer)
        ends = [self.look(whole, self.base[whole] + sign * 0.02 * moved, [out])[0] for sign in (1, -1)]
        return share * (ends[0] - ends[1])[0, source.position] / 0.04

    def score(self, source: Node, target: Node, port: str, share: float) -> float:
        model, layer, place = self.model, target.layer, target.position
        added, at = self.written(source, share), source.position
        assert place is not None and at is not None
        if layer is None:
            site = Site("resid_post", model.layers - 1)
            edits = {site: lambda value: plus(value, added, place)}
        else:
            kind = "resid_mid" if not port and not self.parallel else "resid_pre"
            read = Site(kind, layer)
            with torch.no_grad(), model.record([read]) as found:
                model(self.pair.base)
            seen = [Site(each, layer) for each in ("q", "k", "v", "mlp_out")]
            q, k, v, mlp = self.look(read, plus(found[read], added, at), seen)
            edits = self.reading(target, port, at, q, k, v, mlp)
        with torch.no_grad(), model.edit(edits):
            return float(self.pair.score(model(self.pair.base)[:, -1]))

    def reading(
        self, target: Node, port: str, at: int, q: Tensor, k: Tensor, v: Tensor, mlp: Tensor
    ) -> dict[Site, Callable[[Tensor], Tensor]]:
        layer, head, place = target.layer, target.head, target.position
        of = lambda kind: self.base[Site(kind, layer)]  # noqa: E731
        if not port:
            return {Site("mlp_out", layer): lambda value: put(value, mlp[0, place], (0, place))}
        if port == "q":
            return {Site("q", layer): lambda value: put(value, q[0, place, head], (0, place, head))}
        key = head // (self.model.parts.heads // self.model.parts.kv_heads)
        if port == "v":
            change = of("pattern")[0, head, place, at] * (v - of("v"))[0, at, key]
            return {Site("z", layer): lambda value: put(value, value[0, place, head] + change, (0, place, head))}
        scoring = self.scorings[Site("pattern", layer)][0]
        scores = scoring(of("q"), of("k"))[0, head, place]
        scores[at] = scoring(of("q"), k)[0, head, place, at]
        return {Site("pattern", layer): lambda value: put(value, scores.softmax(-1), (0, head, place))}


def plus(value: Tensor, added: Tensor, place: int) -> Tensor:
    return put(value, value[0, place] + added, (0, place))


def put(value: Tensor, new: Tensor, at: tuple[int, ...]) -> Tensor:
    value = value.clone()
    value[at] = new.to(value)
    return value


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2", "olmo2", "gpt_neox"])
def test_an_edge_is_the_slope_of_patching_it_alone(family: str) -> None:
    model = double(family)
    pair = read_pair(model, PAIR)
    bumped = Bumped(model, pair)
    found = weights(edge_attribution_patching(model, PAIR, keep=20000))
    by_port: dict[str, list[tuple[str, str, str, float]]] = {}
    for (source, target, port), weight in found.items():
        kind = port or ("logits" if target.startswith("logits") else "mlp")
        by_port.setdefault(kind, []).append((source, target, port, weight))
    rng = np.random.default_rng(0)
    for kind in ("q", "k", "v", "mlp", "logits"):
        edges = by_port[kind]
        scale = max(abs(edge[-1]) for edge in edges)
        for index in [0, *rng.choice(len(edges), 3, replace=False)]:
            source, target, port, weight = edges[index]
            ends = [bumped.score(Node.parse(source), Node.parse(target), port, sign * SHARE) for sign in (2, 1, -1, -2)]
            slope = (8 * (ends[1] - ends[2]) - (ends[0] - ends[3])) / (12 * SHARE)
            assert weight == pytest.approx(slope, abs=2e-3 * scale), (source, target, port)


def test_the_strongest_are_listed_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("llama")
    every = edge_attribution_patching(model, PAIR, keep=100_000)
    assert every.total == pytest.approx(np.abs(every.weights).sum(), rel=1e-5)
    assert (np.diff(np.abs(every.weights)) <= 0).all() and every.weights.all()
    some = edge_attribution_patching(model, PAIR, keep=50)
    np.testing.assert_array_equal(some.weights, every.weights[:50])
    np.testing.assert_array_equal(some.edges, every.edges[:50])
    assert some.ports == every.ports[:50] and some.total == every.total
    np.testing.assert_array_equal(some.values, every.values)
    monkeypatch.setattr(_edges, "BYTES", 1)
    assert edge_attribution_patching(model, PAIR, keep=50).reproduces(some.arrays(), 1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_summed_over_tokens_edges_are_the_sums_of_those_by_token(family: str) -> None:
    model, sums = tiny.language(family), dict[tuple[str, str, str], float]()
    for (source, target, port), weight in weights(edge_attribution_patching(model, PAIR, keep=100_000)).items():
        key = (source.partition("@")[0], target.partition("@")[0], port)
        sums[key] = sums.get(key, 0) + weight
    whole = weights(edge_attribution_patching(model, PAIR, by_position=False))
    scale = max(map(abs, sums.values()))
    assert whole.keys() <= sums.keys()
    for key, value in sums.items():
        assert whole.get(key, 0) == pytest.approx(value, abs=1e-5 * scale), key


def test_edges_go_forward_only() -> None:
    for family, parallel in (("llama", False), ("gpt_neox", True)):
        graph = edge_attribution_patching(tiny.language(family), PAIR, keep=100_000)
        for (source, target, port), _ in weights(graph).items():
            start, end = Node.parse(source), Node.parse(target)
            assert start.position is not None and end.position is not None
            assert start.position <= end.position if port in ("k", "v") else start.position == end.position
            if end.layer is None or start.kind == "resid_pre":
                continue
            assert start.layer is not None
            same = end.kind == "mlp_out" and start.kind == "z" and not parallel
            assert start.layer < end.layer or (same and start.layer == end.layer), (source, target)


def test_kl_divergence_has_no_slope_where_it_is_zero() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="denoising"):
        edge_attribution_patching(model, PAIR, metric="KL divergence")
    assert edge_attribution_patching(model, PAIR, metric="KL divergence", direction="denoising").values.any()


CIRCUIT = [("resid_pre.0", "z.0.1", "v"), ("z.0.1", "z.1.2", "k"), ("z.1.2", "logits", "")]


@pytest.mark.parametrize(
    ("clean", "corrupted", "answer", "foil"),
    [
        # two matches share the attention, so that it has a slope; the changed letter is eight further, which the
        # decoys can't tell apart
        ("a hat, a hen: h", "a hat, a pen: h", "e", "a"),
        ("one dot, one dip: d", "one dot, one tip: d", "i", "o"),
        ("The cat, the cow: c", "The cat, the sow: c", "o", "a"),
    ],
)
def test_the_known_circuit_is_found(clean: str, corrupted: str, answer: str, foil: str) -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    pair = PromptPair(clean, corrupted, answer, foil)
    graph = edge_attribution_patching(model, pair, by_position=False)
    found = weights(graph)
    assert set(list(found)[:3]) == set(CIRCUIT)
    rest = max(abs(weight) for edge, weight in found.items() if edge not in CIRCUIT)
    assert rest < 0.03 * max(map(abs, found.values()))
    for nodes in (graph, activation_patching(model, pair, by_position=False)):
        parts = {name: abs(nodes.value(name)) for name in nodes.nodes if name[0] in "zm"}
        top = max(parts.values())
        assert {name for name, value in parts.items() if value > 1e-6 * top} == {"z.0.1", "z.1.2"}
