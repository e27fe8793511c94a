"""First-order patching: activations of both runs, and the gradients of the metric on the base run, whole or dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Scoring
from interp.methods.circuits._pairs import Pair, activations, nodes_at, note_of, spread
from interp.model import LanguageModel, gradient
from interp.results import Graph, Residual
from interp.sites import Node, Site
from kernels.softmax_patch import key_change, query_change

Scores = dict[Site, Tensor]
"""By site, first-order effects: [node], in the order of `nodes_at`, or [position, neuron] (or [neuron]) of neurons."""


class _Gate(torch.autograd.Function):
    """The identity, through which no gradient comes back while its layer is the dropped one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: list[int], layer: int) -> Tensor:
        ctx.dropped, ctx.layer = dropped, layer
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return None if ctx.dropped[0] == ctx.layer else slopes[0], None, None


@dataclass(frozen=True)
class Slopes:
    """The base run with its graph, the donor's activations beside it, and the plain gradient at every site."""

    model: LanguageModel
    pair: Pair
    sites: tuple[Site, ...]
    donor: Mapping[Site, list[Tensor]]
    found: Mapping[Site, list[Tensor]]
    slopes: Mapping[Site, list[Tensor]]
    streams: tuple[tuple[Tensor, Tensor], ...]
    scorings: Mapping[Site, list[Scoring]]
    dropped: list[int]
    base: float
    other: float

    def scores(self, slopes: Mapping[Site, list[Tensor]], by_position: bool, fix: bool = False) -> Scores:
        """(n(donor) - n(base)) . dm/dn at every site; of queries and keys through the softmax where `fix` is set."""
        found = {}
        for site in self.sites:
            found[site] = sum(
                (self._score(site, index, slope, by_position, fix, slopes) for index, slope in enumerate(slopes[site])),
                torch.zeros(()),
            )
        return found

    def _score(
        self, site: Site, index: int, slope: Tensor, by_position: bool, fix: bool, slopes: Mapping[Site, list[Tensor]]
    ) -> Tensor:
        new, old = self.donor[site][index], self.found[site][index].detach()
        if fix and site.kind in ("q", "k"):
            return spread(self.model, site, self._through_softmax(site, index, slopes), by_position)
        product = (new.double() - old.double())[0] * slope[0].double()
        if site.kind == "mlp_post":
            return product if by_position else product.sum(0)
        return spread(self.model, site, product.sum(-1), by_position)

    def _through_softmax(self, site: Site, index: int, slopes: Mapping[Site, list[Tensor]]) -> Tensor:
        """[position, head]: sum_i (p'_ti - p_ti) dm/dp_ti, with p' taken again from the donor's query, or one key."""
        query, key = (self.found[Site(kind, site.layer)][index].detach() for kind in ("q", "k"))
        weights = slopes[Site("pattern", site.layer)][index][0].double()
        scoring = self.scorings[Site("pattern", site.layer)][index]
        scores = scoring(query, key)[0]
        if site.kind == "q":
            new = scoring(self.donor[site][index].to(query), key)[0]
            return (query_change(scores, new) * weights).sum(-1).T
        new = scoring(query, self.donor[site][index].to(key))[0]
        change = key_change(scores, new, weights).sum(1)
        return change.unflatten(0, (key.shape[2], -1)).sum(1).T

    def without(self, layer: int) -> dict[Site, list[Tensor]]:
        """Gradients with none coming back through what this layer's attention and MLP add; zero in the layer itself.

        Above the layer nothing differs from the plain gradient, so the backward begins at what leaves it.
        """
        below = [site for site in self.found if _order(site) < 2 * layer or _between(site, layer)]
        tensors = [each for site in below for each in self.found[site]]
        self.dropped[0] = layer
        try:
            leaving, slope = self.streams[layer]
            taken = gradient(leaving, tensors, slope, keep=True, loose=True) if tensors else ()
        finally:
            self.dropped[0] = -1
        return _zeros_inside(self.slopes, layer) | _by_site(below, self.found, taken)

    def linear(self) -> Residual | None:
        """How far the first-order effect of swapping the whole prompt is from what swapping it does."""
        site = Site("resid_pre", 0)
        way = self.other - self.base
        if abs(way) < 1e-6:
            return None
        total = float(
            ((self.donor[site][0] - self.found[site][0].detach()).double() * self.slopes[site][0].double()).sum()
        )
        return Residual(
            abs(total - way) / abs(way),
            "how far the first-order effect of swapping the whole prompt is from its true effect",
        )


def _order(site: Site) -> int:
    """Twice the layer; one more for what leaves it."""
    return 2 * (site.layer or 0) + (site.kind == "resid_post")


def _between(site: Site, layer: int) -> bool:
    """What the residual stream is on its way into and through the layer, which the layer reads."""
    return site.layer == layer and site.kind in ("resid_pre", "resid_mid")


def _zeros_inside(slopes: Mapping[Site, list[Tensor]], layer: int) -> dict[Site, list[Tensor]]:
    inside = lambda site: site.layer == layer and not site.kind.startswith("resid")  # noqa: E731
    return {
        site: [torch.zeros_like(each) for each in own] if inside(site) else list(own) for site, own in slopes.items()
    }


def _by_site(
    sites: Sequence[Site], found: Mapping[Site, list[Tensor]], taken: Sequence[Tensor]
) -> dict[Site, list[Tensor]]:
    left = iter(taken)
    return {site: [next(left) for _ in found[site]] for site in sites}


def slopes(model: LanguageModel, pair: Pair, sites: Sequence[Site], drop: bool = False, fix: bool = False) -> Slopes:
    """Run both prompts, and go back once from the metric of the base run.

    Args:
        drop: keep the graph, so that `without` can go back again with a layer's gradients dropped.
        fix: keep what queries and keys need to be taken through the softmax.

    Raises:
        Unsuitable: the gradient is zero by the metric's own nature.
    """
    if pair.metric == "KL divergence" and pair.direction == "noising":
        raise Unsuitable(
            "The KL divergence is at its minimum on the clean prompt, so its gradient there is zero and estimates "
            "nothing; choose denoising, another metric, or exact patching."
        )
    first, layers = Site("resid_pre", 0), range(model.layers)
    patterns = [Site("pattern", site.layer) for site in sites if fix and site.kind == "q"]
    wanted = list(dict.fromkeys([first, *sites, *patterns]))
    leaving = [Site("resid_post", layer) for layer in layers] if drop else []
    donor, donor_logits = activations(model, pair.donor, wanted)
    dropped = [-1]

    def gate(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: _Gate.apply(x, dropped, layer)

    gates = {Site(kind, layer): gate(layer) for layer in layers for kind in ("attn_out", "mlp_out")} if drop else {}
    scored: Any = model.scorings() if patterns else None
    with torch.enable_grad(), model.edit(gates):  # type: ignore[arg-type]
        with model.record([*wanted, *leaving], grad=True, every=True) as record:
            if scored is None:
                logits = model(pair.base, keep=1)[:, -1]
            else:
                with scored as kept:
                    logits = model(pair.base, keep=1)[:, -1]
        score = pair.score(logits)[0]
        found = {site: list(record[site]) for site in wanted}
        streams = [record[site][-1] for site in leaving]
        tensors = [each for site in wanted for each in found[site]]
        if score.requires_grad:
            taken = gradient(score, [*tensors, *streams], keep=drop, loose=True)
        else:  # an intervention has cut the metric off from everything
            taken = tuple(torch.zeros_like(each) for each in [*tensors, *streams])
    scores = pair.score(torch.stack([logits[0].detach(), donor_logits]))
    scorings = {site: list(kept[site]) for site in patterns} if scored is not None else {}
    return Slopes(
        model, pair, tuple(sites), donor, found, _by_site(wanted, found, taken),
        tuple(zip(streams, taken[len(tensors) :], strict=True)), scorings, dropped, float(scores[0]), float(scores[1]),
    )  # fmt: skip


def graph(
    ran: Slopes, values: Scores, by_position: bool, top: int, beside: Scores | None = None, name: str = "", **more: Any
) -> Graph:
    """A graph of nodes alone; of neurons only the `top` strongest, `total` being of all."""
    nodes: list[Node] = []
    numbers: list[Tensor] = []
    others: list[Tensor] = []
    total = sum(float(each.abs().sum()) for each in values.values())
    values = {site: each if each.dim() else _absent(ran, site, by_position) for site, each in values.items()}
    neurons = {site: each for site, each in values.items() if site.kind == "mlp_post" and each.dim()}
    for site in ran.sites:
        if not values[site].dim():
            continue
        if site not in neurons:
            nodes += nodes_at(ran.model, [site], ran.pair.length, by_position)
            numbers.append(values[site])
            if beside is not None:
                others.append(beside[site] if beside[site].dim() else torch.zeros_like(values[site]))
    if neurons:
        flat = torch.cat([each.reshape(-1) for each in neurons.values()])
        second = torch.cat([beside[site].reshape(-1) for site in neurons]) if beside is not None else flat
        strongest = flat.abs().topk(min(top, len(flat))).indices
        sizes = [each.numel() for each in neurons.values()]
        starts = dict(zip(neurons, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        for index in strongest.tolist():
            site = next(each for each in reversed(starts) if starts[each] <= index)
            at, neuron = divmod(index - starts[site], neurons[site].shape[-1])
            nodes.append(Node(site, at if by_position else None, neuron))
        numbers.append(flat[strongest])
        others.append(second[strongest])
    return Graph(
        tuple(map(str, nodes)), _numpy(numbers), tokens=ran.pair.tokens, others=ran.pair.others,
        target=ran.pair.target, units=ran.pair.units, direction=ran.pair.direction, base=ran.base, donor=ran.other,
        total=total, beside=_numpy(others) if beside is not None else np.zeros(0), beside_name=name,
        note=more.pop("note", note_of(ran.pair, ran.base, ran.other)), **more,
    )  # fmt: skip


def _absent(ran: Slopes, site: Site, by_position: bool) -> Tensor:
    """Zeros for the nodes of a site that was never reached, its layer being skipped; none for neurons."""
    if site.kind == "mlp_post":
        return torch.zeros(())
    return torch.zeros(len(nodes_at(ran.model, [site], ran.pair.length, by_position)), dtype=torch.float64)


def _numpy(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([each.double().cpu() for each in parts]).numpy() if parts else np.zeros(0)
