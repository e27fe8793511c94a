"""Spreading activation over the graph of features, tokens and contexts that an index makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from interp import progress
from interp.feature_index import Index

SHARE, PROMOTED, CONTEXT, ALIKE, TOGETHER, WORD = range(6)
"""Why two nodes are joined: a feature fires on a token, promotes it, fires in a context, writes as another does, fires
with it; a token stands in a context."""
REACH = 4
"""A context's tokens are those so near before the one that fired, and the next."""
SELDOM = 20
"""Firing together counts half where the rarer of two features fired on so many tokens."""
COMMON = 0.05
"""Tokens in more than this share of the contexts join nothing."""


@dataclass(frozen=True, eq=False)
class Net:
    """Directed edges, those of a source in a row: of node i numbers starts[i] to starts[i + 1].

    weights: from 0 to 1. shares: what an edge's weight is divided by once it is rescaled, for nodes that take the mean
    of what reaches them rather than the sum. kinds: why the two are joined.
    """

    starts: Int[np.ndarray, node + 1]
    targets: Int[np.ndarray, edge]
    weights: Float[np.ndarray, edge]
    shares: Float[np.ndarray, edge]
    kinds: Int[np.ndarray, edge]

    @staticmethod
    def of(
        nodes: int,
        sources: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        shares: np.ndarray | None = None,
        kinds: np.ndarray | None = None,
    ) -> Net:
        """The net of these edges, in whatever order."""
        # sorted by source in linear time: edge number n is column n
        rows = scipy.sparse.csr_matrix(
            (np.ones(len(sources), np.int8), (sources, np.arange(len(sources)))), (nodes, len(sources))
        )
        order, starts = rows.indices, rows.indptr.astype(np.int64)
        shares = np.ones(len(weights), np.float32) if shares is None else shares
        kinds = np.zeros(len(weights), np.int8) if kinds is None else kinds
        return Net(starts, targets[order], weights[order], shares[order], kinds[order])


@dataclass(frozen=True, eq=False)
class Spread:
    """activation: [node]. source, kind: [node], of the edge that brought each most; -1 for seeds and the unreached."""

    activation: Float[np.ndarray, node]
    source: Int[np.ndarray, node]
    kind: Int[np.ndarray, node]
    rounds: int


def spread(net: Net, seeds: Float[np.ndarray, node], cutoff: float, hops: int | None = None) -> Spread:
    """Breadth-first from the seeds, until nothing new is reached; every node fires once, in the round after the first
    in which something reached it.

        a_j <- min(1, a_j + sum_i a_i w'_ij),     w' = (w - c) / (1 - c) for w > c,  else no edge

    The sum runs over all i that fire in this round; what reaches a node after it has fired raises it, but goes no
    further. Each c gives a subset of what a lower one reaches. hops: nodes further from the seeds take no part.
    """
    a = seeds.astype(np.float64)
    source, kind = np.full(len(a), -1), np.full(len(a), -1)
    most = np.where(a > 0, np.inf, 0.0)
    fired = np.zeros(len(a), bool)
    front, rounds = np.flatnonzero(a > 0), 0
    while len(front) and rounds != hops:
        progress.check()
        fired[front] = True
        counts = net.starts[front + 1] - net.starts[front]
        edges = np.repeat(net.starts[front] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        origin = np.repeat(front, counts)
        open_ = net.weights[edges] > cutoff
        edges, origin = edges[open_], origin[open_]
        if not len(edges):
            break
        brought = a[origin] * (net.weights[edges] - cutoff) / (1 - cutoff) / net.shares[edges]
        target = net.targets[edges]
        a = np.minimum(1, a + np.bincount(target, brought, len(a)))
        # the last of equals in this order is the one that brought most
        order = np.lexsort((-origin, brought, target))
        last = order[np.r_[target[order][1:] != target[order][:-1], True]]
        better = last[brought[last] > most[target[last]]]
        most[target[better]], source[target[better]], kind[target[better]] = (
            brought[better], origin[better], net.kinds[edges[better]],
        )  # fmt: skip
        front = np.unique(target)
        front = front[~fired[front] & (a[front] > 0)]
        rounds += 1
    return Spread(a, source, kind, rounds)


@dataclass(frozen=True, eq=False)
class Graph:
    """The net of an index: nodes are its features, then the vocabulary, then the documents of its contexts."""

    net: Net
    features: int
    vocabulary: int
    documents: Int[np.ndarray, document]

    def token(self, ids: np.ndarray) -> np.ndarray:
        """The nodes of tokens."""
        return self.features + ids


@lru_cache(2)
def graph(index: Index, vocabulary: int) -> Graph:
    """The graph of an index.

    feature - token:    the share of its contexts' activation that lies on the token;
                        the part that the token has of its 12 largest logit gains, above the least of these
    feature - context:  its activation there over its maximum
    feature - feature:  the cosine of the decoder rows; the Jaccard similarity of the tokens on which both fire
    token - context:    how rare the token is among contexts, ln(1/share) / ln(number of contexts)

    What comes from contexts is divided by how many there are at that node, so that it gets their mean; what a token
    gives to features by the root of the sum of its edges to them, so that a token of many says less of each.
    """
    features = index.n_features
    sources: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    kinds: list[np.ndarray] = []

    def join(a: np.ndarray, b: np.ndarray, w: np.ndarray, kind: int, back: np.ndarray | float = 1.0) -> None:
        """Edges a -> b and b -> a; back: what the latter are divided by."""
        for one, other, divisor in ((a, b, 1.0), (b, a, back)):
            sources.append(one.astype(np.int64))
            targets.append(other.astype(np.int64))
            weights.append(w.astype(np.float32))
            shares.append(np.broadcast_to(np.float32(divisor), w.shape).astype(np.float32))
            kinds.append(np.full(len(w), kind, np.int8))

    ids, values, documents = index.context_ids, index.context_values, index.context_documents
    names = np.unique(documents[documents >= 0])
    if ids.shape[-1]:
        feature, context, column = ((values > 0) & (ids >= 0)).nonzero()
        code, on = _summed(
            feature, ids[feature, context, column], values[feature, context, column], (features, vocabulary)
        )
        total = np.bincount(code // vocabulary, on, features)
        share = on / total[code // vocabulary]
        fan = np.bincount(code % vocabulary, share, vocabulary).clip(min=1) ** 0.5
        join(code // vocabulary, features + code % vocabulary, share, SHARE, back=fan[code % vocabulary])
    feature, context = (documents >= 0).nonzero()
    node = np.searchsorted(names, documents[feature, context])
    highest = np.take_along_axis(values, np.maximum(index.context_at, 0)[..., None].astype(np.int64), 2)[..., 0]
    # of a document in which it has several contexts, the best; they come best first
    code, place = np.unique(feature * max(len(names), 1) + node, return_index=True)
    strength = highest[feature, context][place] / np.maximum(index.maximum[feature[place]], 1e-12)
    feature, node = code // max(len(names), 1), code % max(len(names), 1)
    each = np.bincount(feature, minlength=features)
    join(feature, features + vocabulary + node, strength.clip(0, 1), CONTEXT, back=np.maximum(each, 1)[feature])
    if ids.shape[-1]:
        near = ids[..., max(0, int(index.context_at.max()) - REACH) : int(index.context_at.max()) + 2]
        feature, context, column = ((near >= 0) & (documents >= 0)[..., None]).nonzero()
        node = np.searchsorted(names, documents[feature, context])
        code, _ = _summed(near[feature, context, column], node, np.ones(len(node)), (vocabulary, len(names)))
        token, node = code // len(names), code % len(names)
        times = np.bincount(token, minlength=vocabulary)
        kept = times[token] <= max(COMMON * len(names), 1)
        token, node = token[kept], node[kept]
        rarity = np.log(len(names) / times[token]) / np.log(max(len(names), 2))
        join(features + token, features + vocabulary + node, rarity, WORD, back=np.maximum(times, 1)[token])
    for what, kind in (("neighbour", ALIKE), ("together", TOGETHER)):
        other, value = getattr(index, f"{what}_ids"), getattr(index, f"{what}_values").astype(np.float64)
        if kind == TOGETHER:  # of two that hardly ever fire it says little that they did so together
            fewer = np.minimum(index.count[:, None], index.count[other])
            value = value * fewer / (fewer + SELDOM)
        feature, column = ((other >= 0) & (value > 0)).nonzero()
        partner = other[feature, column].astype(np.int64)
        # a pair that both list is one edge
        code, first = np.unique(np.minimum(feature, partner) * features + np.maximum(feature, partner), True)
        join(code // features, code % features, value[feature, column][first].clip(0, 1), kind)
    if hasattr(index, "promoted_ids"):
        gains = index.promoted_values.astype(np.float64)
        gains = gains - gains[:, -1:]
        part = gains / np.maximum(gains.sum(1, keepdims=True), 1e-12)
        feature = np.repeat(np.arange(features), gains.shape[1])
        join(feature, features + index.promoted_ids.ravel(), part.ravel(), PROMOTED)
    parts = [np.concatenate(each) for each in (sources, targets, weights, shares, kinds)]
    return Graph(Net.of(features + vocabulary + len(names), *parts), features, vocabulary, names)


def _summed(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Each pair once, as row * width + column, rising, with the sum of its values."""
    matrix = scipy.sparse.csr_matrix((values.astype(np.float64), (rows, columns)), shape)
    matrix.sum_duplicates()
    owner = np.repeat(np.arange(shape[0]), np.diff(matrix.indptr))
    return owner * shape[1] + matrix.indices, matrix.data


def path(
    found: Spread, node: int, name: Callable[[int], str], told: Callable[[int, int, int], str], steps: int = 3
) -> str:
    """In words, how activation came to a node, the last step first: `told(source, target, kind)` tells one."""
    words: list[str] = []
    seen = {node}
    while found.source[node] >= 0 and len(words) < steps:
        source = int(found.source[node])
        words.append(told(source, node, int(found.kind[node])))
        if source in seen:
            break
        seen.add(source)
        node = source
    return ", ".join(words) or name(node)
