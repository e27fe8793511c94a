"""Patching, exactly: many patches in one batch, and nothing run again below the layer that is patched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp import progress
from interp.methods.circuits._pairs import Pair, activations
from interp.model import LanguageModel
from interp.sites import Node, Site

BATCH = 64
"""How many patched prompts run together at most; it changes no result beyond rounding."""
TOKENS = 2048
"""How many tokens run together at most, whatever the number of prompts."""

Rows = Sequence[Sequence[Node]]
"""What each row of a batch has patched."""


class Patcher:
    """The runs of a pair, kept for patching: `effects(rows)` is by how much each row's patches move the metric.

    I(n) = m(base | n <- n(donor)) - m(base)
    """

    def __init__(self, model: LanguageModel, pair: Pair, sites: Sequence[Site]) -> None:
        self.model, self.pair = model, pair
        streams = [Site("resid_pre", layer) for layer in range(model.layers)]
        last = Site("resid_post", model.layers - 1)
        self.donor, donor_logits = activations(model, pair.donor, list(dict.fromkeys(map(_whole, sites))))
        base, base_logits = activations(model, pair.base, [*streams, last])
        self.streams = [base[site][-1] for site in (*streams, last)]
        scores = pair.score(torch.stack([base_logits, donor_logits]))
        self.base, self.other = (float(each) for each in scores)

    def effects(self, rows: Rows, label: str = "patching") -> Float[Tensor, row]:
        """The change of the metric by each row's patches, in float64 on the CPU.

        Rows are sorted by the first layer that they touch, and begin there.
        """
        starts = [min((self._start(node) for node in row), default=self.model.layers) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: starts[row])
        size = max(1, min(BATCH, TOKENS // self.pair.length))
        batches: list[tuple[int, list[int]]] = []
        for row in order:
            if batches and batches[-1][0] == starts[row] and len(batches[-1][1]) < size:
                batches[-1][1].append(row)
            else:
                batches.append((starts[row], [row]))
        found = torch.zeros(len(rows), dtype=torch.float64)
        with torch.no_grad():
            for start, chosen in progress.track(batches, label):
                logits = self._run(start, [rows[row] for row in chosen])
                found[chosen] = self.pair.score(logits).cpu() - self.base
        return found

    def _start(self, node: Node) -> int:
        """The layer from which a patched run has to begin."""
        assert node.layer is not None
        return min(node.layer + (node.kind == "resid_post"), self.model.carried_from())

    def _run(self, start: int, rows: Rows) -> Float[Tensor, "row token"]:
        model, count = self.model, len(rows)
        by_site: dict[Site, list[tuple[int, Node]]] = defaultdict(list)
        for row, nodes in enumerate(rows):
            for node in nodes:
                assert node.site is not None
                by_site[_whole(node.site)].append((row, node))
        # what leaves a layer is what enters the next, where a run may begin without running the layer
        stream = self.streams[start].expand(count, -1, -1)
        if start and (own := by_site.pop(Site("resid_post", start - 1), None)):
            stream = put(stream, self.donor[Site("resid_post", start - 1)][-1], own, "resid_post")
        edits = {site: putting(self.donor[site], own, site.kind) for site, own in by_site.items()}
        progress.spent(forwards=-count * start / model.layers)
        with model.resume(start, stream), model.edit(edits):  # type: ignore[arg-type]
            return model(self.pair.base.expand(count, -1), keep=1)[:, -1]


def _whole(site: Site) -> Site:
    return Site(site.kind, site.layer)


def putting(donors: list[Tensor], rows: list[tuple[int, Node]], kind: str) -> Callable[[Tensor], Tensor]:
    """The edit that puts the donor's activations in; in a layer that runs several times, of the same time round."""
    left, now = iter(donors), donors[-1:]

    def edit(value: Tensor) -> Tensor:
        now[:] = [next(left, now[0])]
        return put(value, now[0], rows, kind)

    return edit


def put(value: Tensor, donor: Tensor, rows: Sequence[tuple[int, Node]], kind: str) -> Tensor:
    """`value` [row, ...] with the nodes of each row as in `donor` [1, ...]."""
    length = donor.shape[2 if kind == "pattern" else 1]
    row, place, part = [], [], []
    for index, node in rows:
        for at in range(length) if node.position is None else (node.position,):
            row.append(index)
            place.append(at)
            part.append(node.channel if kind == "mlp_post" else node.head)
    new = value.clone()
    if part[0] is None:
        new[row, place] = donor[0, place].to(value)
    elif kind == "pattern":
        new[row, part, place] = donor[0, part, place].to(value)
    else:
        new[row, place, part] = donor[0, place, part].to(value)
    return new
