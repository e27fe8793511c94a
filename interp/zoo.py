"""What can be loaded: the embedded shelf, a folder written by save_pretrained, a Hugging Face id."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from interp import Missing, Unsuitable, store
from interp.model import LanguageModel, Model, VisionModel

SHELF = Path(__file__).parent.parent / "assets" / "models"
KEEP = int(os.environ.get("ACTISCOPE_MODELS", "4"))
"""How many models stay in memory."""
LARGEST = int(os.environ.get("ACTISCOPE_MODEL_BYTES", str(4 * 2**30)))
"""Weights larger than this are refused before they are downloaded or read."""

VISION = (
    "resnet", "regnet", "convnext", "convnextv2", "efficientnet", "mobilenet_v2", "vit", "deit", "dinov2",
    "dinov2_with_registers", "beit", "swin", "swinv2",
)  # fmt: skip
LANGUAGE = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "opt", "phi3", "olmo2",
    "mixtral",
)  # fmt: skip

HUB_ID = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?(@[A-Za-z0-9_./-]{1,96})?")

_loaded: OrderedDict[tuple[str, str, str], Model] = OrderedDict()
_folders: dict[str, Path] = {}
_lock = threading.Lock()
_loading: dict[tuple[str, str, str], threading.Lock] = {}
# from_pretrained touches settings of the whole process, so only one runs at a time
_one_at_a_time = threading.Lock()


def load(name: str, device: str | None = None, dtype: torch.dtype | None = None) -> VisionModel | LanguageModel:
    """Load a model once and share it.

    Args:
        name: of the embedded shelf ("photos"), a folder written by save_pretrained, `local:DIGEST` of a folder loaded
            before, or a Hugging Face id ("microsoft/resnet-18", "microsoft/resnet-18@main").
        device: "cpu" unless given. dtype: float32 unless given.

    Raises:
        Unsuitable: not a model that can be looked into; the text says why and what to do.
        Missing: nothing of that name here.
    """
    key = (str(_find(name) or name), str(device or "cpu"), str(dtype or torch.float32))
    with _lock:
        if key in _loaded:
            _loaded.move_to_end(key)
            return _loaded[key]  # type: ignore[return-value]
        mine = _loading.setdefault(key, threading.Lock())
    with mine:  # whoever asks for the same model meanwhile waits here and finds it loaded
        with _lock:
            if key in _loaded:
                return _loaded[key]  # type: ignore[return-value]
        try:
            model = _load(name, device, dtype)
        finally:
            with _lock:
                _loading.pop(key, None)
        with _lock:
            _loaded[key] = model
            while len(_loaded) > KEEP:
                _loaded.popitem(last=False)
        return model


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
    """The name a link may carry: `local:DIGEST` for a folder, never its path; others as they are."""
    if name in shelf() or name.startswith("local:"):
        return name
    folder = _folder(name)
    if folder is None:
        return name
    digest = store.digest_of(path for path in (*sorted(folder.glob("*.json")), *_weights(folder)) if path.is_file())
    _folders[digest] = folder
    return f"local:{digest}"


def is_path(name: str) -> bool:
    """Whether `load` would look into a folder given by its path."""
    return not (name in shelf() or name.startswith("local:")) and (
        _folder(name) is not None or not HUB_ID.fullmatch(name) or ".." in name
    )


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


def _find(name: str) -> Path | None:
    """The folder that a name stands for, or None for a hub id.

    Raises:
        Unsuitable, Missing: neither.
    """
    if re.fullmatch(r"[a-z0-9_-]{1,40}", name) and (SHELF / name / "config.json").exists():
        return SHELF / name
    if name.startswith("local:"):
        found = _folders.get(name.removeprefix("local:"))
        if found is None:
            raise Missing(
                "This link is about a model in a folder on another machine; load that folder on the Models page first."
            )
        return found
    folder = _folder(name)
    if folder is not None:
        return folder
    if not HUB_ID.fullmatch(name) or ".." in name:
        raise Unsuitable(f"{name[:80]!r} is no folder here and no Hugging Face id (owner/name).")
    return None


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
    if sum(path.stat().st_size for path in _weights(folder)) > LARGEST:
        raise Unsuitable(f"{folder.name} is larger than {LARGEST / 2**30:.0f} GB, the limit here.")


def _check_hub(name: str, revision: str | None) -> bool:
    """Ask the hub for the files before anything is downloaded; false where it can't be asked but a copy is here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise Unsuitable(
            f"Hugging Face has no model {name!r}" + (f" at {revision!r}" if revision else "") + " that is open to all."
        ) from None
    except (HTTPError, OfflineModeIsEnabled, OSError) as problem:
        if _cached(name, revision):
            return False
        raise Unsuitable(
            f"{name!r} can't be fetched: Hugging Face can't be reached from here ({type(problem).__name__})."
        ) from None
    sizes = [each.size or 0 for each in info.siblings or [] if each.rfilename.endswith(".safetensors")]
    if not sizes:
        raise Unsuitable(f"{name} has no safetensors weights; pickled ones are not opened here.")
    if sum(sizes) > LARGEST:
        raise Unsuitable(
            f"{name} has {sum(sizes) / 2**30:.1f} GB of weights; the limit here is {LARGEST / 2**30:.0f} GB."
        )
    return True


def _cached(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


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


def _load(name: str, device: str | None, dtype: torch.dtype | None) -> VisionModel | LanguageModel:
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
    folder, online = _find(name), False
    if folder is not None:
        _check_folder(folder)
        source, revision, shown = str(folder), None, name if name in shelf() else folder.name
    else:
        source, _, at = name.partition("@")
        revision, shown = at or None, source
        online = _check_hub(source, revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False, "local_files_only": not online}
    with _one_at_a_time:
        try:
            config = AutoConfig.from_pretrained(source, **options)
        except PROBLEMS as problem:
            raise Unsuitable(f"The configuration of {shown} can't be read: {_first_line(problem)}") from None
        kind = config.model_type
        if kind not in VISION + LANGUAGE:
            raise Unsuitable(f"{shown} is a {kind}; Actiscope looks into {', '.join(VISION + LANGUAGE)}.")
        heads = {"vision": AutoModelForImageClassification, "language": AutoModelForCausalLM}
        vision = kind in VISION
        try:
            # as float32 whatever they are stored as: another dtype here would change the default of the whole process
            network, report = heads["vision" if vision else "language"].from_pretrained(
                source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        except PROBLEMS as problem:
            raise Unsuitable(f"The weights of {shown} can't be read: {_first_line(problem)}") from None
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
            what = "an image processor (preprocessor_config.json)" if vision else "a tokenizer"
            raise Unsuitable(f"{shown} comes without {what}; save it into the same folder.") from None
    network = network.to(device or "cpu", dtype or torch.float32)
    return VisionModel(network, reads, shown) if vision else LanguageModel(network, reads, shown)
