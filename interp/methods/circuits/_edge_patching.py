"""Edges cut exactly: each reader is given the stream as it were if some of the parts before it were the donor's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import progress
from interp.methods.circuits._pairs import Pair, activations
from interp.model import LanguageModel
from interp.sites import Node, Site

Edits = dict[Site | str, Callable[[Tensor], Tensor]]
Sources = frozenset[int]
"""Numbers of the parts that a reader has from the donor."""


class Reader(NamedTuple):
    """An input of a part: of a head its query, key or value (`port`), of an MLP and the logits the only one."""

    layer: int
    head: int | None
    port: str


class EdgePatcher:
    """The runs of a pair, kept for cutting edges at all positions: a cut edge carries the donor's activation.

        in_v = stream - sum over cut u of (u - u(donor))

    Parts are numbered: 0 the input, then for each layer its heads and its MLP. Rows of a batch are streams that differ
    in which parts are the donor's; readers of one part may look at different rows, and what the part then says goes
    into all of them. So nothing is assumed of norms, biases or the way in which blocks add up; where a norm follows
    the attention, the cut heads of a layer are replaced in front of it together.
    """

    def __init__(self, model: LanguageModel, pair: Pair) -> None:
        self.model, self.pair = model, pair
        self.heads, self.layers = model.parts.heads, model.layers
        self.group = self.heads // model.parts.kv_heads
        kinds = ("z", "mlp_out")
        self.start = Site("resid_pre", 0)
        sites = [self.start, *(Site(kind, layer) for layer in range(self.layers) for kind in kinds)]
        self.base, self.base_logits = activations(model, pair.base, sites)
        self.donor, self.donor_logits = activations(model, pair.donor, sites)

    def head(self, layer: int, head: int) -> int:
        """The number of a head."""
        return 1 + layer * (self.heads + 1) + head

    def mlp(self, layer: int) -> int:
        """The number of an MLP."""
        return self.head(layer, self.heads)

    @property
    def logits(self) -> int:
        """The number of the logits, which are read and read nothing else."""
        return self.head(self.layers, 0)

    def nodes(self) -> list[Node]:
        """All parts and the logits, by number."""
        found = [Node(self.start)]
        for layer in range(self.layers):
            found += [*(Node(Site("z", layer, head)) for head in range(self.heads)), Node(Site("mlp_out", layer))]
        return [*found, Node(None)]

    def readers(self) -> list[Reader]:
        """All readers, those that nothing later reads first."""
        found = [Reader(self.layers, None, "")]
        for layer in reversed(range(self.layers)):
            found.append(Reader(layer, None, ""))
            found += [Reader(layer, head, port) for head in reversed(range(self.heads)) for port in "vkq"]
        return found

    def number(self, reader: Reader) -> int:
        """The part that a reader belongs to."""
        if reader.layer == self.layers:
            return self.logits
        return self.mlp(reader.layer) if reader.head is None else self.head(reader.layer, reader.head)

    def sources(self, reader: Reader) -> list[int]:
        """The parts that a reader can read, the latest first."""
        last = self.head(reader.layer, 0)
        # blocks with attention and MLP in parallel: the MLP does not see its layer's heads
        if (
            reader.head is None
            and reader.layer < self.layers
            and not self.model.refuses(Site("resid_mid", reader.layer))
        ):
            last = self.mlp(reader.layer)
        return list(reversed(range(last)))

    def run(
        self, cut: dict[Reader, Sources], reader: Reader | None = None, worlds: Sequence[Sources] = ()
    ) -> Float[Tensor, "world token"]:
        """Logits with the edges of `cut` cut, once for each of `worlds`: what `reader` has cut there.

        Without a reader, one world. With one, no reader in a layer before it may have anything cut: the run begins
        at its layer.
        """
        worlds = worlds or (frozenset(),)
        layer = 0 if reader is None else reader.layer
        sets = list(dict.fromkeys([frozenset[int](), *(own for key, own in cut.items() if key != reader)]))
        sets += [frozenset()] * (self.group - len(sets))
        rows = {key: sets.index(own) for key, own in cut.items()} | ({} if reader is None else {reader: len(sets)})
        count = len(sets) + (reader is not None)
        taken = torch.zeros(len(worlds), count, self.logits, dtype=torch.bool, device=self.model.device)
        for world, own in enumerate(worlds):
            for row, these in enumerate([*sets, *([own] if reader is not None else [])]):
                taken[world, row, list(these)] = True
        flat = taken.flatten(0, 1)
        stream = self._enter(layer, flat)
        edits: Edits = {
            Site("resid_pre", layer) if layer < self.layers else Site("resid_post", layer - 1): lambda _: stream
        }
        for each in range(layer, self.layers):
            edits |= self._reading(each, rows, count)
            edits |= self._saying(each, rows, flat, count)
        progress.spent(forwards=-len(flat) * layer / self.layers)
        with (
            torch.no_grad(),
            self.model.around({below: lambda run, hidden: hidden for below in range(layer)}),
            self.model.edit(edits),
        ):
            logits = self.model(self.pair.base.expand(len(flat), -1), keep=1)[:, -1]
        return logits.unflatten(0, (-1, count))[:, rows.get(Reader(self.layers, None, ""), 0)]

    def _enter(self, layer: int, taken: Bool[Tensor, "row part"]) -> Float[Tensor, "row position d_model"]:
        """What enters a layer where all parts are as in the base run, or in the donor's where they are taken."""
        first = torch.where(taken[:, :1, None], self.donor[self.start][0], self.base[self.start][0])
        if layer == 0:
            return first
        distinct, place = taken[:, : self.head(layer, 0)].unique(dim=0, return_inverse=True)
        edits: Edits = {
            self.start: lambda _: torch.where(
                distinct[:, :1, None], self.donor[self.start][0], self.base[self.start][0]
            )
        }
        for each in range(layer):
            for site, mask in self._masks(each, distinct):
                edits[site] = _choosing(mask, self.base[site], self.donor[site])
        left = Site("resid_post", layer - 1)
        progress.spent(forwards=-len(distinct) * (self.layers - layer) / self.layers)
        with (
            torch.no_grad(),
            self.model.around({above: lambda run, hidden: hidden for above in range(layer, self.layers)}),
            self.model.edit(edits),
            self.model.record([Site("resid_pre", layer) if layer < self.layers else left]) as found,
        ):
            self.model(self.pair.base.expand(len(distinct), -1), keep=1)
        return next(iter(found.values()))[place]

    def _masks(self, layer: int, taken: Bool[Tensor, "row part"]) -> list[tuple[Site, Tensor]]:
        """Which heads and which MLP of a layer are the donor's, shaped to broadcast at z and mlp_out."""
        heads = taken[:, self.head(layer, 0) : self.mlp(layer)]
        return [
            (Site("z", layer), heads[:, None, :, None]),
            (Site("mlp_out", layer), taken[:, self.mlp(layer), None, None]),
        ]

    def _reading(self, layer: int, rows: dict[Reader, int], count: int) -> Edits:
        """Edits by which each head's query, key and value come from the row that is its own.

        Heads that share a key and value may read them from different rows: the n-th of each group attends in row n.
        """
        every = torch.arange(self.heads)
        member = torch.arange(count).clamp(max=self.group - 1)
        readers = [[rows.get(Reader(layer, head, port), 0) for head in range(self.heads)] for port in "qkv"]
        queries, keys, values = (torch.tensor(each) for each in readers)
        shared = torch.arange(self.heads // self.group)
        asked = shared * self.group + member[:, None]  # [row, key head] -> the head that attends there

        def take(row: Tensor, part: Tensor) -> Callable[[Tensor], Tensor]:
            def edit(value: Tensor) -> Tensor:
                split = value.unflatten(0, (-1, count))
                new = split.transpose(2, 3)[:, row, part].transpose(2, 3)
                return new.reshape(value.shape)

            return edit

        return {
            Site("q", layer): take(queries.expand(count, -1), every.expand(count, -1)),
            Site("k", layer): take(keys[asked], shared.expand(count, -1)),
            Site("v", layer): take(values[asked], shared.expand(count, -1)),
        }

    def _saying(self, layer: int, rows: dict[Reader, int], taken: Bool[Tensor, "row part"], count: int) -> Edits:
        """Edits that put what heads and MLP say into all rows, the donor's where it is taken."""
        (z, heads), (mlp_out, whole) = self._masks(layer, taken)
        said = torch.arange(self.heads) % self.group
        every = torch.arange(self.heads)
        row = rows.get(Reader(layer, None, ""), 0)
        donors = {site: _turns(self.donor[site]) for site in (z, mlp_out)}

        def by_head(value: Tensor) -> Tensor:
            now = value.unflatten(0, (-1, count)).transpose(2, 3)[:, said, every].transpose(1, 2)
            return torch.where(heads, next(donors[z]), now.repeat_interleave(count, 0))

        def by_mlp(value: Tensor) -> Tensor:
            now = value.unflatten(0, (-1, count))[:, row]
            return torch.where(whole, next(donors[mlp_out]), now.repeat_interleave(count, 0))

        return {z: by_head, mlp_out: by_mlp}


def edge_patched(model: LanguageModel, pair: Pair, cut: dict[Reader, Sources]) -> Float[Tensor, token]:
    """The last logits of the base run with edges cut: for each reader, the parts that it has from the donor."""
    return EdgePatcher(model, pair).run(cut)[0]


def _choosing(taken: Tensor, base: list[Tensor], donor: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The edit that puts either run's activation in, whatever the value; of the same time round in repeated layers."""
    bases, donors = _turns(base), _turns(donor)
    return lambda _: torch.where(taken, next(donors), next(bases))


def _turns(values: list[Tensor]) -> Iterator[Tensor]:
    """One after the other, and then the last for ever: for layers that run several times."""
    yield from values
    while values:
        yield values[-1]
