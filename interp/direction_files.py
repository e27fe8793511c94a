"""Directions as files to take along: safetensors, and GGUF as llama.cpp and repeng write control vectors."""

from __future__ import annotations

import json
import re
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from interp import Unsuitable, directions
from interp.directions import Array, Direction
from interp.methods.steering._contrast import streams
from interp.model import LanguageModel
from interp.samples import reference_texts

Kind = Literal["safetensors", "gguf"]
LIMIT = 64 * 2**20
"""Bytes of a file that is read; a vector for each of 128 layers of 16,384 numbers is 8 MB."""
MANY = 1024
"""Entries and tensors that a GGUF file may have."""
ALIGNMENT = 32
TEXTS = 32
"""Reference texts over which the length of the stream is measured, where a file does not tell it."""
_NAMED = re.compile(r"(?:.*[._])?(\d{1,4})")
# GGUF's types of values: of one number, by struct's letters; 8 is a text and 9 an array
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY, _UINT32, _FLOAT32 = 8, 9, 4, 6
_TENSORS: dict[int, Any] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def exported(direction: Direction, kind: Kind) -> bytes:
    """The direction as a file, from which `imported` makes the same one again, bit for bit.

    GGUF holds the vector after layer L (from 0) as the tensor direction.L, as repeng and llama.cpp do; both add it to
    what block L puts out. llama.cpp refuses files with a direction.0, so that one stands among the file's entries,
    unless it is the only one.
    """
    arrays, metadata = directions.to_bytes(direction)
    if kind == "safetensors":
        return save_tensors(dict(sorted(arrays.items())), metadata)
    facts = {name: each.tolist() for name, each in arrays.items() if name != "vectors"}
    entries: dict[str, Any] = {
        "controlvector.model_hint": direction.model_name,
        "actiscope.direction": metadata["direction"],
        "actiscope.facts": json.dumps(facts, sort_keys=True),
    }
    tensors = dict(zip(direction.layers, arrays["vectors"], strict=True))
    if len(tensors) > 1 and 0 in tensors:
        entries["actiscope.layer_0"] = tensors.pop(0)
    entries["controlvector.layer_count"] = len(tensors)
    return write_gguf(entries, {f"direction.{layer}": each for layer, each in tensors.items()})


def imported(data: bytes, name: str, model: LanguageModel) -> str:
    """Take a file of a direction into the store for this model, and return the direction's key.

    safetensors: Actiscope's own; a tensor [d] for each of some layers, named by its number ("direction.3"); or one
    tensor [layer, d] with a row for every layer. GGUF: a control vector. `name`: what it is called, if not as in the
    file. Where the file does not tell the length of the stream, it is measured on the reference texts.

    Raises:
        Unsuitable: what is wrong with the file, and what to do.
    """
    if len(data) > LIMIT:
        raise Unsuitable(f"This file has {len(data) / 2**20:.0f} MB; a direction has at most {LIMIT / 2**20:.0f}.")
    if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
        raise Unsuitable("This is a zip or pickle, which may run code when it is opened; save as safetensors or GGUF.")
    found = _of_gguf(data, model) if data[:4] == b"GGUF" else _of_safetensors(data, model)
    if not found.layers or list(found.layers) != sorted({each for each in found.layers if each >= 0}):
        raise Unsuitable("This file names no layers, or one of them twice; give one vector for each layer.")
    if any(each.shape != (len(found.layers),) for each in found.facts.values()):
        raise Unsuitable("What this file says of its direction is damaged; export it again.")
    found = directions.checked(replace(found, name=name.strip()[:80] or found.name))
    found.check(model)
    if "norm" not in found.facts:
        lengths = streams(model, reference_texts().texts[:TEXTS], "mean").norm(dim=2).mean(0).double()
        found = replace(found, facts={**found.facts, "norm": lengths[list(found.layers)].cpu().numpy()})
    return directions.keep(found)


def _of_safetensors(data: bytes, model: LanguageModel) -> Direction:
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise Unsuitable("This file is neither safetensors nor GGUF, or is cut off; save it again.") from None
    if "direction" in metadata:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "This file"
            path.write_bytes(data)
            return directions.read(path)
    tensors = {key: each for key, each in tensors.items() if each.dtype.kind == "f"}
    if len(tensors) == 1 and (only := next(iter(tensors.values()))).ndim == 2:
        if len(only) != model.layers:
            raise Unsuitable(f"This file has rows for {len(only)} layers; {model.name} has {model.layers}.")
        return _foreign(list(enumerate(only)), "safetensors", model)
    rows = [(_layer(key), each) for key, each in tensors.items()]
    return _foreign([(layer, each) for layer, each in rows if layer is not None], "safetensors", model)


def _layer(key: str) -> int | None:
    match = _NAMED.fullmatch(key)
    return int(match[1]) if match else None


def _of_gguf(data: bytes, model: LanguageModel) -> Direction:
    entries, tensors = read_gguf(data)
    if entries.get("general.architecture") != "controlvector":
        raise Unsuitable("This GGUF file is no control vector; choose one that repeng or llama.cpp made as such.")
    rows = [(int(key[10:]), each) for key, each in tensors if re.fullmatch(r"direction\.\d{1,4}", key)]
    if isinstance(first := entries.get("actiscope.layer_0"), list):
        rows.append((0, np.array(first, "<f4")))
    found = _foreign(rows, f"GGUF for {str(entries.get('controlvector.model_hint', ''))[:40]}", model)
    if "actiscope.direction" not in entries:
        return found
    try:
        about = json.loads(entries["actiscope.direction"])
        facts = {key.removeprefix("fact."): np.array(each, np.float64)
                 for key, each in json.loads(entries["actiscope.facts"]).items()}  # fmt: skip
        if tuple(about["layers"]) != found.layers or any(each.shape != (len(found.layers),) for each in facts.values()):
            raise ValueError
        return replace(
            found, name=str(about["name"])[:80], method=str(about["method"])[:80], model_name=str(about["model"]),
            model_digest=str(about["model_digest"]), facts=facts, about=dict(about["about"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Unsuitable("What this file says of its direction is damaged; export it again.") from None


def _foreign(rows: Sequence[tuple[int, Array]], source: str, model: LanguageModel) -> Direction:
    """A direction of vectors that someone else made; nothing is known of them but the layers."""
    if not rows:
        raise Unsuitable('This file has no vectors named by their layer, such as "direction.3".')
    rows = sorted(rows, key=lambda row: row[0])
    layers = tuple(layer for layer, _ in rows)
    if len(set(layers)) < len(layers):
        raise Unsuitable("This file has two vectors for one layer; keep one of them.")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        vectors = [np.asarray(each, np.float32) for _, each in rows]
    if any(each.shape != vectors[0].shape or each.ndim != 1 for each in vectors):
        raise Unsuitable("The vectors of this file are not rows of one width; save one row for each layer.")
    return Direction(
        f"from a file ({source})", "from a file", model.name, model.digest, layers, torch.from_numpy(np.stack(vectors))
    )


# ---------------------------------------------------------------------------------------------------------------- GGUF


def write_gguf(entries: Mapping[str, str | int | Array], tensors: Mapping[str, Array]) -> bytes:
    """A control vector in GGUF, version 3: entries (texts, whole numbers, rows of float32) and rows of float32."""
    head = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries) + 1)]
    for key, value in {"general.architecture": "controlvector", **entries}.items():
        head.append(_packed(key))
        if isinstance(value, str):
            head += [struct.pack("<I", _TEXT), _packed(value)]
        elif isinstance(value, int):
            head.append(struct.pack("<II", _UINT32, value))
        else:
            head += [struct.pack("<IIQ", _ARRAY, _FLOAT32, len(value)), value.astype("<f4").tobytes()]
    body = b""
    for key, row in tensors.items():
        head.append(_packed(key) + struct.pack("<IQIQ", 1, len(row), 0, len(body)))
        body += _filled(row.astype("<f4").tobytes())
    return _filled(b"".join(head)) + body


def _packed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


def read_gguf(data: bytes) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """The entries and tensors (float32 or float16) of a GGUF file, each bounded by the bytes that are there.

    Raises:
        Unsuitable: cut off, damaged, another version, or numbers of another type.
    """
    try:
        return _read_gguf(data)
    except (struct.error, UnicodeDecodeError, ValueError, OverflowError, MemoryError) as problem:
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable("This GGUF file is cut off or damaged; save it again.") from None


def _read_gguf(data: bytes) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    at = 4

    def taken(letters: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{letters}", data, at)
        at += struct.calcsize(f"<{letters}")
        return value

    def text() -> str:
        nonlocal at
        length = taken("Q")
        if length > len(data) - at:
            raise ValueError
        at += length
        return data[at - length : at].decode()

    def value(kind: int, inside: bool = False) -> Any:
        nonlocal at
        if kind == _TEXT:
            return text()
        if kind == _ARRAY and not inside:
            of, count = taken("I"), taken("Q")
            # no element takes less than a byte, so a count beyond the file is seen before any memory is spent on it
            if count > len(data) - at:
                raise ValueError
            if of not in _NUMBERS:
                return [value(of, True) for _ in range(count)]
            numbers = struct.unpack_from(f"<{count}{_NUMBERS[of]}", data, at)
            at += struct.calcsize(f"<{count}{_NUMBERS[of]}")
            return list(numbers)
        if kind not in _NUMBERS:
            raise ValueError
        return taken(_NUMBERS[kind])

    version = taken("I")
    if version not in (2, 3):
        raise Unsuitable("This GGUF file is of a version that is not read here; save it as version 2 or 3.")
    counts = taken("Q"), taken("Q")
    if max(counts) > MANY:
        raise Unsuitable(f"This GGUF file names {max(counts):,} tensors or entries; a control vector has few.")
    entries = {}
    for _ in range(counts[1]):
        key = text()
        entries[key] = value(taken("I"))
    places = []
    for _ in range(counts[0]):
        name, axes = text(), taken("I")
        if axes > 4:
            raise ValueError
        places.append((name, [taken("Q") for _ in range(axes)], taken("I"), taken("Q")))
    alignment = entries.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise ValueError
    start = at + -at % alignment
    tensors = []
    for name, shape, kind, offset in places:
        if kind not in _TENSORS:
            raise Unsuitable(f"The tensor {name[:40]!r} is of a type that is not read here; save it as float32.")
        wide = [size for size in shape if size != 1]
        if len(wide) > 1:
            raise Unsuitable(f"The tensor {name[:40]!r} is no single row of numbers; a control vector's are.")
        count, begin = (wide or [1])[0], start + offset
        if begin + count * _TENSORS[kind].itemsize > len(data):
            raise ValueError
        tensors.append((name, np.frombuffer(data, _TENSORS[kind], count, begin).astype(np.float32)))
    return entries, tensors
