"""Edges between heads, MLPs, the input and the logits, each to first order, with the positions they join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import progress
from interp.hooks import Scoring
from interp.methods.circuits._pairs import Pair, activations, note_of
from interp.model import LanguageModel
from interp.results import Graph, Residual
from interp.sites import Node, Site

BYTES = 64 * 2**20
"""How much memory the edges into the heads of one layer may take at once; it changes no result beyond rounding."""
PORTS = ("q", "k", "v", "")
SAME = 1e-3
"""A slope that is nearer to the one expected than this is the one expected: the rest is rounding."""


@dataclass(frozen=True)
class Reading:
    """One pass through a layer, with the graph: activations [step, position, ...], gradients g_ of the metric there.

    before: what heads read the stream at; between: what the MLP reads it at.
    """

    before: Tensor
    between: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Tensor
    z: Tensor
    attn_out: Tensor
    mlp_out: Tensor
    scoring: Scoring
    g_q: Tensor
    g_pattern: Tensor
    g_z: Tensor
    g_mlp_out: Tensor


@dataclass(frozen=True)
class Run:
    """The run that is patched, at one or several points on the way to the other: what was read, pass by pass."""

    layers: list[list[Reading]]
    g_stream: list[Float[Tensor, "step position d_model"]]
    """in front of each layer, and behind the last"""


class Edges:
    """The strongest edges, and what leaves each node; nodes are numbered from the input to the logits."""

    def __init__(self, count: int, length: int, keep: int, by_position: bool) -> None:
        self.keep, self.span, self.by_position = keep, length if by_position else 1, by_position
        self.leaving = torch.zeros(count, self.span, dtype=torch.float64)
        self.total = 0.0
        self.weights = torch.zeros(0, dtype=torch.float64)
        self.ends = torch.zeros(0, 3, dtype=torch.long)

    def ids(self, nodes: Sequence[int] | range) -> Int[Tensor, "node position"]:
        """The numbers of nodes at each position, or at all."""
        return torch.tensor(list(nodes)).view(-1, 1) * self.span + torch.arange(self.span)

    def add(self, scores: Tensor, places: tuple[int, ...], source: Tensor, target: Tensor, port: str) -> None:
        """Add edges whose sources lie on the first axis; `places` are the axes of positions, which may be summed."""
        scores = scores.double().cpu()
        if not self.by_position:
            scores = scores.sum(places, keepdim=True)
        first = int(source.flatten()[0]) // self.span
        self.leaving[first : first + len(scores)] += scores.flatten(2).sum(-1)
        self.total += float(scores.abs().sum())
        flat = scores.flatten()
        top = flat.abs().topk(min(self.keep, len(flat))).indices
        top = top[flat[top] != 0]
        at = torch.unravel_index(top, scores.shape)
        ends = [
            source.expand(scores.shape)[at],
            target.expand(scores.shape)[at],
            torch.full_like(top, PORTS.index(port)),
        ]
        self.weights = torch.cat([self.weights, flat[top]])
        self.ends = torch.cat([self.ends, torch.stack(ends, 1)])
        if len(self.weights) > self.keep:
            best = self.weights.abs().topk(self.keep).indices
            self.weights, self.ends = self.weights[best], self.ends[best]

    def sorted(self) -> tuple[Tensor, Tensor]:
        """Weights and ends (source, target, port), the strongest first."""
        order = self.weights.abs().argsort(descending=True, stable=True)
        return self.weights[order], self.ends[order]


def edge_graph(model: LanguageModel, pair: Pair, steps: int, keep: int, by_position: bool) -> Graph:
    """The edges at the base run (steps = 0), or their mean over the middles of `steps` equal parts of the way."""
    base, donor, scores = _ends(model, pair)
    run = _run(model, pair, base, donor, steps)
    heads, length, layers = model.parts.heads, pair.length, model.layers
    parallel = model.refuses(Site("resid_mid", 0)) is not None
    width = heads + 1
    edges = Edges(1 + layers * width, length, keep, by_position)
    # what each node so far has changed in the stream
    change = base[Site("resid_pre", 0)][0].new_zeros(1 + layers * width, *run.g_stream[0].shape)
    slope = torch.zeros_like(edges.leaving)

    def told(node: int, product: Float[Tensor, "step position node"]) -> None:
        found = product.detach().double().mean(0).T.cpu()
        slope[node : node + len(found)] += found if by_position else found.sum(-1, keepdim=True)

    difference = donor[Site("resid_pre", 0)][0] - base[Site("resid_pre", 0)][0]
    change[0] = difference
    told(0, (difference * run.g_stream[0]).sum(-1, keepdim=True))
    here, addend = 1, run.g_stream[0]
    for layer, readings in enumerate(progress.track(run.layers, "edges into each layer")):
        first, mlp = 1 + layer * width, layer * width + width
        change, addend = _crossed(change, addend, run.g_stream[layer]), run.g_stream[layer]
        into_heads, into_mlp = [], []
        many = len(readings) > 1
        for turn, reading in enumerate(readings):
            into_heads.append((reading, change[: mlp + 1].clone() if many else change[:here]))
            moved = donor[Site("z", layer)][turn] - base[Site("z", layer)][turn]
            change[first:mlp] += pushed([reading.attn_out], reading.z, _apart(moved.expand_as(reading.z)))[0]
            told(first, (moved * reading.g_z).sum(-1))
            own = into_heads[-1][1] if parallel else change[: mlp + 1].clone() if many else change[:mlp]
            into_mlp.append((reading, own))
            moved = donor[Site("mlp_out", layer)][turn] - base[Site("mlp_out", layer)][turn]
            change[mlp] += moved
            told(mlp, (moved * reading.g_mlp_out).sum(-1, keepdim=True))
            here, addend = mlp + 1, reading.g_mlp_out
        if readings:
            _heads(edges, into_heads, first, heads)
            _stream(
                edges, [(pulled(r.mlp_out, r.between, r.g_mlp_out[None])[0], d) for r, d in into_mlp], edges.ids([mlp])
            )
    change = _crossed(change, addend, run.g_stream[-1])
    _stream(edges, [(run.g_stream[-1], change[:here])], torch.tensor([[edges.leaving.numel()]]), last=True)
    progress.spent(backwards=max(steps, 1) * nearby(model))
    return _graph(model, pair, edges, slope, scores, steps)


def _crossed(change: Tensor, addend: Tensor, stream: Tensor) -> Tensor:
    """What the nodes so far have changed in the stream, behind an intervention in the stream itself.

    addend: the slope at what was added last; stream: the slope at what is read next, the same where nothing intervenes.
    """
    return change if torch.equal(addend, stream) else change * _share(addend, stream)


def nearby(model: LanguageModel) -> float:
    """What the pulls and pushes through single projections cost, in backwards of the whole model.

    A layer has about twelve times the weights of one projection of d_model to d_model.
    """
    heads = model.parts.heads
    sources = [1 + layer * (heads + 1) for layer in range(model.layers)]
    return sum(2 * heads + 2 * count + 8 for count in sources) / (12 * model.layers)


def _ends(
    model: LanguageModel, pair: Pair
) -> tuple[dict[Site, list[Tensor]], dict[Site, list[Tensor]], tuple[float, float]]:
    """The activations of nodes in both runs, and the metric of both."""
    sites = [Site(kind, layer) for layer in range(model.layers) for kind in ("z", "mlp_out")]
    base, base_logits = activations(model, pair.base, [Site("resid_pre", 0), *sites])
    donor, donor_logits = activations(model, pair.donor, [Site("resid_pre", 0), *sites])
    scores = pair.score(torch.stack([base_logits, donor_logits]))
    return base, donor, (float(scores[0]), float(scores[1]))


def _run(
    model: LanguageModel, pair: Pair, base: dict[Site, list[Tensor]], donor: dict[Site, list[Tensor]], steps: int
) -> Run:
    """One run with its graph and one backward: all points on the way side by side in a batch."""
    start = Site("resid_pre", 0)
    low, high = base[start][0], donor[start][0]
    shares = (torch.arange(max(steps, 1)) + 0.5) / max(steps, 1) if steps else torch.zeros(1)
    points = low + shares.to(low).view(-1, 1, 1) * (high - low)
    parallel = model.refuses(Site("resid_mid", 0)) is not None
    kinds = ["resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_out", *([] if parallel else ["resid_mid"])]
    sites = [Site(kind, layer) for layer in range(model.layers) for kind in kinds]
    last = Site("resid_post", model.layers - 1)
    with (
        torch.enable_grad(),
        model.edit({start: lambda _: points}),
        model.record([*sites, last], grad=True, every=True) as found,
        model.scorings() as scorings,
    ):
        logits = model(pair.base.expand(len(points), -1), keep=1)[:, -1]
        score = pair.score(logits).sum()
    wanted = ("q", "pattern", "z", "mlp_out")
    inner = [value for layer in range(model.layers) for kind in wanted for value in found[Site(kind, layer)]]
    stream = [*(found[Site("resid_pre", layer)][0] for layer in range(model.layers)), found[last][-1]]
    slopes = _slopes(score, [*inner, *stream])
    progress.spent(backwards=len(points))
    by_tensor = {id(value): slope for value, slope in zip(inner, slopes, strict=False)}
    layers = []
    for layer in range(model.layers):
        get = lambda kind, layer=layer: found[Site(kind, layer)]  # noqa: E731
        readings = []
        for turn, z in enumerate(get("z")):
            # a repeated layer reads what it added last; an addend of the stream has the stream's Jacobian
            before = get("mlp_out")[turn - 1] if turn else get("resid_pre")[0]
            values = {kind: get(kind)[turn] for kind in ("q", "k", "v", "pattern", "attn_out", "mlp_out")}
            between = before if parallel else get("resid_mid")[turn]
            g = {f"g_{kind}": by_tensor[id(get(kind)[turn])] for kind in wanted}
            readings.append(
                Reading(before, between, z=z, scoring=scorings[Site("pattern", layer)][turn], **values, **g)
            )
        layers.append(readings)
    return Run(layers, list(slopes[len(inner) :]))


def _heads(edges: Edges, readings: list[tuple[Reading, Tensor]], first: int, heads: int) -> None:
    """Edges into the heads of a layer, through queries, keys and values; several passes are summed."""
    count = len(readings[0][1])
    targets = edges.ids(range(first, first + heads))
    steps, length = readings[0][0].z.shape[:2]
    queries = [pulled(r.q, r.before, _apart(r.g_q)) for r, _ in readings]
    rows = max(1, BYTES // (4 * 4 * heads * length * length))
    for start in range(0, count, rows):
        score: dict[str, Any] = dict.fromkeys("qkv", 0)
        for (reading, change), query in zip(readings, queries, strict=True):
            part = change[start : start + rows]
            score["q"] = score["q"] + torch.einsum("nbsd,hbsd->nsh", part, query)
            keys, values = pushed([reading.k, reading.v], reading.before, part)
            by_key, by_value = _slopes_between(reading)
            shared = heads // reading.k.shape[2]
            for step in range(steps):
                for port, moved, other, weight in (
                    ("k", keys, reading.q, by_key),
                    ("v", values, reading.g_z, by_value),
                ):
                    own = moved[:, step].repeat_interleave(shared, 2)
                    product = torch.einsum("nshd,thd->nsht", own, other[step].detach())
                    score[port] = score[port] + product * weight[step].permute(2, 0, 1)
        source = edges.ids(range(start, start + len(score["q"])))
        edges.add(score["q"] / steps, (1,), source[:, :, None], targets.T[None], "q")
        for port in "kv":
            edges.add(score[port] / steps, (1, 3), source[:, :, None, None], targets[None, None], port)


def _slopes_between(
    reading: Reading,
) -> tuple[Float[Tensor, "step head query key"], Float[Tensor, "step head query key"]]:
    """What a dot product with the query, and a value, weigh at each query and key.

        dm/d(q k')_ts = scale cap'_ts p_ts (g_ts - sum_j p_tj g_tj),    g = dm/dp;    dm/dv_s|t = p_ts dm/dz_t

    The slope behind an edit of the pattern or of z is not seen from there: its share is read off the slopes in front of
    the edit, of q and of the pattern.
    """
    q, k, v, pattern = (each.detach() for each in (reading.q, reading.k, reading.v, reading.pattern))
    raw = replace(reading.scoring, mask=None)(q, k)
    made = raw if reading.scoring.mask is None else raw + reading.scoring.mask
    chances = made.float().softmax(-1).to(raw)
    slope = chances * (reading.g_pattern - (chances * reading.g_pattern).sum(-1, keepdim=True)) * reading.scoring.scale
    if reading.scoring.cap is not None:
        slope = slope * (1 - (raw / reading.scoring.cap).square())
    shared = q.shape[2] // k.shape[2]
    keys, values = (each.repeat_interleave(shared, 2).transpose(1, 2) for each in (k, v))
    by_key = slope * _share(reading.g_q.transpose(1, 2), slope @ keys)
    g_z = reading.g_z.transpose(1, 2)
    return by_key, pattern * _share(reading.g_pattern, g_z @ values.transpose(2, 3))


def _share(found: Tensor, expected: Tensor) -> Tensor:
    """What the slope found is of the one expected, along the last axis: 1 where they agree, 0 where it is cut off."""
    square = expected.double().square().sum(-1, keepdim=True)
    factor = (found.double() * expected.double()).sum(-1, keepdim=True) / square.clamp(
        min=torch.finfo(torch.float64).tiny
    )
    agree = (found - expected).double().square().sum(-1, keepdim=True) <= SAME**2 * square
    return torch.where(agree, 1.0, factor).to(found)


def _stream(edges: Edges, readings: list[tuple[Tensor, Tensor]], target: Tensor, last: bool = False) -> None:
    """Edges that end where the stream is read at the position itself. `last`: at the last position only."""
    score = sum(torch.einsum("nbsd,bsd->ns", change, slope) / len(slope) for slope, change in readings)
    assert isinstance(score, Tensor)
    edges.add(score[:, :, None], (1,), edges.ids(range(len(score)))[:, :, None], target if last else target.T[None], "")


def _apart(values: Float[Tensor, "step position head d_head"]) -> Float[Tensor, "head step position head d_head"]:
    """Each head by itself, zeros in the others."""
    return torch.stack(
        [values * (torch.arange(values.shape[2]) == head).to(values).view(-1, 1) for head in range(values.shape[2])]
    )


def _slopes(
    output: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None, batched: bool = False, again: bool = False
) -> tuple[Tensor, ...]:
    """Gradients, zero where an intervention has cut the path. `batched`: for each row of weights; `again`: to be
    differentiated once more.
    """
    progress.check()
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if output.requires_grad:
        found = torch.autograd.grad(
            output,
            tuple(inputs),
            weights,
            retain_graph=True,
            create_graph=again,
            allow_unused=True,
            is_grads_batched=batched,
        )
    rows = weights.shape[:1] if batched and weights is not None else ()
    return tuple(
        each.new_zeros(*rows, *each.shape) if slope is None else slope
        for slope, each in zip(found, inputs, strict=True)
    )


def pulled(output: Tensor, source: Tensor, weights: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
    """J' w for each row w of weights, J = d output / d source along the graph between them."""
    return _slopes(output, [source], weights, batched=True)[0]


def pushed(outputs: Sequence[Tensor], source: Tensor, rows: Float[Tensor, "row ..."]) -> list[Float[Tensor, "row ..."]]:
    """J r for each row r, J = d output / d source: J' w is linear in w, and its slope along r is J r."""
    found = []
    for output in outputs:
        probe = torch.zeros_like(output, requires_grad=True)
        with torch.enable_grad():
            back = _slopes(output, [source], probe, again=True)[0]
        found.append(_slopes(back, [probe], rows, batched=True)[0].detach())
    return found


def _graph(
    model: LanguageModel, pair: Pair, edges: Edges, slope: Tensor, scores: tuple[float, float], steps: int
) -> Graph:
    heads = model.parts.heads
    sites = [Site("resid_pre", 0)]
    for layer in range(model.layers):
        sites += [*(Site("z", layer, head) for head in range(heads)), Site("mlp_out", layer)]
    places = range(pair.length) if edges.by_position else (None,)
    nodes = [*(Node(site, place) for site in sites for place in places)]
    nodes.append(Node(None, pair.length - 1 if edges.by_position else None))
    weights, ends = edges.sorted()
    base, donor = scores
    if steps:
        way = donor - base
        gap = abs(float(edges.leaving[0].sum()) - way) / max(abs(way), 1e-6)
        residual = Residual(
            gap, "gap between the edges of the input and the difference of the two prompts, as a share of it"
        )
    else:
        gap = float((edges.leaving - slope).abs().max()) / max(float(slope.abs().max()), 1e-12)
        residual = Residual(
            gap, "largest gap between what leaves a part and its attribution patching, as a share of the largest"
        )
    return Graph(
        tuple(map(str, nodes)), torch.cat([edges.leaving.flatten(), torch.zeros(1)]).numpy(),
        edges=ends[:, :2].numpy(), weights=weights.numpy(), ports=tuple(PORTS[each] for each in ends[:, 2].tolist()),
        tokens=pair.tokens, others=pair.others, target=pair.target, units=pair.units, direction=pair.direction,
        base=base, donor=donor, total=edges.total, residual=residual, note=note_of(pair, base, donor),
    )  # fmt: skip
