"""The feature index: one pass over texts or images, one file, and from it the page of any feature in milliseconds."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from torch import Tensor

from interp import Unsuitable, hooks, progress, store
from interp import sae as saes
from interp._index_close import closed
from interp._index_pass import Chunk, Pass
from interp.batch import Origin, elsewhere, run
from interp.model import LanguageModel, Model, VisionModel
from interp.sae import SAE, SHELF
from interp.samples import ImageSet, TextSet
from interp.texts import CHARACTERS, Texts, Windows

VERSION = 1
GRID = 16
"""Contexts of images are kept on at most so many cells a side: the largest activation in each."""
THUMBNAIL = 64
SHARD, SHARDS = 2**17, 32
"""An index that is built in shards has at most so many, of at least so many tokens (images: cells) each."""
SAVE_SECONDS = 20.0
"""How often the state of a running pass is written."""

Data = TextSet | ImageSet | str | Path | Iterable[tuple[PIL.Image.Image, str]]
Array = np.ndarray
Firings = tuple[Array, Array, Array]
"""Row, feature and value of activations above zero."""
Thumbnails = dict[int, tuple[bytes, bytes]]
"""By document: a small JPEG, and the label."""


@dataclass(frozen=True)
class Context:
    """Where a feature fired: the tokens around (or the cells of an image), and how much it fired on each.

    at: which of them it is about. document: its number in the data, from 0. image: a thumbnail, as JPEG.
    grid: rows and columns of the cells that `values` lie on, for images.
    """

    tokens: tuple[str, ...]
    ids: Int[Array, token]
    values: Float[Array, token]
    at: int
    value: float
    document: int
    image: bytes | None = None
    grid: tuple[int, int] | None = None
    label: str = ""


@dataclass(frozen=True)
class Page:
    """All that the index says of a feature.

    density = count / tokens, the share on which it fires. mean: over those on which it fires. histogram: edges and
    counts of its activations above zero (the outermost bins hold what lies beyond). quantiles: low < f <= high and
    contexts drawn from there, the highest quarter first. promoted, suppressed: what its decoder row adds to a logit,
    over the mean of the vocabulary, per unit of activation where the last residual stream has an RMS of 1.
    together: the Jaccard similarity of the tokens on which both fire.
    """

    feature: int
    tokens: int
    density: float
    count: int
    maximum: float
    mean: float
    histogram: tuple[Float[Array, edge], Int[Array, bin]]
    top: tuple[Context, ...]
    quantiles: tuple[tuple[float, float, tuple[Context, ...]], ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    neighbours: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, float], ...]

    @property
    def dead(self) -> str:
        """What to say of a feature that never fired, or nothing."""
        return "" if self.count else f"never fired on {self.tokens:,} tokens"


class Index:
    """An index on disk, of which only what is asked for is read.

    Arrays, F features: count, total [F]; maximum, density [F]; histogram [F, bin] with `edges`; map [F, 2];
    promoted_ids, promoted_values, suppressed_ids, suppressed_values [F, 12]; neighbour_ids, neighbour_values [F, 20];
    together_ids, together_values [F, 10] (ids are -1 where there are fewer).
    """

    def __init__(self, path: Path) -> None:
        """Raises Unsuitable where the file is damaged or none of ours."""
        try:
            self._file = safe_open(path, framework="numpy")
            about: dict[str, Any] = json.loads(self._file.metadata()["index"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            raise Unsuitable(f"{path.name} is no feature index, or damaged; delete it and build it again.") from None
        self.path, self.about = path, about
        self.key = str(about["key"])
        self.name = str(about["name"])
        self.model_name, self.model_digest = str(about["model"]), str(about["model_digest"])
        self.sae_name, self.sae_digest, self.site = str(about["sae"]), str(about["sae_digest"]), str(about["site"])
        self.n_tokens, self.n_features = int(about["tokens"]), int(about["features"])
        self.grid: tuple[int, int] | None = tuple(about["grid"]) if about["grid"] else None

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_") or name not in self._file.keys():  # noqa: SIM118
            raise AttributeError(name)
        value = self._file.get_tensor(name)
        self.__dict__[name] = value
        return value

    # what is read by name, for type checkers and people
    count: Int[Array, feature]
    total: Float[Array, feature]
    maximum: Float[Array, feature]
    histogram: Int[Array, "feature bin"]
    edges: Float[Array, edge]
    map: Float[Array, "feature 2"]
    promoted_ids: Int[Array, "feature 12"]
    promoted_values: Float[Array, "feature 12"]
    suppressed_ids: Int[Array, "feature 12"]
    suppressed_values: Float[Array, "feature 12"]
    neighbour_ids: Int[Array, "feature 20"]
    neighbour_values: Float[Array, "feature 20"]
    together_ids: Int[Array, "feature 10"]
    together_values: Float[Array, "feature 10"]

    @cached_property
    def density(self) -> Float[Array, feature]:
        """The share of tokens on which each feature fires."""
        return self.count / max(self.n_tokens, 1)

    @property
    def context_ids(self) -> Int[Array, "feature k width"]:
        """The tokens of the top contexts, the one that fired at `context_at`; -1: none. For images [F, K, 0]."""
        return self._contexts["ids"]

    @property
    def context_values(self) -> Float[Array, "feature k width"]:
        """The activations on each token (or cell) of the top contexts."""
        return self._contexts["values"]

    @property
    def context_at(self) -> Int[Array, "feature k"]:
        """Which token (or cell) of each top context is the one it was kept for; -1: no such context."""
        return self._contexts["at"]

    @property
    def context_documents(self) -> Int[Array, "feature k"]:
        """The documents of the top contexts; -1: no such context."""
        return self._contexts["document"]

    @cached_property
    def _contexts(self) -> dict[str, Array]:
        starts = self._file.get_tensor("top_start")
        owner = np.repeat(np.arange(self.n_features), np.diff(starts))
        place = np.arange(starts[-1]) - starts[owner]
        found = self._read(0, int(starts[-1]), self.maximum[owner])
        k, width = int(self.about["k"]), found["values"].shape[1]
        out = {}
        for name, empty in (("ids", -1), ("values", 0), ("at", -1), ("document", -1)):
            filled = np.full((self.n_features, k, *found[name].shape[1:]), empty, found[name].dtype)
            filled[owner, place] = found[name]
            out[name] = filled
        assert width == out["values"].shape[2]
        return out

    def _read(self, start: int, stop: int, scale: Array) -> dict[str, Array]:
        """Contexts number start to stop, aligned at the token that fired (or as whole grids)."""

        def get(name: str, a: int = start, b: int = stop) -> Array:
            some = self._file.get_slice(name)
            return some[a:b] if a < b else np.zeros(0, np.uint8)  # safetensors refuses an empty slice at the end

        width, before = int(self.about["width"]), int(self.about["before"])
        n = stop - start
        values = np.zeros((n, width), np.float32)
        bounds = get("active_start", start, stop + 1).astype(np.int64)
        owner = np.repeat(np.arange(n), np.diff(bounds))
        low, high = (int(bounds[0]), int(bounds[-1])) if n else (0, 0)
        values[owner, get("active_column", low, high)] = get("active_value", low, high) * scale[owner]
        at = get("at").astype(np.int32)
        value = get("value")
        values[np.arange(n), at] = value
        ids = np.full((n, 0 if self.grid else width), -1, np.int32)
        if not self.grid:
            size, left, first = (get(name).astype(np.int64) for name in ("size", "left", "pool_start"))
            owner = np.repeat(np.arange(n), size)
            inside = np.arange(len(owner)) - np.repeat(np.cumsum(size) - size, size)
            low = int(first.min()) if n else 0
            pool = get("pool", low, int((first + size).max()) if n else 0)
            ids[owner, before - left[owner] + inside] = pool[first[owner] - low + inside]
        return {"values": values, "at": at, "value": value, "ids": ids, "document": get("document")}

    def page(self, feature: int, model: Model) -> Page:
        """All about one feature, in words of that model.

        Raises:
            Unsuitable: there is no such feature.
        """
        if not 0 <= feature < self.n_features:
            raise Unsuitable(f"{self.sae_name} has features 0 to {self.n_features - 1}, not {feature}.")
        row = lambda name: self._file.get_slice(name)[feature : feature + 1][0]  # noqa: E731
        words: Callable[[int], str] = (
            model.token_text
            if isinstance(model, LanguageModel)
            else lambda index: cast(VisionModel, model).labels[index]
        )
        known: dict[int, str] = {-1: ""}

        def text(index: int) -> str:
            if index not in known:
                known[index] = words(index)
            return known[index]

        count, maximum = int(row("count")), float(row("maximum"))
        start, stop = self._file.get_slice("top_start")[feature : feature + 2].tolist()
        quarters = self._file.get_slice("quarter_start")[4 * feature : 4 * feature + 5].tolist()
        edges = row("quarter_edges").tolist()
        pairs = lambda ids, values: tuple(  # noqa: E731
            (int(i), float(v)) for i, v in zip(row(ids), row(values), strict=True) if i >= 0
        )
        logits = "promoted_ids" in self._file.keys()  # noqa: SIM118
        named = lambda what: tuple((text(i), v) for i, v in pairs(f"{what}_ids", f"{what}_values")) if logits else ()  # noqa: E731
        return Page(
            feature, self.n_tokens, count / max(self.n_tokens, 1), count, maximum,
            float(row("total")) / max(count, 1), (self.edges, row("histogram")),
            self._shown(start, stop, maximum, text),
            tuple(
                (edges[each], edges[each + 1], self._shown(quarters[each], quarters[each + 1], maximum, text))
                for each in (3, 2, 1, 0)
            ) if count else (),
            named("promoted"), named("suppressed"), pairs("neighbour_ids", "neighbour_values"),
            pairs("together_ids", "together_values"),
        )  # fmt: skip

    def _shown(self, start: int, stop: int, maximum: float, text: Callable[[int], str]) -> tuple[Context, ...]:
        if start == stop:
            return ()
        found = self._read(start, stop, np.full(stop - start, maximum))
        shown = []
        for each in range(stop - start):
            at, value, document = int(found["at"][each]), float(found["value"][each]), int(found["document"][each])
            if self.grid:
                image, label = self._image(document)
                none = np.zeros(0, np.int32)
                shown.append(Context((), none, found["values"][each], at, value, document, image, self.grid, label))
                continue
            there = np.flatnonzero(found["ids"][each] >= 0)
            ids = found["ids"][each][there]
            shown.append(
                Context(
                    tuple(map(text, ids.tolist())), ids, found["values"][each][there], at - int(there[0]), value,
                    document,
                )
            )  # fmt: skip
        return tuple(shown)

    def _image(self, document: int) -> tuple[bytes | None, str]:
        place = int(np.searchsorted(self.image_document, document))
        if place == len(self.image_document) or self.image_document[place] != document:
            return None, ""
        parts = []
        for kind in ("jpeg", "label"):
            start, stop = getattr(self, f"image_{kind}_start")[place : place + 2].tolist()
            parts.append(self._file.get_slice(f"image_{kind}")[start:stop].tobytes() if start < stop else b"")
        return parts[0], parts[1].decode()


# ------------------------------------------------------------------------------------------------------------- finding


def folder() -> Path:
    """Where built indexes lie."""
    return store.folder() / "indexes"


def find(model: Model, sae: SAE, key: str = "") -> Index | None:
    """The index of that key, or else the one that came with the SAE, or else the newest for this model and SAE."""
    if key:
        found = [each for each in _indexes(model, sae) if each.key == key]
    else:
        found = _indexes(model, sae)
    if not found:
        return None
    store.mark(found[0].path)
    return found[0]


def listed(model: Model, sae: SAE) -> list[tuple[str, str, int]]:
    """Key, name of the data and number of tokens of each index there is, the one that came with the SAE first."""
    return [(each.key, each.name, each.n_tokens) for each in _indexes(model, sae)]


def _indexes(model: Model, sae: SAE) -> list[Index]:
    own = SHELF / sae.name / "index.safetensors"
    kept = [path for path in folder().glob("*.safetensors") if re.fullmatch(r"[0-9a-f]{64}\.safetensors", path.name)]
    found = []
    for path in (own, *sorted(kept, key=lambda each: (-each.stat().st_mtime_ns, each.name))):
        try:
            index = Index(path)
        except Unsuitable:
            continue
        if (index.model_digest, index.sae_digest) == (model.digest, sae.digest):
            found.append(index)
    return found


# ------------------------------------------------------------------------------------------------------------ the data


class _Images:
    """Pictures with captions, in groups of so many."""

    def __init__(self, data: ImageSet | Iterable[tuple[PIL.Image.Image, str]], name: str, size: int) -> None:
        self.data, self.size = data, size
        if isinstance(data, ImageSet):
            self.digest = store.key_of("images", [(each.sha256, each.name) for each in data.images])
        else:  # it can be gone through only once, so it is known by its name
            if not name:
                raise Unsuitable("Give the images a name, by which their index is found again.")
            self.digest = store.key_of("images by name", name)
        self.name = name or "images"

    def groups(self) -> Iterator[list[tuple[int, tuple[PIL.Image.Image, str]]]]:
        if isinstance(self.data, ImageSet):
            pictures: Iterator[Any] = ((each.picture, each.name) for each in self.data.images)
        else:
            pictures = iter(self.data)
        while group := list(itertools.islice(pictures, self.size)):
            yield list(enumerate(group))

    def __len__(self) -> int:
        data: Any = self.data.images if isinstance(self.data, ImageSet) else self.data
        return -(-len(data) // self.size) if hasattr(data, "__len__") else 0


# ------------------------------------------------------------------------------------------------------------ building


def build(
    model: Model,
    sae: SAE,
    data: Data,
    *,
    context: int = 128,
    batch: int = 32,
    seed: int = 0,
    name: str = "",
) -> Index:
    """Make the index of an SAE over texts or images, in one pass and bounded memory, or find it where it was made.

    Of each feature, over all tokens but special ones (cells, for images): on how many f > 0, the sum, a histogram; the
    20 windows with the largest activations, of those with equal tokens from 12 before to 4 after the largest one the
    first; up to 5 contexts from each quarter of its activations, by the smallest hashes of (seed, feature, token);
    from the decoder: logits, nearest features, a map; from the smallest 128 hashes of the tokens where each fires, the
    features that fire together (exact below 128 tokens, else with a standard error of at most .05).

    What was cut off goes on where it was last written, and ends in the same file, byte for byte. In a block of
    `interp.batch.executor` ("pool" or "ray") it is read in shards, to the same file too.

    Args:
        data: a TextSet, an ImageSet, a path of a .txt or .jsonl file with a document in each line, or an iterable of
            (Pillow picture, caption).
        context: the tokens of a window, into which documents are cut. batch: how many run together.

    Raises:
        Unsuitable: the SAE is not for this model, or there is nothing to read.
    """
    with hooks.alone():  # whether it fits depends on no intervention
        sae.check(model)
    reader = _Reader(model, sae, context, batch)
    source = _source(model, sae, data, name, reader)
    key = store.key_of("feature index", VERSION, model.digest, sae.digest, source.digest, reader.context, seed)
    path = folder() / f"{key}.safetensors"
    with progress.alone(key):
        if path.exists():
            return Index(path)
        part = path.with_suffix(".part.safetensors")
        if elsewhere() and not part.exists() and isinstance(source.data, TextSet | ImageSet | Path):
            arrays, about = run(_Building.of(model, sae, source, reader, seed))
        else:
            arrays, about = _passed(model, sae, reader, source, seed, part)
        about |= {
            "key": key, "version": VERSION, "name": source.name, "data_digest": source.digest, "seed": seed,
            "context": reader.context, "model": model.name, "model_digest": model.digest, "sae": sae.name,
            "sae_digest": sae.digest, "site": str(sae.site), "target": str(sae.target), "features": sae.d_sae,
        }  # fmt: skip
        store.write_arrays(path, arrays, {"index": json.dumps(about, sort_keys=True)})
        part.unlink(missing_ok=True)
    return Index(path)


def _source(model: Model, sae: SAE, data: Data, name: str, reader: _Reader) -> Texts | _Images:
    if isinstance(model, VisionModel):
        if isinstance(data, TextSet | str | Path):
            raise Unsuitable(f"{model.name} looks at images; give images.")
        return _Images(data, name, reader.images())
    if isinstance(data, str | Path):
        data = Path(data).expanduser()
    elif not isinstance(data, TextSet):
        raise Unsuitable(f"{model.name} reads texts; give texts.")
    return Texts(data, name, min(CHARACTERS, max(2**10, 2**29 // sae.d_sae)))


def _passed(
    model: Model, sae: SAE, reader: _Reader, source: Texts | _Images, seed: int, part: Path
) -> tuple[dict[str, Array], dict[str, Any]]:
    seen = reader.blank(seed)
    images: Thumbnails = {}
    done = documents = 0
    if part.exists():
        try:
            state = load_file(part)
            done, documents = (int(each) for each in state.pop("done"))
            images = _unpacked(state)
            seen.load(state)
        except (SafetensorError, KeyError, OSError):  # half of it, by another program's hand: begin anew
            seen, images, done, documents = reader.blank(seed), {}, 0, 0

    def save() -> None:
        store.write_arrays(part, seen.state() | _packed(images) | {"done": np.array([done, documents])}, {})

    saved = time.monotonic()
    try:
        for number, group in enumerate(progress.track(source.groups(), f"reading {source.name}", len(source))):
            if number < done:
                continue
            documents = _take_in(seen, images, reader, group, documents)
            done = number + 1
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    except progress.Cancelled:
        if done:
            save()
        raise
    if not seen.tokens:
        raise Unsuitable(f"There is nothing to read in {source.name}.")
    arrays, about = closed(model, sae, seen, reader.grid)
    return arrays | _packed(images), about | {"documents": documents, "tokens": seen.tokens}


def _take_in(seen: Pass, images: Thumbnails, reader: _Reader, group: Any, documents: int, first: int = 0) -> int:
    """Let a pass read a group behind the `first` tokens of others; the number of documents up to there."""
    if isinstance(reader.model, LanguageModel):
        chunk, found = reader.read_texts(first + seen.tokens, group)
        seen.add(chunk, *found)
        return int(group[-1][0]) + 1
    pictures = [(documents + place, each) for place, each in group]
    chunk, found = reader.read_images(first + seen.tokens, pictures)
    seen.add(chunk, *found)
    wanted = set(seen.documents().tolist())
    images |= {each: _thumbnail(*both) for each, both in pictures if each in wanted}
    _drop(images, wanted)
    return documents + len(group)


def _drop(images: Thumbnails, wanted: set[int]) -> None:
    for each in images.keys() - wanted:
        del images[each]


# ------------------------------------------------------------------------------------------------- building in shards


@dataclass(frozen=True)
class _Building:
    """The same pass in shards of whole groups, as `interp.batch` runs them, to the same bits.

    Every token counts by its number among all, so the tokens are counted first; and the sums of each group are kept
    apart, because sums of sums would be rounded otherwise.
    """

    origin: Origin
    sae: SAE | str
    data: TextSet | ImageSet | Path
    source: str
    title: str
    context: int
    batch: int
    seed: int
    size: int
    key: str

    @staticmethod
    def of(model: Model, sae: SAE, source: Texts | _Images, reader: _Reader, seed: int) -> _Building:
        data = source.data.resolve() if isinstance(source.data, Path) else source.data
        size = source.characters if isinstance(source, Texts) else source.size
        key = store.key_of(
            "index in shards", VERSION, SHARD, SHARDS, model.digest, sae.digest, source.digest, reader.context,
            reader.batch, seed, size,
        )  # fmt: skip
        return _Building(
            Origin.of(model), _named(sae), cast(Any, data), source.digest, source.name, reader.context, reader.batch,
            seed, size, key,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"reading {self.title}"

    def _opened(self) -> tuple[Model, SAE, _Reader, Texts | _Images]:
        model = self.origin.load()
        sae = saes.load(self.sae) if isinstance(self.sae, str) else self.sae
        source: Texts | _Images
        if isinstance(self.data, ImageSet):
            source = _Images(self.data, self.title, self.size)
        else:
            source = Texts(self.data, self.title, self.size)
        if source.digest != self.source:
            raise Unsuitable(f"{self.title} has changed since this work was begun; begin it anew.")
        return model, sae, _Reader(model, sae, self.context, self.batch), source

    @cached_property
    def _plan(self) -> list[tuple[int, int, int]]:
        """Where each shard begins, and the end: how many groups, tokens and documents come before."""
        model, sae, reader, source = self._opened()
        at = [(0, 0, 0)]
        group: Any
        for number, group in enumerate(progress.track(source.groups(), f"counting {self.title}", len(source))):
            _, tokens, documents = at[-1]
            if isinstance(model, LanguageModel):
                tokens += len(Windows.of(model, group, self.context, bool(sae.metadata.get("prepend_bos"))).ids)
                at.append((number + 1, tokens, group[-1][0] + 1))
            else:
                at.append((number + 1, tokens + len(group) * reader.positions, documents + len(group)))
        least = max(SHARD, -(-at[-1][1] // SHARDS))
        plan = [at[0]]
        for each in at[1:]:
            if each[1] - plan[-1][1] >= least or each is at[-1]:
                plan.append(each)
        return plan

    def shards(self) -> int:
        return len(self._plan) - 1

    def shard(self, number: int) -> dict[str, Array]:
        _, _, reader, source = self._opened()
        (begin, first, documents), (end, *_) = self._plan[number : number + 2]
        seen, images, totals = reader.blank(self.seed), Thumbnails(), []
        for group in itertools.islice(source.groups(), begin, end):
            seen.total = np.zeros_like(seen.total)
            documents = _take_in(seen, images, reader, group, documents, first)
            totals.append(seen.total)
        return seen.state() | {"total": np.array(totals)} | _packed(images)

    def joined(self, parts: Iterable[dict[str, Array]]) -> tuple[dict[str, Array], dict[str, Any]]:
        model, sae, reader, _ = self._opened()
        seen, images = reader.blank(self.seed), Thumbnails()
        for part in parts:
            images |= _unpacked(part)
            other, totals = reader.blank(self.seed), part["total"]
            other.load(part | {"total": np.zeros(sae.d_sae)})
            seen.merge(other)
            for total in totals:
                seen.total += total
            if images:
                _drop(images, set(seen.documents().tolist()))
        if not seen.tokens:
            raise Unsuitable(f"There is nothing to read in {self.title}.")
        arrays, about = closed(model, sae, seen, reader.grid)
        return arrays | _packed(images), about | {"documents": self._plan[-1][2], "tokens": seen.tokens}


def _named(sae: SAE) -> SAE | str:
    """Its name, where another process finds the same by it."""
    try:
        return sae.name if saes.load(sae.name).digest == sae.digest else sae
    except Unsuitable:
        return sae


def _thumbnail(picture: PIL.Image.Image, label: str) -> tuple[bytes, bytes]:
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.info.clear()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue(), label.encode()


def _packed(images: Thumbnails) -> dict[str, Array]:
    """Thumbnails and labels side by side, in the order of their documents."""
    order = sorted(images)
    if not order:
        return {}
    out = {"image_document": np.array(order, np.int32)}
    for place, kind in enumerate(("jpeg", "label")):
        parts = [images[each][place] for each in order]
        out[f"image_{kind}"] = np.frombuffer(b"".join(parts), np.uint8)
        out[f"image_{kind}_start"] = np.cumsum([0, *map(len, parts)])
    return out


def _unpacked(state: dict[str, Array]) -> Thumbnails:
    documents = state.pop("image_document", np.zeros(0, np.int32)).tolist()
    parts = []
    for kind in ("jpeg", "label"):
        data, start = (state.pop(f"image_{kind}{end}", np.zeros(0, np.int64)) for end in ("", "_start"))
        parts.append([data[a:b].tobytes() for a, b in itertools.pairwise(start)])
    return dict(zip(documents, zip(*parts, strict=True), strict=True))


class _Reader:
    """Runs a model up to an SAE's site and encodes what it finds there."""

    def __init__(self, model: Model, sae: SAE, context: int, batch: int) -> None:
        self.model, self.sae, self.batch = model, sae, batch
        self.rows = max(256, 2**24 // sae.d_sae)
        """how many rows are encoded together: dense activations of these fit"""
        self.grid: tuple[int, int] | None = None
        self.width = Chunk.of_text(0, *[np.zeros(0, np.int32)] * 3).width
        self.context = context
        if isinstance(model, LanguageModel):
            self.context = min(context, model.limit)
            if self.context < 2:
                raise Unsuitable("A window needs at least two tokens; choose a longer context.")
        else:
            with torch.no_grad(), self._around(), model.record([sae.site]) as found:
                model(model._random_input())
            activation = found[sae.site]
            self.positions = self._spatial(activation)[0].shape[1]
            height, width = self._spatial(activation)[1]
            by = max(1, -(-max(height, width) // GRID))
            self.grid = -(-height // by), -(-width // by)
            self.cells = (np.arange(height)[:, None] // by * self.grid[1] + np.arange(width) // by).ravel()
            self.width = self.grid[0] * self.grid[1]

    def blank(self, seed: int) -> Pass:
        """A pass that has seen nothing yet."""
        return Pass(self.sae.d_sae, self.width, isinstance(self.model, LanguageModel), seed)

    def images(self) -> int:
        """How many images are looked at together."""
        return int(np.clip(2**29 // (self.positions * self.sae.d_sae), 1, 128))

    def _spatial(self, activation: Tensor) -> tuple[Float[Tensor, "batch cell d"], tuple[int, int]]:
        """The rows of an image's cells, without class and register tokens, and their grid."""
        model = cast(VisionModel, self.model)
        rows = self.sae.rows(activation, model)
        if rows.shape[1] == 1:
            return rows, (1, 1)
        grid = model.grid(self.sae.site)(activation).shape[-2:]
        return rows[:, rows.shape[1] - grid[0] * grid[1] :], (int(grid[0]), int(grid[1]))

    def _around(self) -> ExitStack:
        """The unchanged model, whose blocks behind the site are not run."""
        site, parts = self.model.resolve(self.sae.site), self.model.parts
        address = self.model.address(site)
        layer = next(
            (
                number
                for number, path in enumerate(parts.block_paths)
                if site.kind != "resid_pre" and (address == path or address.startswith(path + "."))
            ),
            None if site.kind == "module" else (site.layer or 0) - 1,
        )
        stack = ExitStack()
        stack.enter_context(hooks.alone())
        if parts.blocks and layer is not None:
            later = {each: lambda run, hidden: hidden for each in range(layer + 1, self.model.layers)}
            stack.enter_context(self.model.around(later))
        return stack

    def _encoded(self, x: Float[Tensor, "row d"], row: Array) -> Iterator[Firings]:
        """(row, feature, value) of activations above zero; `row`: what to call each row of x."""
        for start in range(0, len(x), self.rows):
            rows, features, values = (each.cpu().numpy() for each in self.sae.sparse(x[start : start + self.rows]))
            above = values > 0  # abstopk has others
            rows, features, values = (each if above.all() else each[above] for each in (rows, features, values))
            yield row[start : start + self.rows][rows], features, values.astype(np.float32)

    def read_texts(self, first: int, group: Sequence[tuple[int, str]]) -> tuple[Chunk, Firings]:
        """The tokens of these documents, special ones left out, and what fires on them."""
        model = cast(LanguageModel, self.model)
        begin = bool(self.sae.metadata.get("prepend_bos"))
        windows = Windows.of(model, group, self.context, begin)
        chunk = Chunk.of_text(first, windows.window, windows.document, windows.ids.astype(np.int32))
        found: list[Firings] = []
        for ids, row in windows.batches(self.batch):
            with torch.no_grad(), self._around(), model.record([self.sae.site]) as seen:
                model(ids.to(model.device), keep=1)
            rows = self.sae.rows(seen[self.sae.site], model)
            good = row >= 0
            with torch.no_grad():
                found += self._encoded(rows[torch.from_numpy(good).to(rows.device)], row[good])
        return chunk, _joined(found)

    def read_images(
        self, first: int, group: Sequence[tuple[int, tuple[PIL.Image.Image, str]]]
    ) -> tuple[Chunk, Firings]:
        """The cells of these images, and what fires on them."""
        model = cast(VisionModel, self.model)
        found: list[Firings] = []
        digests: list[bytes] = []
        for start in range(0, len(group), self.batch):
            some = [picture.convert("RGB") for _, (picture, _) in group[start : start + self.batch]]
            digests += [hashlib.sha256(repr(each.size).encode() + each.tobytes()).digest()[:8] for each in some]
            pixels = torch.cat([model._process(each) for each in some]).to(model.device, model.dtype)
            with torch.no_grad(), self._around(), model.record([self.sae.site]) as seen:
                model(pixels)
            rows, _ = self._spatial(seen[self.sae.site])
            number = np.arange(start * self.positions, (start + len(some)) * self.positions)
            with torch.no_grad():
                found += self._encoded(rows.reshape(-1, rows.shape[-1]), number)
        documents = np.array([document for document, _ in group], np.int32)
        digest = np.frombuffer(b"".join(digests), np.uint64)
        return Chunk.of_images(first, documents, digest, self.cells, self.width), _joined(found)


def _joined(found: Sequence[Firings]) -> Firings:
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    rows, features, values = (np.concatenate(each) for each in zip(*found, strict=True))
    return rows, features, values
