"""Every edge against a central difference through the model's own sites: any architecture, no Jacobian."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.methods.circuits._pairs import Pair, read_pair
from interp.methods.circuits.edge_attribution_patching import edge_attribution_patching
from interp.model import LanguageModel
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
    return LanguageModel(copy.deepcopy(model.network).double(), model.tokenizer, f"double {family}")


def weights(graph: Graph) -> dict[tuple[str, str, str], float]:
    names = [(graph.nodes[source], graph.nodes[target]) for source, target in graph.edges]
    return {(*ends, port): float(each) for ends, port, each in zip(names, graph.ports, graph.weights, strict=True)}


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
