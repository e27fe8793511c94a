"""Snapshots: an experiment with what it needs elsewhere and the numbers it gave, under a short name of its content."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from interp import Missing, Unsuitable, __version__, directions, feature_index, sae, settings, storage, store, transport
from interp.experiment import _SAMPLE_KINDS, Call, Experiment, _method
from interp.model import Model
from interp.results import Result
from interp.samples import MAX_SIDE, Image, ImageSet

ID = re.compile(r"[a-z2-7]{20}")
VERSION = 1
LARGEST = 2**16
"""Bytes of a snapshot without its parts."""
UNPACKED = 8
"""Numbers take at most so many times `shared_each`, unpacked."""
TITLE = 200
_KEYS = re.compile(r"local:[0-9a-f]{16}|(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_PLACES = re.compile(
    r"(directions|tasks|transport|indexes)/[0-9a-f]{64}\.safetensors"
    rf"|saes/[0-9a-f]{{16}}/({re.escape(sae.CONFIG)}|{re.escape(sae.WEIGHTS)})"
)
"""Where in the store a part may be put."""
_CALLED = {
    "directions": "The direction", "tasks": "The task", "transport": "The transport operators",
    "indexes": "The feature index", "saes": "The SAE",
}  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """What a short link stands for.

    view: the parameters of the long link beyond the experiment's own. weights: the digest of the model it ran on.
    numbers: the sha256 of what is kept of the result, "" where nothing is; kind: the type of the result.
    forwards, backwards: what it cost; version: of Actiscope, where it was made.
    """

    id: str
    experiment: Experiment
    view: Mapping[str, list[str]]
    title: str
    weights: str
    numbers: str
    kind: str
    forwards: float
    backwards: float
    version: str


def keep(
    experiment: Experiment,
    result: Result | None,
    view: Mapping[str, Sequence[str]],
    title: str = "",
    preview: bytes | None = None,
) -> str:
    """Keep a snapshot and return its id: of the same experiment, view, title and numbers it is the same.

    Photos, directions, tasks, operators, indexes and SAEs that are not of the shelf are kept with it. Settings that
    name none of these stand for the first there is on this server; in the snapshot they name it.

    Args:
        preview: a small picture of it, PNG; no part of the id.

    Raises:
        Unsuitable: it is too large, its text is none, or its model is not here. Missing: something it names is no
            longer here. storage.Away: it can't be kept now; then nothing points to what was kept of it.
    """
    from interp import zoo

    model = zoo.load(experiment.model)
    experiment, view = _named(experiment, model), _named_view(view, model)
    parts = {hashlib.sha256(each.data).hexdigest(): each.data for each in _images(experiment)}
    places: dict[str, str] = {}
    for kind, path in _files(experiment, view):
        data = _read(path, kind, sum(map(len, parts.values())))
        places[path.relative_to(store.folder()).as_posix()] = digest = hashlib.sha256(data).hexdigest()
        parts[digest] = data
    numbers = ""
    if result is not None and result.arrays():
        if sum(each.nbytes for each in result.arrays().values()) > UNPACKED * _most():
            raise Unsuitable(
                "This result holds too many numbers for a short link; download it, or share the long link."
            )
        data = store.packed(result.arrays())
        parts[numbers := hashlib.sha256(data).hexdigest()] = data
    about = {
        "v": VERSION, "experiment": experiment.to_json(), "view": view, "title": title.strip()[:TITLE],
        "weights": model.digest, "numbers": numbers, "kind": "" if result is None else type(result).__name__,
        "parts": sorted(parts), "places": places,
    }  # fmt: skip
    made = {
        "forwards": float(result.forwards) if result else 0.0, "backwards": float(result.backwards) if result else 0.0,
        "version": __version__,
    }  # fmt: skip
    name, text = _written(about, made)
    if len(text) > LARGEST:
        raise Unsuitable(
            f"This view holds too much for a short link ({len(text) // 1024} KB of text, over {LARGEST // 1024}); "
            "shorten its texts, or share the long link."
        )
    if (size := len(text) + sum(map(len, parts.values())) + len(preview or b"")) > _most():
        raise Unsuitable(
            f"With its photos and numbers this takes {_shown(size)}, over the {_shown(_most())} of a short link; "
            "use smaller photos, or share the long link."
        )
    kept = storage.shared()
    for data in parts.values():
        store.keep_blob(data)
    if preview and not (kept.get(_preview(name)) == preview and kept.use(_preview(name))):
        kept.put(_preview(name), preview)
    # last, so that what has an id is whole
    if _parsed(name, kept.get(_place(name))) is None or not kept.use(_place(name)):
        kept.put(_place(name), text)
    return name


def read(id: str) -> Snapshot:
    """The snapshot of that id; what it needs is in the store of this machine afterwards.

    Raises:
        Missing: there is none, or no longer. Unsuitable: it is damaged, or of a version that can't be read.
        storage.Away: the storage can't be reached.
    """
    about, made = _opened(id)
    for digest in about["parts"]:
        # noted before the places are filled, so that they are not swept before the snapshot is
        if not storage.shared().use(store.blob_key(digest)) and digest not in about["places"].values():
            raise Missing("A part of what this link shows is no longer kept here; ask for a new link.")
    artefacts: dict[str, dict[str, str]] = {}
    for place, digest in about["places"].items():
        artefacts.setdefault(place.rsplit("/", 1)[0] if place.startswith("saes/") else place, {})[place] = digest
    for target, files in artefacts.items():
        _restore(store.folder() / target, files)
    experiment = Experiment.from_json(about["experiment"])
    for image in _images(experiment):
        _check_image(image)
    return Snapshot(
        id, experiment, about["view"], about["title"], about["weights"], about["numbers"], about["kind"],
        made["forwards"], made["backwards"], made["version"],
    )  # fmt: skip


def title(id: str) -> str:
    """The title of a snapshot, without opening the rest.

    Raises:
        As `read` does.
    """
    return str(_opened(id)[0]["title"])


def numbers(snapshot: Snapshot) -> dict[str, np.ndarray] | None:
    """The numbers kept with a snapshot, or None where none were.

    Raises:
        Missing: they are no longer here. Unsuitable: they are damaged. storage.Away: the storage can't be reached.
    """
    return store.unpacked(_part(snapshot.numbers), UNPACKED * _most()) if snapshot.numbers else None


def reproduced(snapshot: Snapshot, result: Result) -> bool:
    """Whether a result is of the kept kind and has the kept numbers; False where none were kept.

    Raises:
        As `numbers` does.
    """
    stored = numbers(snapshot)
    return stored is not None and type(result).__name__ == snapshot.kind and result.reproduces(stored)


def preview(id: str) -> bytes | None:
    """The picture kept with a snapshot, PNG, or None.

    Raises:
        storage.Away: the storage can't be reached.
    """
    data = storage.shared().get(_preview(id)) if ID.fullmatch(id) else None
    try:
        assert data is not None
        PIL.Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        return data
    except Exception:  # Pillow's plugins raise almost anything on damaged data
        return None


# ----------------------------------------------------------------------------------------------------------- its text


def _written(about: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[str, bytes]:
    """The id and the bytes of a snapshot: what its id is of, what it is not of, and a checksum of both, in lines."""
    lines = [_json(each) for each in (about, made)]
    return _id(lines[0]), b"\n".join((*lines, hashlib.sha256(b"\n".join(lines)).hexdigest().encode()))


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise Unsuitable("A title is a text of whole characters; type it again.") from None


def _id(text: bytes) -> str:
    return base64.b32encode(hashlib.sha256(text).digest()).decode().lower()[:20]


def _opened(id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    data = storage.shared().get(_place(id)) if ID.fullmatch(id) else None
    if data is None:
        raise Missing("There is no such link here, or no longer; ask for a new one, or begin on the first page.")
    try:
        found = _parsed(id, data)
        if found is not None and found[0]["v"] == VERSION and _valid(*found):
            return found
        newer = found is not None and found[0]["v"] != VERSION
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        newer = False
    if newer:
        raise Unsuitable("This link is of another version of Actiscope, which can't be read here; ask for a new one.")
    raise Unsuitable("This link is damaged; ask for a new one.")


def _parsed(id: str, data: bytes | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What `_written` wrote under that id, or None."""
    if data is None or len(data) > LARGEST:
        return None
    *lines, check = data.split(b"\n")
    if len(lines) != 2 or hashlib.sha256(b"\n".join(lines)).hexdigest().encode() != check or _id(lines[0]) != id:
        return None
    about, made = (json.loads(each) for each in lines)
    return about, made


def _valid(about: Any, made: Any) -> bool:
    """Whether it is made as `keep` makes it, whoever wrote it."""
    view, places, digests = about["view"], about["places"], [*about["parts"], *about["places"].values()]
    return (
        all(isinstance(about[each], str) for each in ("experiment", "title", "weights", "numbers", "kind"))
        and len(about["title"]) <= TITLE
        and all(isinstance(each, str) for values in view.values() for each in (*values, "".join(values)))
        and all(_PLACES.fullmatch(place) for place in places)
        and all(store.DIGEST.fullmatch(each) for each in digests)
        and (not about["numbers"] or about["numbers"] in about["parts"])
        and isinstance(made["version"], str)
        and all(isinstance(made[each], float) for each in ("forwards", "backwards"))
    )


def _place(id: str) -> str:
    return f"snapshots/{id[:2]}/{id}.json"


def _preview(id: str) -> str:
    return f"previews/{id[:2]}/{id}.png"


def _most() -> int:
    return settings.SETTINGS.shared_each


def _shown(size: int) -> str:
    return f"{size / 2**20:.1f} MB"


# ------------------------------------------------------------------------------------------------------ what it needs


def _images(experiment: Experiment) -> list[Image]:
    """The uploaded photos it looks at or names in its settings."""

    def inside(value: Any) -> Iterator[Image]:
        if isinstance(value, Image):
            yield value
        elif isinstance(value, ImageSet):
            yield from value.images
        elif isinstance(value, tuple):
            for each in value:
                yield from inside(each)

    named = [value for call in (experiment.lens, *experiment.interventions) for value in call.settings.values()]
    return [image for image in inside((experiment.sample, *named)) if image.reference.startswith("sha256:")]


def _check_image(image: Image) -> None:
    """See that a kept photo is one that `Image.of` made, before anything decodes it."""
    try:
        picture = PIL.Image.open(io.BytesIO(image.data), formats=("PNG",))
        sound = max(picture.size) <= MAX_SIDE and picture.mode == "RGB"
    except Exception:  # Pillow's plugins raise almost anything on damaged data
        sound = False
    if not sound:
        raise Unsuitable("The photo kept with this link is damaged; ask for a new link.")


def _named(experiment: Experiment, model: Model) -> Experiment:
    """The same with what unnamed settings stand for on this machine, where that is not of the shelf."""
    lens, *interventions = (_named_call(each, model) for each in (experiment.lens, *experiment.interventions))
    return dataclasses.replace(experiment, lens=lens, interventions=tuple(interventions))


def _named_view(view: Mapping[str, Sequence[str]], model: Model) -> dict[str, list[str]]:
    """What a view says beyond the experiment, the calls in it named likewise."""
    own = {"v", "model", "lens", "do", *_SAMPLE_KINDS}
    found = {str(key): [str(each) for each in values] for key, values in view.items() if key not in own}
    return found | ({"bench": [_named_lines(each, model) for each in found["bench"]]} if "bench" in found else {})


def _named_call(call: Call, model: Model) -> Call:
    found: dict[str, Any] = {}
    for control in _method(call.method).controls:
        value = call.settings[control.name]
        if control.name == "ways":  # interventions as links write them, several lines to each
            found["ways"] = tuple(_named_lines(way, model) for way in value)
        elif value == "" and (key := _stands_for(call, control.name, control.kind, model)):
            found[control.name] = key
    return call.but(**found)


def _named_lines(text: str, model: Model) -> str:
    try:
        return "\n".join(str(_named_call(Call.parse(line), model)) for line in text.splitlines() if line.strip())
    except Unsuitable:  # a text that a visitor typed
        return text


def _stands_for(call: Call, name: str, kind: str, model: Model) -> str:
    """The key in the store that a setting stands for where it names nothing; "" if that is nothing, or of the shelf."""
    from interp.methods.steering import _conditions, _tasks

    found = ""
    with suppress(Unsuitable):  # there is none
        if kind == "sae":
            found = sae.first(model)
        elif name == "condition":
            found = _conditions.opened(model, "").key  # type: ignore[arg-type]
        elif kind == "direction":
            found = directions.load("", model).key  # type: ignore[arg-type]
        elif name == "task":
            found = _tasks.load("", model).key  # type: ignore[arg-type]
        elif name == "index":
            index = feature_index.find(model, sae.load(call.settings["sae"] or sae.first(model)))
            found = index.path.stem if index and index.path.parent == feature_index.folder() else ""
        elif name == "operators":
            fit = transport.find(model, "", call.settings.get("policy", "same"))
            found = fit.path.stem if fit and fit.path.parent == transport.folder() else ""
    return found if _KEYS.fullmatch(found) else ""


def _files(experiment: Experiment, view: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, Path]]:
    """The files in the store that it names, with their kind.

    Raises:
        Missing: one that the experiment needs is no longer there.
    """
    needed: list[str] = []
    for call in (experiment.lens, *experiment.interventions):
        for name, value in call.settings.items():
            if name not in ("instruction", "words", "name"):  # what visitors type
                needed += [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str)]
    shown = [text for name in ("bench", "off", "of") for text in view.get(name, ())]
    keys = [[key for text in texts for key in _KEYS.findall(text)] for texts in (needed, shown)]
    for key in dict.fromkeys((*keys[0], *keys[1])):
        if key.startswith("local:"):
            places = [("saes", f"{key[6:]}/{name}") for name in (sae.CONFIG, sae.WEIGHTS)]
        else:
            places = [(kind, f"{key}.safetensors") for kind in ("directions", "tasks", "transport", "indexes")]
        found = [(kind, path) for kind, name in places if (path := store.folder() / kind / name).exists()]
        if not found and key in keys[0]:
            raise Missing("A direction, task or SAE that this is about is no longer kept here; make it again.")
        yield from found


def _read(path: Path, kind: str, besides: int) -> bytes:
    try:
        if (size := path.stat().st_size) + besides > _most():
            raise Unsuitable(
                f"{_CALLED[kind]} this is about ({_shown(size)}) is too large for a short link (up to "
                f"{_shown(_most())}); the long link works, on this server alone."
            )
        return path.read_bytes()
    except OSError:
        raise Missing(f"{_CALLED[kind]} this is about is no longer kept here; make it again.") from None


def _part(digest: str) -> bytes:
    data = storage.shared().get(store.blob_key(digest))
    if data is None:
        raise Missing("A part of what this link shows is no longer kept here; ask for a new link.")
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unsuitable("A part of what this link shows is damaged; ask for a new link.")
    return data


def _restore(target: Path, files: Mapping[str, str]) -> None:
    """Put an artefact (a file, or an SAE's folder) into this machine's store unless it is there, seen to be one."""
    if target.exists():
        return store.mark(target)
    kind = target.relative_to(store.folder()).parts[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, suffix=storage.TEMPORARY))
    try:
        for place, digest in files.items():
            (made / Path(place).name).write_bytes(_part(digest))
        if not _sound(kind, target.name, made):
            raise Unsuitable(f"{_CALLED[kind]} kept with this link is damaged; ask for a new link.")
        with suppress(OSError):  # someone else did so meanwhile
            os.replace(made if kind == "saes" else made / target.name, target)
    except OSError:
        raise storage.Away("full") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sound(kind: str, name: str, folder: Path) -> bool:
    """Whether a folder holds an artefact of that kind and name, by the reader that methods use."""
    from interp.methods.steering import _tasks

    path = folder / name
    try:
        if kind == "saes":
            sae.read(folder)
            return store.digest_of((folder / sae.CONFIG, folder / sae.WEIGHTS)) == name
        if kind == "directions":
            directions.read(path)
        elif kind == "tasks":
            _tasks.read(path, path.stem)
        else:
            opened = transport.Operators(path) if kind == "transport" else feature_index.Index(path)
            return opened.key == path.stem
        return True
    except Unsuitable:
        return False
