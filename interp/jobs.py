"""Jobs over data sets, as `interp.batch` runs them: activations harvested, a lens looked through at every sample."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import PIL.Image
import torch

from interp import Unsuitable, progress, store
from interp.batch import Arrays, Origin
from interp.experiment import Call, Sample
from interp.methods import METHODS
from interp.model import LanguageModel, Model, VisionModel
from interp.results import _finite
from interp.samples import FORMATS, Image, ImageSet, Prompt, PromptPair, TextSet
from interp.texts import CHARACTERS, Texts, Windows

Data = TextSet | ImageSet | Path
"""Texts or images; a .txt or .jsonl file with a sample in each line; a folder of images."""
SUFFIXES = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in FORMATS}
SHARD_BYTES = 2**26
"""About how large a shard of activations is."""
PAIR = {"clean", "corrupted", "answer", "foil"}
TOGETHER = 16
"""How many samples one shard of a lens looks at."""


def _digest(data: Data) -> str:
    """Of all there is in it."""
    if isinstance(data, TextSet):
        return store.key_of("texts", data.texts)
    if isinstance(data, ImageSet):
        return store.key_of("images", [(each.sha256, each.name) for each in data.images])
    if data.is_dir():
        return store.digest_of(pictures(data))
    try:
        return store.digest_of([data])
    except OSError as problem:
        raise Unsuitable(f"{data.name} can't be read: {problem.strerror}.") from None


def pictures(folder: Path) -> list[Path]:
    """The image files of a folder and those below, in order of their paths."""
    found = sorted(each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    if not found:
        raise Unsuitable(f"There are no images in {folder.name}.")
    return found


def _unchanged(data: Data, digest: str) -> None:
    if _digest(data) != digest:
        raise Unsuitable(f"{_title(data)} has changed since this work was begun; begin it anew.")


def _title(data: Data) -> str:
    return data.name if isinstance(data, Path) else "images" if isinstance(data, ImageSet) else "texts"


# --------------------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True)
class Harvest:
    """Activations of sites over texts or images, in safetensors files. Run it with `keep=` a folder.

    Of texts, cut into windows of `context` tokens, each shard holds for n tokens in order, special ones left out:
    every site under its name [n, ...], ids [n], document [n] (its number in the data) and window [n] (its number in
    the shard). Of images: every site [image, ...], and document [image].

    Returns, when it has run, the number of shards.
    """

    origin: Origin
    sites: tuple[str, ...]
    data: Data
    digest: str
    context: int
    batch: int
    dtype: Literal["float32", "float16"]
    size: int

    @staticmethod
    def of(
        model: Model,
        sites: Sequence[str],
        data: Data,
        *,
        context: int = 128,
        batch: int = 32,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> Harvest:
        """The job for a model.

        Args:
            sites: as `resid_post.3`. context: tokens that are read together. batch: windows, or images, that are.
            dtype: in which activations are kept.

        Raises:
            Unsuitable: a site that the model has not, or that has no vector at each token; data of the other kind.
        """
        if not sites:
            raise Unsuitable("Name at least one site to harvest, as resid_post.3.")
        if dtype not in ("float32", "float16"):
            raise Unsuitable(f"Activations are kept as float32 or float16, not {str(dtype)[:20]}.")
        data = data.resolve() if isinstance(data, Path) else data
        images = isinstance(data, ImageSet) or (isinstance(data, Path) and data.is_dir())
        if images != isinstance(model, VisionModel):
            raise Unsuitable(
                f"{model.name} reads {'texts' if images else 'images'}; give {'texts' if images else 'images'}."
            )
        names = tuple(dict.fromkeys(str(model.resolve(site)) for site in sites))
        with torch.no_grad(), model.record(names) as seen:
            ids = torch.zeros(1, 2, dtype=torch.long)
            model(ids.to(model.device)) if isinstance(model, LanguageModel) else model(cast(Any, model)._random_input())
        found = {name: seen[name] for name in names}
        for name, each in found.items():
            if not images and each.shape[:2] != ids.shape:
                raise Unsuitable(f"{name} has no vector at each token; choose another site.")
        row = sum(each[0].numel() // (1 if images else 2) for each in found.values()) * np.dtype(dtype).itemsize
        many = max(1, SHARD_BYTES // row)
        if isinstance(model, LanguageModel):
            context, many = min(context, model.limit), min(CHARACTERS, max(2**10, 4 * many))  # an English token is four
            if context < 2:
                raise Unsuitable("A window needs at least two tokens; choose a longer context.")
        return Harvest(Origin.of(model), names, data, _digest(data), context, batch, dtype, many)

    @cached_property
    def key(self) -> str:
        return store.key_of(
            "harvest", 1, self.origin.digest, self.origin.dtype, self.sites, self.digest, self.context, self.batch,
            self.dtype, self.size,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"harvesting {_title(self.data)}"

    @property
    def _images(self) -> Sequence[Image | Path] | None:
        if isinstance(self.data, ImageSet):
            return self.data.images
        return pictures(self.data) if isinstance(self.data, Path) and self.data.is_dir() else None

    @property
    def _texts(self) -> Texts:
        return Texts(cast("TextSet | Path", self.data), "", self.size)

    def shards(self) -> int:
        images = self._images
        return len(self._texts) if images is None else -(-len(images) // self.size)

    def shard(self, number: int) -> Arrays:
        _unchanged(self.data, self.digest)
        model = self.origin.load()
        return (
            self._shard_of_images(model, number)
            if isinstance(model, VisionModel)
            else self._shard_of_texts(model, number)
        )

    def _shard_of_texts(self, model: LanguageModel, number: int) -> Arrays:
        group = next(itertools.islice(self._texts.groups(), number, None))
        windows = Windows.of(model, group, self.context)
        out: Arrays = {"document": windows.document}
        out |= {"ids": windows.ids.astype(np.int32), "window": windows.window.astype(np.int32)}
        for ids, row in windows.batches(self.batch):
            with torch.no_grad(), model.record(self.sites) as seen:
                model(ids.to(model.device), keep=1)
            for site in self.sites:
                values = seen[site].float().cpu().numpy()[row >= 0].astype(self.dtype)
                if site not in out:
                    out[site] = np.empty((len(windows.ids), *values.shape[1:]), values.dtype)
                out[site][row[row >= 0]] = values
        return out

    def _shard_of_images(self, model: VisionModel, number: int) -> Arrays:
        first = number * self.size
        some = (self._images or ())[first : first + self.size]
        parts: dict[str, list[np.ndarray]] = {site: [] for site in self.sites}
        for start in range(0, len(some), self.batch):
            images = [Image.open(each) if isinstance(each, Path) else each for each in some[start : start + self.batch]]
            pixels = torch.cat([model._process(each.picture) for each in images])
            with torch.no_grad(), model.record(self.sites) as seen:
                model(pixels.to(model.device, model.dtype))
            for site, found in parts.items():
                found.append(seen[site].float().cpu().numpy().astype(self.dtype))
        return {"document": np.arange(first, first + len(some))} | {k: np.concatenate(v) for k, v in parts.items()}

    def joined(self, parts: Iterator[Arrays]) -> int:
        return self.shards()


# -------------------------------------------------------------------------------------------------------------- a lens


@dataclass(frozen=True)
class Lens:
    """A lens, under interventions, at every sample of a data set. Run it with `keep=` a folder.

    A .jsonl file holds texts, objects with "text", or pairs with "clean", "corrupted", "answer" and "foil". A shard
    holds the arrays of the results, under "number of the sample/field". Returns, when it has run, what is not an array
    of each result, as plain values, with `sample`, its number, and `of`, its text or file; a sample that can't be
    served has the reason under `unsuitable`.
    """

    origin: Origin
    lens: Call
    interventions: tuple[Call, ...]
    data: Data
    digest: str

    @staticmethod
    def of(model: Model, lens: Call, data: Data, interventions: Sequence[Call] = ()) -> Lens:
        """The job for a model.

        Raises:
            Unsuitable: a method that can't serve this model.
        """
        for call, kind in ((lens, "lens"), *((each, "intervention") for each in interventions)):
            if METHODS[call.method].kind != kind:
                raise Unsuitable(f"{call.method} is a {METHODS[call.method].kind}, not a {kind}.")
            if reason := METHODS[call.method].refuses(model):
                raise Unsuitable(reason)
        data = data.resolve() if isinstance(data, Path) else data
        return Lens(Origin.of(model), lens, tuple(interventions), data, _digest(data))

    @cached_property
    def key(self) -> str:
        calls = [(str(each), each.version) for each in (self.lens, *self.interventions)]
        return store.key_of("lens", 1, TOGETHER, self.origin.digest, self.origin.dtype, calls, self.digest)

    @property
    def name(self) -> str:
        return f"{METHODS[self.lens.method].name} over {_title(self.data)}"

    def _references(self) -> Iterator[Any]:
        """What a sample is made of, one after another: lines, files, samples."""
        data = self.data
        if isinstance(data, ImageSet):
            yield from data.images
        elif isinstance(data, TextSet):
            yield from data.texts
        elif data.is_dir():
            yield from pictures(data)
        else:
            try:
                with open(data, encoding="utf-8") as file:
                    for line in filter(None, map(str.strip, file)):
                        yield json.loads(line) if data.suffix == ".jsonl" else line
            except (ValueError, RecursionError):
                raise Unsuitable(f"{data.name} is no UTF-8 text with a sample in each line.") from None

    def shards(self) -> int:
        return -(-sum(1 for _ in self._references()) // TOGETHER)

    def shard(self, number: int) -> Arrays:
        _unchanged(self.data, self.digest)
        model = self.origin.load()
        arrays: Arrays = {}
        facts = []
        first = number * TOGETHER
        for place, each in enumerate(itertools.islice(self._references(), first, first + TOGETHER), first):
            progress.check()
            about: dict[str, Any] = {"sample": place, "of": each.name if isinstance(each, Path | Image) else each}
            try:
                sample = _sample(each)
                with ExitStack() as stack:
                    for call in self.interventions:
                        stack.enter_context(METHODS[call.method](model, sample, **call.settings))
                    result = METHODS[self.lens.method](model, sample, **self.lens.settings)
                arrays |= {f"{place}/{name}": value for name, value in result.arrays().items()}
                # what a run has cost depends on what others left in the cache
                about |= {k: v for k, v in result.facts().items() if k not in ("forwards", "backwards")}
            except Unsuitable as reason:
                about["unsuitable"] = str(reason)
            facts.append(json.dumps(_finite(about), allow_nan=False))
        return arrays | {"facts": np.frombuffer("\n".join(facts).encode(), np.uint8)}

    def joined(self, parts: Iterator[Arrays]) -> list[dict[str, Any]]:
        facts = [json.loads(line) for part in parts for line in part["facts"].tobytes().split(b"\n")]
        if not facts:
            raise Unsuitable(f"There is nothing to look at in {_title(self.data)}.")
        reasons = [each["unsuitable"] for each in facts if "unsuitable" in each]
        if len(reasons) == len(facts):
            raise Unsuitable(reasons[0])
        return facts


def _sample(reference: Any) -> Sample:
    if isinstance(reference, Image):
        return reference
    if isinstance(reference, Path):
        return Image.open(reference)
    if isinstance(reference, str):
        return Prompt(reference)
    if isinstance(reference, dict) and {"clean", "corrupted"} <= set(reference) <= PAIR:
        return PromptPair(**reference)
    if isinstance(reference, dict) and isinstance(reference.get("text"), str):
        return Prompt(reference["text"])
    raise Unsuitable('A line is a text, an object with "text", or one with "clean", "corrupted", "answer" and "foil".')
