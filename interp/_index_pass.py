"""What one pass over the data keeps of each feature: sums, and a bounded number of contexts and of hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TOP, SAMPLED, SKETCH = 20, 40, 128
"""How many contexts of the largest and of any activations are kept of a feature, and how many hashes of its tokens."""
BEFORE, AFTER = 24, 8
"""How many tokens of a context lie before and after the one that fired."""
ALIKE_BEFORE, ALIKE_AFTER = 12, 4
"""Contexts with the same tokens so far around the firing one count as equal."""
BINS = 128
EDGES = np.ldexp(1 + np.arange(BINS + 1) % 4 / 4, np.arange(BINS + 1) // 4 - 16)
"""Of the histogram: 2^-16, 1.25 2^-16, 1.5 2^-16, 1.75 2^-16, 2^-15 ... 2^16; the outer bins hold what lies beyond."""
HASH_BITS = 40
Array = np.ndarray


def mix(x: Array) -> Array:
    """A 64-bit hash of 64-bit numbers (the finaliser of splitmix64), one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def rank(group: Array) -> Array:
    """0, 1, 2 ... within each run of equal numbers."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.r_[starts, len(group)]))


def best(code: Array, place: Array, key: Array, shift: int, limit: int) -> tuple[Array, Array]:
    """Of each group (code >> shift) the `limit` smallest codes, of equal keys the first, ties by place.

    Returns:
        Where they are, in order of code, and the rank of each in its group.
    """
    order = np.lexsort((place, code))
    group = code[order] >> np.uint64(shift)
    once = np.sort(np.unique(mix(key[order] ^ mix(group)), return_index=True)[1])
    order, place_in_group = order[once], rank(group[once])
    within = place_in_group < limit
    return order[within], place_in_group[within]


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens (or cells of images) of whole windows, in the order of the data; n of them.

    first: how many came before. window: the number of each one's window, rising. document: of the data.
    key: equal where contexts count as equal. ids: the tokens, or none for images. cell: where it lies in a context.
    """

    first: int
    window: Array
    document: Array
    key: Array
    cell: Array
    ids: Array | None
    width: int

    @staticmethod
    def of_text(first: int, window: Array, document: Array, ids: Array) -> Chunk:
        """A chunk of tokens, whose contexts are those around each within its window."""
        mixed = mix(ids.astype(np.uint64) + np.uint64(1))
        key = np.zeros(len(ids), np.uint64)
        for offset in range(-ALIKE_BEFORE, ALIKE_AFTER + 1):
            at = np.clip(np.arange(len(ids)) + offset, 0, max(len(ids) - 1, 0))
            inside = (window[at] == window) & (at == np.arange(len(ids)) + offset)
            # a sum with odd factors, so that the same token elsewhere counts otherwise
            factor = mix(np.array([offset + 1000], np.uint64)) | np.uint64(1)
            key += np.where(inside, mixed[at], np.uint64(0)) * factor
        return Chunk(first, window, document, mix(key), np.arange(len(ids)), ids, BEFORE + 1 + AFTER)

    @staticmethod
    def of_images(first: int, document: Array, digest: Array, cells: Array, width: int) -> Chunk:
        """A chunk of whole images, each a window and a context of its own; `digest` and `document` are by image."""
        each = len(cells)
        return Chunk(
            first, np.repeat(np.arange(len(document)), each), np.repeat(document, each), np.repeat(digest, each),
            np.tile(cells, len(document)), None, width,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.window)


class Kept:
    """Of each group the entries with the smallest codes, no two of equal contexts, each with its context."""

    def __init__(self, groups: int, limit: int, shift: int, width: int, text: bool) -> None:
        self.limit, self.shift = limit, shift
        self.columns: dict[str, Array] = {
            "code": np.zeros(0, np.uint64), "place": np.zeros(0, np.int64), "key": np.zeros(0, np.uint64),
            "value": np.zeros(0, np.float32), "at": np.zeros(0, np.int32), "document": np.zeros(0, np.int32),
            "ids": np.zeros((0, width if text else 0), np.int32), "values": np.zeros((0, width), np.float32),
        }  # fmt: skip
        self.groups = groups
        self._set_floor()

    def _set_floor(self) -> None:
        """The code that a new entry of each group must not exceed."""
        code = self.columns["code"]
        group = code >> np.uint64(self.shift)
        self.floor = np.full(self.groups, np.iinfo(np.uint64).max, np.uint64)
        last = rank(group) == self.limit - 1
        self.floor[group[last]] = code[last]

    def load(self, columns: Mapping[str, Array]) -> None:
        self.columns = dict(columns)
        self._set_floor()

    def unite(self, other: Kept) -> None:
        """Let in what another kept."""
        both = {name: np.concatenate([each, other.columns[name]]) for name, each in self.columns.items()}
        order, _ = best(both["code"], both["place"], both["key"], self.shift, self.limit)
        self.load({name: each[order] for name, each in both.items()})

    def merge(self, code: Array, entry: Array, firing: Firing) -> None:
        """Let entries in that are among the best; the order in which they come does not matter."""
        floor, mine = self.floor, self.columns
        if len(code) > 2**16:  # a part of them tells which of the others need not be sorted
            part = slice(None, None, 8)
            order, ranks = best(code[part], firing.place(entry[part]), firing.key(entry[part]), self.shift, self.limit)
            last = code[part][order[ranks == self.limit - 1]]
            floor = floor.copy()
            group = last >> np.uint64(self.shift)
            floor[group] = np.minimum(floor[group], last)
        good = code <= floor[code >> np.uint64(self.shift)]
        code, entry = code[good], entry[good]
        if not len(code):
            return
        count = len(mine["code"])
        order, ranks = best(
            np.r_[mine["code"], code], np.r_[mine["place"], firing.place(entry)], np.r_[mine["key"], firing.key(entry)],
            self.shift, self.limit,
        )  # fmt: skip
        old = order < count
        if old.all() and len(order) == count:
            return
        chosen = order[~old] - count
        fresh = {"code": code[chosen], **firing.contexts(entry[chosen])}
        for name, values in fresh.items():
            new = np.empty((len(order), *values.shape[1:]), mine[name].dtype)
            new[old], new[~old] = mine[name][order[old]], values
            mine[name] = new
        self._set_floor()


class Firing:
    """The activations of a chunk that are above zero, by feature and then by token."""

    def __init__(self, chunk: Chunk, rows: Array, features: Array, values: Array) -> None:
        n = len(chunk)
        self.chunk = chunk
        # sorting packed numbers takes half as long as sorting indices
        packed = (features.astype(np.uint64) * np.uint64(n) + rows.astype(np.uint64)) << np.uint64(32)
        packed = np.sort(packed | values.view(np.uint32))
        self.where = (packed >> np.uint64(32)).astype(np.uint32)
        self.bits = packed.astype(np.uint32)
        self.value = self.bits.view(np.float32)
        feature, row = np.divmod(self.where, np.uint32(n))
        self.feature, self.row = feature.astype(np.int64), row.astype(np.int64)

    def place(self, entry: Array) -> Array:
        return self.chunk.first + self.row[entry]

    def key(self, entry: Array) -> Array:
        return self.chunk.key[self.row[entry]]

    def peaks(self, entry: Array) -> Array:
        """Of the entries, the first of the largest of each feature in each window."""
        if not len(entry):
            return entry
        value = self.value[entry]
        group = self.feature[entry] * len(self.chunk) + self.chunk.window[self.row[entry]]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        most = np.repeat(np.maximum.reduceat(value, starts), np.diff(np.r_[starts, len(value)]))
        hits = np.flatnonzero(value == most)
        return entry[hits[np.r_[True, group[hits][1:] != group[hits][:-1]]]]

    def contexts(self, entry: Array) -> dict[str, Array]:
        """What is kept of the entries: place, key, value, document, and tokens and activations around each."""
        chunk, n = self.chunk, len(self.chunk)
        row, feature = self.row[entry], self.feature[entry]
        first = np.searchsorted(chunk.window, chunk.window[row])
        after = np.searchsorted(chunk.window, chunk.window[row], "right")
        if chunk.ids is None:
            ids, at, origin = np.zeros((len(entry), 0), np.int32), chunk.cell[row], np.zeros_like(row)
        else:
            columns = row[:, None] + np.arange(-BEFORE, AFTER + 1)
            inside = (columns >= first[:, None]) & (columns < after[:, None])
            ids = np.where(inside, chunk.ids[np.clip(columns, 0, n - 1)], -1).astype(np.int32)
            at, origin = np.full(len(row), BEFORE), row - BEFORE
            first, after = np.maximum(first, row - BEFORE), np.minimum(after, row + AFTER + 1)
        low, high = (np.searchsorted(self.where, (feature * n + each).astype(np.uint32)) for each in (first, after))
        # all (entry, activation) pairs, from the runs low:high
        owner = np.repeat(np.arange(len(entry)), high - low)
        index = np.arange(len(owner)) + np.repeat(low - np.r_[0, np.cumsum(high - low)[:-1]], high - low)
        values = np.zeros((len(entry), chunk.width), np.float32)
        np.maximum.at(values, (owner, chunk.cell[self.row[index]] - origin[owner]), self.value[index])
        return {
            "place": chunk.first + row, "key": chunk.key[row], "value": self.value[entry], "at": at,
            "document": chunk.document[row], "ids": ids, "values": values,
        }  # fmt: skip


class Pass:
    """All that is known of the features after some chunks; what it takes does not grow with their number."""

    def __init__(self, features: int, width: int, text: bool, seed: int) -> None:
        self.features, self.seed = features, seed
        self.tokens = 0
        self.total = np.zeros(features)
        self.histogram = np.zeros((features, BINS), np.int64)
        self.top = Kept(features, TOP, 32, width, text)
        self.sample = Kept(features, SAMPLED, HASH_BITS, width, text)
        self.sketch = np.zeros(0, np.uint64)
        """feature << 40 | hash of a token where it fires: the SKETCH smallest of each feature, rising"""

    @property
    def count(self) -> Array:
        return self.histogram.sum(1)

    def add(self, chunk: Chunk, rows: Array, features: Array, values: Array) -> None:
        """Take in a chunk's activations above zero, as (row in the chunk, feature, value)."""
        self.tokens += len(chunk)
        if not len(rows):
            return
        firing = Firing(chunk, rows, features, values)
        feature, row = firing.feature, firing.row
        self.total += np.bincount(feature, firing.value, self.features)
        bins = np.clip((firing.bits >> np.uint32(21)).astype(np.int64) - 4 * (127 - 16), 0, BINS - 1)
        counted = np.bincount(feature * BINS + bins, minlength=self.histogram.size)
        self.histogram += counted.reshape(self.histogram.shape)

        code = feature.astype(np.uint64) << np.uint64(32) | (np.uint32(0xFFFFFFFF) - firing.bits)
        peaks = firing.peaks(np.flatnonzero(code <= self.top.floor[feature]))
        self.top.merge(code[peaks], peaks, firing)

        token = mix(
            np.arange(chunk.first, chunk.first + len(chunk), dtype=np.uint64) + mix(np.array([self.seed], np.uint64))
        )
        own = mix(token[row] + feature.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - HASH_BITS)
        code = feature.astype(np.uint64) << np.uint64(HASH_BITS) | own
        good = np.flatnonzero(code <= self.sample.floor[feature])
        self.sample.merge(code[good], good, firing)

        code = feature.astype(np.uint64) << np.uint64(HASH_BITS) | token[row] >> np.uint64(64 - HASH_BITS)
        self._add_to_sketch(code[code <= self._last_of_sketch()[feature]])

    def merge(self, other: Pass) -> None:
        """Take in what a pass over other tokens knows: all but the rounding of `total` is as if this had read them."""
        self.tokens += other.tokens
        self.total += other.total
        self.histogram += other.histogram
        self.top.unite(other.top)
        self.sample.unite(other.sample)
        self._add_to_sketch(other.sketch)

    def _add_to_sketch(self, code: Array) -> None:
        sketch = np.sort(np.r_[self.sketch, code])
        self.sketch = sketch[rank(sketch >> np.uint64(HASH_BITS)) < SKETCH]

    def _last_of_sketch(self) -> Array:
        last = np.full(self.features, np.iinfo(np.uint64).max, np.uint64)
        group = self.sketch >> np.uint64(HASH_BITS)
        full = rank(group) == SKETCH - 1
        last[group[full]] = self.sketch[full]
        return last

    def documents(self) -> Array:
        """The documents of which contexts are kept."""
        return np.unique(np.r_[self.top.columns["document"], self.sample.columns["document"]])

    def state(self) -> dict[str, Array]:
        """All of it as arrays."""
        return {
            "tokens": np.array([self.tokens]), "total": self.total, "histogram": self.histogram, "sketch": self.sketch,
            **{f"top.{name}": each for name, each in self.top.columns.items()},
            **{f"sample.{name}": each for name, each in self.sample.columns.items()},
        }  # fmt: skip

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""
        self.tokens = int(state["tokens"][0])
        self.total, self.histogram, self.sketch = state["total"], state["histogram"], state["sketch"]
        for name, kept in (("top", self.top), ("sample", self.sample)):
            kept.load({key.removeprefix(f"{name}."): each for key, each in state.items() if key.startswith(f"{name}.")})
