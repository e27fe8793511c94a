"""Spreading equals a slow walk over dicts; isolated seeds, thresholds, depth; the graph holds what the index says."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interp import progress
from interp.methods.features import _spreading
from interp.methods.features._spreading import Net, Spread, graph, spread
from tests import tiny
from tests.methods.features import kept


def slow(
    edges: list[tuple[int, int, float, float]], seeds: dict[int, float], c: float, hops: int | None = None
) -> dict[int, float]:
    """The same by dict of dicts, one node after the other."""
    out: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for source, target, weight, share in edges:
        if weight > c:
            out[source][target] += (weight - c) / (1 - c) / share
    a, fired, front, rounds = dict(seeds), set[int](), sorted(seeds), 0
    while front and rounds != hops:
        sums: dict[int, float] = defaultdict(float)
        for node in front:
            fired.add(node)
            for target, weight in out[node].items():
                sums[target] += a[node] * weight
        for target, value in sums.items():
            a[target] = min(1.0, a.get(target, 0.0) + value)
        front = sorted(each for each in sums if each not in fired)
        rounds += 1
    return a


def drawn(seed: int, nodes: int, count: int, acyclic: bool = False) -> list[tuple[int, int, float, float]]:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, nodes, (count, 2))
    if acyclic:
        pairs = np.sort(pairs, 1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return [
        (int(a), int(b), float(np.float32(w)), float(s))
        for (a, b), w, s in zip(pairs, rng.random(len(pairs)), rng.integers(1, 4, len(pairs)), strict=True)
    ]


def net(nodes: int, edges: list[tuple[int, int, float, float]]) -> Net:
    sources, targets, weights, shares = (np.array(each) for each in zip(*edges, strict=True))
    return Net.of(nodes, sources, targets, weights, shares)


def of(nodes: int, seeds: dict[int, float]) -> np.ndarray:
    return np.array([seeds.get(each, 0.0) for each in range(nodes)])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("hops", [None, 2])
def test_it_equals_the_slow_walk(seed: int, hops: int | None) -> None:
    edges = drawn(seed, 60, 150)
    seeds = {3: 1.0, 17: 0.4, 41: 0.05}
    for c in (0.0, 0.3, 0.6):
        found = spread(net(60, edges), of(60, seeds), c, hops)
        wanted = slow(edges, seeds, c, hops)
        np.testing.assert_allclose(found.activation, [wanted.get(each, 0.0) for each in range(60)], rtol=1e-9)
        assert found.activation.max() <= 1
        for node in np.flatnonzero((found.activation > 0) & (of(60, seeds) == 0)):
            source = int(found.source[node])
            assert any(each[:2] == (source, node) and each[2] > c for each in edges)
        assert (found.source[[3, 17, 41]] == -1).all()


def test_an_isolated_seed_stays_alone() -> None:
    found = spread(net(5, [(0, 1, 0.9, 1), (1, 2, 0.9, 1)]), of(5, {4: 0.7}), 0.1)
    assert found.activation.tolist() == [0, 0, 0, 0, 0.7] and found.rounds == 0
    weak = spread(net(5, [(4, 1, 0.1, 1)]), of(5, {4: 0.7}), 0.1)
    assert weak.activation.tolist() == [0, 0, 0, 0, 0.7], "an edge as strong as the cutoff is none"


@pytest.mark.parametrize("seed", range(4))
def test_a_higher_cutoff_reaches_no_more(seed: int) -> None:
    the_net, seeds = net(80, drawn(seed, 80, 240)), of(80, {0: 1.0, 7: 0.5})
    before = np.ones(80, bool)
    for c in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95):
        now = spread(the_net, seeds, c).activation > 0
        assert not (now & ~before).any()
        before = now
    nearer = spread(the_net, seeds, 0.3, 1).activation > 0
    assert not (nearer & ~(spread(the_net, seeds, 0.3, 3).activation > 0)).any()


@pytest.mark.parametrize("seed", range(4))
def test_without_cycles_it_ends_within_the_depth(seed: int) -> None:
    edges = drawn(seed, 40, 100, acyclic=True)
    depth = [0] * 40
    for source, target, weight, _ in sorted(edges):
        if weight > 0.2:
            depth[target] = max(depth[target], depth[source] + 1)
    found = spread(net(40, edges), of(40, {0: 1.0, 1: 1.0}), 0.2)
    assert found.rounds <= max(depth)


def test_one_edge_and_two_by_hand() -> None:
    found = spread(net(3, [(0, 1, 0.7, 1), (1, 2, 0.9, 2)]), of(3, {0: 0.8}), 0.4)
    one = 0.8 * 0.3 / 0.6
    np.testing.assert_allclose(found.activation, [0.8, one, one * 0.5 / 0.6 / 2])
    assert found.source.tolist() == [-1, 0, 1] and found.rounds == 2
    told = lambda a, b, kind: f"{a}>{b}"  # noqa: E731
    assert _spreading.path(found, 2, str, told) == "1>2, 0>1" and _spreading.path(found, 0, str, told) == "0"
    circle = Spread(np.ones(2), np.array([1, 0]), np.zeros(2, int), 1)
    assert _spreading.path(circle, 0, str, told) == "1>0, 0>1"


def test_it_stops_where_it_is_asked_to() -> None:
    cancel: Any = SimpleNamespace(is_set=lambda: True)
    with progress.watch(cancel=cancel), pytest.raises(progress.Cancelled):
        spread(net(3, [(0, 1, 0.7, 1)]), of(3, {0: 0.8}), 0.4)


def test_the_graph_holds_what_the_index_says() -> None:
    model = tiny.language("gpt2")
    known = kept.index(model, kept.keep(model, "jumprelu", seed=2))
    size = model.config.vocab_size
    whole = graph(known, size)
    features, names = known.n_features, whole.documents
    edges: dict[tuple[int, int, int], float] = {}
    for source in range(len(whole.net.starts) - 1):
        for at in range(whole.net.starts[source], whole.net.starts[source + 1]):
            key = (source, int(whole.net.targets[at]), int(whole.net.kinds[at]))
            assert key not in edges, "one of each kind"
            edges[key] = float(whole.net.weights[at])
            assert whole.net.shares[at] >= 1 - 1e-6
    assert all((b, a, kind) in edges and edges[b, a, kind] == weight for (a, b, kind), weight in edges.items())
    assert all(0 <= each <= 1 + 1e-6 for each in edges.values())
    share: dict[tuple[int, int], float] = defaultdict(float)
    fired: dict[tuple[int, int], float] = {}
    pairs: dict[tuple[int, int], float] = {}
    for feature in range(features):
        page = known.page(feature, model)
        total = sum(float(context.values.clip(0).sum()) for context in page.top)
        for context in page.top:
            for token, value in zip(context.ids, context.values, strict=True):
                if value > 0:
                    share[feature, features + int(token)] += float(value) / total
            node = features + size + int(np.searchsorted(names, context.document))
            fired[feature, node] = max(fired.get((feature, node), 0), context.value / page.maximum)
        for other, cosine in page.neighbours:
            if cosine > 0:
                pairs[min(feature, other), max(feature, other)] = cosine
        if page.promoted:
            gains = np.array([value for _, value in page.promoted])
            part = (gains - gains[-1]) / (gains - gains[-1]).sum()
            for token, wanted in zip(known.promoted_ids[feature], part, strict=True):
                assert edges[feature, features + int(token), _spreading.PROMOTED] == pytest.approx(wanted, abs=1e-6)
    for kind, wanted in ((_spreading.SHARE, share), (_spreading.CONTEXT, fired), (_spreading.ALIKE, pairs)):
        got = {key[:2]: value for key, value in edges.items() if key[2] == kind and key[0] < key[1]}
        assert got.keys() == wanted.keys() and len(got) > 20
        for key, value in wanted.items():
            assert got[key] == pytest.approx(value, rel=2e-3, abs=1e-5)
    rare = [value for (a, b, kind), value in edges.items() if kind == _spreading.WORD]
    assert rare and max(rare) == pytest.approx(1) and math.isclose(min(rare), min(rare))


def synthetic(features: int, vocabulary: int = 50_000, seed: int = 0) -> Any:
    """An index of random contexts, of the sizes that indexes have."""
    rng = np.random.default_rng(seed)
    k, width = 20, 33
    ids = (vocabulary ** rng.random((features, k, width), np.float32)).astype(np.int32) - 1  # few are common
    values = np.where(rng.random((features, k, width)) < 0.05, rng.random((features, k, width)), 0).astype(np.float32)
    values[..., 24] = 0.5 + rng.random((features, k)) / 2
    pairs = lambda n: rng.integers(0, features, (features, n)).astype(np.int32)  # noqa: E731
    return SimpleNamespace(
        n_features=features, context_ids=ids, context_values=values, maximum=np.ones(features, np.float32),
        context_at=np.full((features, k), 24), context_documents=rng.integers(0, 20 * features, (features, k)),
        count=rng.integers(1, 1000, features), neighbour_ids=pairs(20),
        neighbour_values=rng.random((features, 20)).astype(np.float16), together_ids=pairs(10),
        together_values=rng.random((features, 10)).astype(np.float16),
        promoted_ids=rng.integers(0, vocabulary, (features, 12)).astype(np.int32),
        promoted_values=-np.sort(-rng.random((features, 12)), 1).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(("features", "seconds"), [(1024, 0.3), pytest.param(32_768, 3.0, marks=pytest.mark.slow)])
def test_it_is_quick(features: int, seconds: float) -> None:
    whole = graph.__wrapped__(synthetic(features), 50_000)
    seeds = np.zeros(len(whole.net.starts) - 1)
    seeds[:3] = seeds[features + 7] = 1
    times = []
    for _ in range(3):
        start = time.perf_counter()
        spread(whole.net, seeds, 0.2, 2)
        times.append(time.perf_counter() - start)
    print(f"spreading over {features:,} features, {len(whole.net.weights):,} edges: {min(times):.3f} s")
    assert min(times) < 5 * seconds, "five times over, as machines are busy"
