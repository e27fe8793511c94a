"""What can be loaded: the embedded shelf, a folder written by save_pretrained, a Hugging Face id."""

from __future__ import annotations

import gc
import json
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from interp import Missing, Unsuitable, hub, progress, settings, store
from interp.model import LanguageModel, Model, VisionModel

SHELF = Path(__file__).parent.parent / "assets" / "models"
VISION = (
    "resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet_v2", "vit", "deit", "dinov2",
    "dinov2_with_registers", "beit", "swin", "swinv2",
)  # fmt: skip
LANGUAGE = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi3", "olmo2",
    "mixtral",
)  # fmt: skip

HEADS = {"vision": "ForImageClassification", "language": "ForCausalLM"}
READERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "preprocessor_config.json",
    "processor_config.json", "generation_config.json",
)  # fmt: skip
"""What may lie beside config.json and the weights, and is read."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
SMALL, TOKENIZER = 2**20, 2**27
"""Bytes of a configuration, and of a file of a tokenizer."""
FORGET = 20.0
"""Seconds in which what the hub refused is not asked for again."""

Key = tuple[str, str, str]
_loaded: OrderedDict[Key, Model] = OrderedDict()
_alive: weakref.WeakValueDictionary[Key, Model] = weakref.WeakValueDictionary()
_folders: dict[str, Path] = {}
_pinned: OrderedDict[str, str] = OrderedDict()
_refused: dict[str, tuple[float, str]] = {}
_lock = threading.Lock()
# from_pretrained touches settings of the whole process, so only one runs at a time
_one_at_a_time = threading.Lock()

if settings.SETTINGS.hosted and "OMP_NUM_THREADS" not in os.environ:
    # many runs at once: a core for each gives more answers in a second than all cores for one after the other, and
    # every answer the same bits however busy the server is
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Card:
    """What a model of the hub is, before its weights are downloaded. name: owner/name@commit."""

    name: str
    task: str
    family: str
    architecture: str
    licence: str
    files: Mapping[str, int]
    here: bool

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def load(name: str | Path, device: str | None = None, dtype: torch.dtype | None = None) -> VisionModel | LanguageModel:
    """Load a model once and share it.

    A Hugging Face id without a commit stands for the same commit as long as the process lives. What is not on this
    disk is downloaded, with the bytes reported to `interp.progress`.

    Args:
        name: of the embedded shelf ("photos"), a folder written by save_pretrained, `local:DIGEST` of a folder loaded
            before, or a Hugging Face id ("microsoft/resnet-18", "microsoft/resnet-18@main"). On a server for strangers
            only a `Path` is a folder.
        device: "cpu" unless given. dtype: float32 unless given.

    Raises:
        Unsuitable: not a model that can be looked into; the text says why and what to do.
        Missing: nothing of that name here.
        interp.progress.Cancelled: stopped while it was downloaded.
    """
    folder = _find(name)
    full = str(folder or pin(str(name)))
    key = (full, str(device or "cpu"), str(dtype or torch.float32))
    model = _here(key)
    if model is None:
        with progress.alone(f"load {key}"):  # whoever asks for the same model meanwhile waits here and finds it loaded
            model = _here(key)
            if model is None:
                model = _load(folder or full, device, dtype)
                with _lock:
                    _loaded[key] = _alive[key] = model
                    _evict(0)
    return model  # type: ignore[return-value]


def _here(key: Key) -> Model | None:
    """The model, if it is in memory: also one that was dropped while a run went on with it."""
    with _lock:
        model = _loaded.get(key) or _alive.get(key)
        if model is not None:
            _loaded[key] = model
            _loaded.move_to_end(key)
            _evict(0)
        return model


def _evict(room: int) -> None:
    """Keep those used last, so that there is room for so many more; whoever holds a dropped one goes on with it."""
    while settings.SETTINGS.models and len(_loaded) > max(0, settings.SETTINGS.models - room):
        _loaded.popitem(last=False)


def _collect() -> None:
    """Free what was dropped: a network is full of cycles, and may have been there when the imports were frozen."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()


def drop_unused() -> int:
    """Drop the models that nobody holds right now, and say how many these were. Their memory is free afterwards."""
    with _lock:
        before = list(_loaded)
        _loaded.clear()
    _collect()
    with _lock:
        for key in before:  # in use: it stays, and is not loaded a second time
            if key not in _loaded and (model := _alive.get(key)) is not None:
                _loaded[key] = model
        return sum(key not in _loaded for key in before)


def in_memory() -> dict[str, int]:
    """The models in memory by name, those used last at the end: bytes of their weights."""
    with _lock:
        found = [(key[0], model) for key, model in _loaded.items()]
    return {name: sum(each.nbytes for each in model._network.state_dict().values()) for name, model in found}


def _held() -> list[str]:
    with _lock:
        return [key[0] for key in {*_loaded, *_alive}]


hub.HELD.append(_held)


def pin(name: str, anew: bool = False) -> str:
    """owner/name@commit of a Hugging Face id, asked for once in a process, or anew.

    Raises:
        Unsuitable: there is no such repository, or it may not be had.
    """
    repository, revision = hub.split(name)
    if hub.COMMIT.fullmatch(revision) and not anew:
        hub.permitted(repository, revision)
        return name
    with progress.alone(f"pin {name}"):
        if name in _pinned and not anew:
            hub.permitted(repository, revision)
            return _pinned[name]
        since, reason = _refused.get(name, (-FORGET, ""))
        if time.monotonic() - since < FORGET and not anew:
            raise Unsuitable(reason)
        try:
            full = hub.listing(repository, revision).name
        except Unsuitable as problem:
            _refused[name] = (time.monotonic(), str(problem))
            raise
        finally:
            for old in [each for each, (when, _) in _refused.items() if time.monotonic() - when >= FORGET]:
                _refused.pop(old, None)
        with _lock:
            _pinned[name] = full
            while len(_pinned) > 1000:
                _pinned.popitem(last=False)
        return full


def is_folder(name: str) -> bool:
    """Whether a name is of the shelf, or stands for a folder that `load` would look into.

    Raises:
        Unsuitable, Missing: it stands for nothing.
    """
    return _find(name) is not None


def here(name: str) -> bool:
    """Whether `load` needs no download: on the shelf, in a folder, in memory, or a whole copy on this disk."""
    if _find(name) is not None:
        return True
    full = _pinned.get(name, name)
    with _lock:
        if any(key[0] == full for key in {*_loaded, *_alive}):
            return True
    repository, commit = hub.split(full)
    if not hub.COMMIT.fullmatch(commit):
        return False
    known = hub._record(repository, commit)
    try:
        return known is not None and known.here(_needed(known))
    except Unsuitable:
        return False


def look(name: str) -> Card:
    """Say what a model of the hub is: its configuration is fetched, its weights are not.

    Raises:
        Unsuitable: not a model that can be looked into, or it is too large.
    """
    return _card(hub.listing(*hub.split(pin(name))))


def shelf() -> dict[str, dict[str, Any]]:
    """The embedded models by name: their configuration, with the text of the model card under `card`."""
    return {name: dict(each) for name, each in _read_shelf(SHELF).items()}


@lru_cache(maxsize=8)
def _read_shelf(place: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted(place.glob("*")) if place.exists() else []:
        if (folder / "model.safetensors").exists():
            card = folder / "card.md"
            config = json.loads((folder / "config.json").read_text())
            found[folder.name] = config | {"card": card.read_text() if card.exists() else ""}
    return found


def shared_name(name: str) -> str:
    """The name a link may carry: `local:DIGEST` for a folder, never its path; owner/name@commit once that is known."""
    if name in shelf() or name.startswith("local:"):
        return name
    folder = _folder(name)
    if folder is None:
        return _pinned.get(name, name)
    digest = store.digest_of(path for path in (*sorted(folder.glob("*.json")), *_weights(folder)) if path.is_file())
    _folders[digest] = folder
    return f"local:{digest}"


def is_path(name: str) -> bool:
    """Whether `load` would look into a folder given by its path."""
    if name in shelf() or name.startswith("local:"):
        return False
    try:
        hub.split(name)
    except Unsuitable:
        return True
    return _folder(name) is not None


def _folder(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path.resolve() if path.is_dir() else None
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # a name too long for a path, with a zero in it, or of a home that is not
        return None


def _find(name: str | Path) -> Path | None:
    """The folder that a name stands for, or None for a hub id.

    Raises:
        Unsuitable, Missing: neither.
    """
    if isinstance(name, Path):
        return name.resolve()
    if re.fullmatch(r"[a-z0-9_-]{1,40}", name) and (SHELF / name / "config.json").exists():
        return SHELF / name
    if name.startswith("local:"):
        found = _folders.get(name.removeprefix("local:"))
        if found is None:
            raise Missing(
                "This link is about a model in a folder on another machine; load that folder on the Models page first."
            )
        return found
    folder = None if settings.SETTINGS.hosted else _folder(name)
    if folder is None:
        try:
            hub.split(name)
        except Unsuitable:
            raise Unsuitable(f"{name[:80]!r} is no folder here and no Hugging Face id (owner/name).") from None
    return folder


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise Unsuitable(f"{folder.name} holds no config.json; give a folder written by save_pretrained.")
    if not _weights(folder):
        pickles = [path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(suffix)]
        raise Unsuitable(
            f"{folder.name} holds only pickled weights ({pickles[0]}), which can run any code when opened; "
            "save it again with save_pretrained(..., safe_serialization=True)."
            if pickles
            else f"{folder.name} holds no weights (model.safetensors)."
        )
    _refuse_large(folder.name, sum(path.stat().st_size for path in _weights(folder)))


def _refuse_large(shown: str, bytes: int) -> None:
    limit = settings.SETTINGS.model_bytes
    if limit and bytes > limit:
        raise Unsuitable(
            f"{shown} is too large: it has {hub.said(bytes)} of weights, and the limit here is {hub.said(limit)}."
        )


def _needed(found: hub.Listing) -> list[str]:
    """The files of a repository that a model is read from: one file of safetensors, or all its parts with their index.

    Raises:
        Unsuitable: there are no such weights, no configuration, or a file is larger than its kind is.
    """
    shown, files = found.repository, found.files
    if "config.json" not in files:
        raise Unsuitable(f"{shown} holds no config.json, so it is no model of transformers; choose one that is.")
    parts = [each for each in files if re.fullmatch(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors", each)]
    if "model.safetensors" in files:
        weights = ["model.safetensors"]
    elif "model.safetensors.index.json" in files and parts:
        weights = ["model.safetensors.index.json", *sorted(parts)]
    else:
        pickles = [each for each in files if each.endswith(PICKLES) and "/" not in each]
        raise Unsuitable(
            f"{shown} holds only pickled weights ({pickles[0]}), which can run any code when opened; choose one with "
            "safetensors."
            if pickles
            else f"{shown} has no safetensors weights (model.safetensors); choose one that has."
        )
    beside = ["config.json", *(each for each in READERS if each in files)]
    for each in beside:
        limit = TOKENIZER if each.startswith(("token", "vocab", "merges", "spiece")) else SMALL
        if files[each].size > limit:
            raise Unsuitable(f"{each} of {shown} is larger than such files are ({hub.said(files[each].size)}).")
    _refuse_large(shown, sum(files[each].size for each in weights))
    return beside + weights


def _card(found: hub.Listing) -> Card:
    shown, needed = found.repository, _needed(found)
    index = [each for each in needed if each.endswith("index.json")]
    if any(found.files[each].size > TOKENIZER for each in index):
        raise Unsuitable(f"The list of the parts of {shown} is larger than such files are.")
    folder = hub.fetch(f"Reading {shown}", found, ["config.json", *index])
    kind, config = _checked(_json(folder / "config.json", shown), shown), _json(folder / "config.json", shown)
    for each in index:
        parts = _json(folder / each, shown).get("weight_map")
        lacking = set(parts.values() if isinstance(parts, dict) else [""]) - set(needed)
        if lacking:
            raise Unsuitable(f"{shown} lacks a part of its weights ({min(map(str, lacking))[:60]}); choose another.")
    reader = "preprocessor_config.json" if kind == "vision" else "tokenizer"
    if not any(each.startswith((reader, "vocab", "merges", "spiece", "processor")) for each in needed):
        raise Unsuitable(_without_reader(shown, kind))
    task = "classifies images" if kind == "vision" else "goes on with a text"
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else config["model_type"]
    files = {each: found.files[each].size for each in needed}
    return Card(found.name, task, config["model_type"], architecture[:60], found.licence, files, found.here(needed))


def _json(path: Path, shown: str) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise Unsuitable(f"The configuration of {shown} can't be read ({_first_line(problem)}).") from None
    if not isinstance(read, dict):
        raise Unsuitable(f"The configuration of {shown} can't be read ({path.name} holds no JSON object).")
    return read


def _checked(config: Mapping[str, Any], shown: str) -> str:
    """Which kind of model a configuration is of, "vision" or "language".

    Raises:
        Unsuitable: of neither; or it is quantised, wants code of its own, or is without the head that is looked at.
    """
    family = config.get("model_type")
    known = ", ".join(VISION + LANGUAGE)
    if family not in VISION + LANGUAGE:
        if config.get("auto_map"):
            raise Unsuitable(f"{shown} comes with code of its own, which is not run here; looked into are {known}.")
        said = f"a {family[:40]}" if isinstance(family, str) else "of no type that its configuration names"
        raise Unsuitable(f"{shown} is {said}; Actiscope looks into {known}.")
    quantised = config.get("quantization_config")
    if quantised is not None:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise Unsuitable(
            f"{shown} is quantised ({str(how or 'bitsandbytes')[:30]}): its weights are packed in a way that can't be "
            "looked into here; take the model it was made from."
        )
    kind = "vision" if family in VISION else "language"
    names = config.get("architectures")
    if kind == "vision" and isinstance(names, list) and names and not any(HEADS[kind] in str(each) for each in names):
        raise Unsuitable(f"{shown} is a {str(names[0])[:60]}, without a classifier; take one trained to classify.")
    return kind


def _without_reader(shown: str, kind: str) -> str:
    what = "an image processor (preprocessor_config.json)" if kind == "vision" else "a tokenizer"
    return f"{shown} comes without {what}; save it into the same folder."


# what transformers, its configuration checks and safetensors raise for files that are damaged, odd or not there
PROBLEMS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).splitlines()), type(problem).__name__)[:160]


def _load(name: str | Path, device: str | None, dtype: torch.dtype | None) -> VisionModel | LanguageModel:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoTokenizer,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = _find(name)
    if folder is None:
        found = hub.listing(*hub.split(str(name)))
        shown = found.repository
        folder = hub.fetch(f"Fetching {shown}", found, _card(found).files)
    else:
        shown = folder.name
        _check_folder(folder)
        _checked(_json(folder / "config.json", shown), shown)
    source, options = str(folder), {"trust_remote_code": False, "local_files_only": True}
    with _one_at_a_time:
        with _lock:
            dropped = len(_loaded)
            _evict(1)
            dropped -= len(_loaded)
        if dropped:
            _collect()
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except PROBLEMS as problem:
            raise Unsuitable(f"The configuration of {shown} can't be read ({_first_line(problem)}).") from None
        vision = config.model_type in VISION
        heads = {"vision": AutoModelForImageClassification, "language": AutoModelForCausalLM}
        try:
            # as float32 whatever they are stored as: another dtype here would change the default of the whole process
            network, report = heads["vision" if vision else "language"].from_pretrained(
                source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        except PROBLEMS as problem:
            raise Unsuitable(f"The weights of {shown} can't be read ({_first_line(problem)}).") from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise Unsuitable(
                f"{shown} lacks weights ({missing[0]} and {len(missing) - 1} more); save it with its classifier."
            )
        reader = AutoImageProcessor if vision else AutoTokenizer
        try:
            # one backend wherever this runs: torchvision's resizes to other pixels than Pillow's
            reads = reader.from_pretrained(source, **options | ({"backend": "pil"} if vision else {}))
            # without any file of it, some families get an empty tokenizer made up
            if not vision and 2 * len(reads) < config.vocab_size:
                raise ValueError
        except PROBLEMS:
            raise Unsuitable(_without_reader(shown, "vision" if vision else "language")) from None
    network = network.to(device or "cpu", dtype or torch.float32)
    return VisionModel(network, reads, shown) if vision else LanguageModel(network, reads, shown)
