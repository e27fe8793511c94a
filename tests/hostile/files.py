"""Hostile files beside images: directions, SAEs, safetensors, GGUF, numbers, texts, labels. `FILES[name]` is (kind, bytes)."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from base64 import urlsafe_b64encode
from typing import Any

import numpy as np
from safetensors.numpy import save

from interp.direction_files import write_gguf
from interp.results import Curve

WIDTH, LAYERS = 64, 4


def tensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of that header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def gguf(entries: int, places: int, rest: bytes, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, places, entries) + rest


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


class Runs:
    """What runs a program when it is unpickled."""

    def __reduce__(self) -> Any:
        return __import__("os").system, ("touch /tmp/actiscope-was-run",)


PICKLE = pickle.dumps(Runs())


def zipped(members: dict[str, bytes], claim: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    data = buffer.getvalue()
    return (
        data.replace(struct.pack("<I", len(next(iter(members.values())))), struct.pack("<I", claim)) if claim else data
    )


def npy(shape: tuple[int, ...], kind: str = "<f8", body: bytes = b"") -> bytes:
    head = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


ROW = np.ones(WIDTH, np.float32)
GOOD = {f"direction.{n}": ROW for n in range(LAYERS)}
_SHAPE = {"dtype": "F32", "shape": [WIDTH], "data_offsets": [0, 4 * WIDTH]}
_ABOUT = {
    "version": 1,
    "name": "x",
    "method": "m",
    "model": "stories",
    "model_digest": "",
    "layers": list(range(LAYERS)),
    "about": {},
}


def own(**change: Any) -> bytes:
    """A file of our own whose words say something else."""
    return save({"vectors": np.ones((LAYERS, WIDTH), np.float32)}, {"direction": json.dumps({**_ABOUT, **change})})


DIRECTIONS = {
    "nothing": b"", "zeros": bytes(10_000), "pickle": PICKLE, "zip": zipped({"a": b"b"}), "text": b"hello", "header alone": tensors({}),
    "header of 2^63": tensors({}, length=2**63), "header of 2^64 - 1": tensors({}, length=2**64 - 1), "header longer than the file": tensors({}, length=10**6),
    "header of rubbish": tensors(b"\xff" * 1000), "header of a list": tensors([]), "header that nests": tensors(b'{"a":' * 50_000),
    "metadata that nests": tensors(b'{"__metadata__":{"direction":"' + b"[" * 50_000 + b'"}}'), "offsets beyond": tensors({"direction.1": {**_SHAPE, "data_offsets": [0, 10**12]}}),
    "offsets backwards": tensors({"direction.1": {**_SHAPE, "data_offsets": [256, 0]}}, bytes(256)), "offsets that overlap": tensors({f"direction.{n}": _SHAPE for n in range(4)}, bytes(256)),
    "negative shape": tensors({"direction.1": {**_SHAPE, "shape": [-1]}}, bytes(256)), "shape of 2^60": tensors({"direction.1": {**_SHAPE, "shape": [2**60, 2**60]}}, bytes(256)),
    "shape of nothing": tensors({"direction.1": {**_SHAPE, "shape": [0], "data_offsets": [0, 0]}}), "unknown type": tensors({"direction.1": {**_SHAPE, "dtype": "F7"}}, bytes(256)),
    "bfloat": tensors({"direction.1": {**_SHAPE, "dtype": "BF16", "data_offsets": [0, 128]}}, bytes(128)), "float8": tensors({"direction.1": {**_SHAPE, "dtype": "F8_E4M3", "data_offsets": [0, 64]}}, bytes(64)),
    "no numbers": save({"direction.1": ROW.astype(np.int64)}), "not finite": save({f"direction.{n}": ROW * np.inf for n in range(4)}), "beyond float32": save({f"direction.{n}": ROW.astype(np.float64) * 1e300 for n in range(4)}),
    "zero": save({f"direction.{n}": 0 * ROW for n in range(4)}), "other widths": save({"direction.1": ROW, "direction.2": ROW[:3]}), "layer 9999": save({"direction.9999": ROW}),
    "layers twice": save({"a.1": ROW, "b.1": ROW}), "ten thousand tensors": save({f"x{n}": ROW[:1] for n in range(10_000)}), "name of markup": save({"<img src=x>.1": ROW}),
    "arabic digits": save({"direction.١": ROW}), "one matrix of nothing": save({"v": np.zeros((0, 0), np.float32)}), "one matrix of many": save({"v": np.zeros((10**5, 1), np.float32)}),
    "own: version of text": own(version="x"), "own: layers of infinity": own(layers=[float("inf")] * 4), "own: layers of text": own(layers=["a"] * 4), "own: layers of 10^400": own(layers=[10**400] * 4),
    "own: layers negative": own(layers=[-1, 0, 1, 2]), "own: layers of null": own(layers=None), "own: about of a list": own(about=[1]), "own: name of a list": own(name=[1] * 9999),
    "own: name of a megabyte": own(name="x" * 2**20), "own: name of markup": own(name="<img src=x onerror=alert(1)>"), "own: digest of a list": own(model_digest=[1]), "own: surrogates": own(name="\ud800"),
    "own: facts of nothing": save({"vectors": np.ones((4, WIDTH), np.float32), "fact.accuracy": np.zeros(0)}, {"direction": json.dumps(_ABOUT)}),
    "own: facts of shapes": save({"vectors": np.ones((4, WIDTH), np.float32), "fact.norm": np.zeros((4, 4))}, {"direction": json.dumps(_ABOUT)}),
    "own: no vectors": save({"x": ROW}, {"direction": json.dumps(_ABOUT)}), "own: words that nest": save({"vectors": np.ones((4, WIDTH), np.float32)}, {"direction": "[" * 50_000}),
    "own: digits": save({"vectors": np.ones((4, WIDTH), np.float32)}, {"direction": "9" * 9999}), "own: vectors of three axes": save({"vectors": np.ones((4, 2, 2), np.float32)}, {"direction": json.dumps(_ABOUT)}),
    "gguf: magic": b"GGUF", "gguf: version 1": gguf(0, 0, b"", 1), "gguf: version 2^32": gguf(0, 0, b"", 2**32 - 1), "gguf: 2^64 entries": gguf(2**64 - 1, 0, b""), "gguf: 2^64 tensors": gguf(0, 2**64 - 1, b""),
    "gguf: text of 2^64": gguf(1, 0, text("a", 2**64 - 1)), "gguf: unknown type": gguf(1, 0, text("a") + struct.pack("<I", 99)), "gguf: array of 2^60": gguf(1, 0, text("a") + struct.pack("<IIQ", 9, 0, 2**60)),
    "gguf: arrays in arrays": gguf(1, 0, text("a") + struct.pack("<IIQ", 9, 9, 1) * 1000), "gguf: texts of nothing": gguf(1, 0, text("a") + struct.pack("<IIQ", 9, 8, 10**6) + bytes(8 * 10**6)),
    "gguf: no utf-8": gguf(1, 0, text(b"\xff\xfe") + struct.pack("<II", 4, 1)), "gguf: architecture of a number": gguf(1, 0, text("general.architecture") + struct.pack("<II", 4, 1)),
    "gguf: alignment 0": write_gguf({"general.alignment": 0}, GOOD), "gguf: alignment 2^31": write_gguf({"general.alignment": 2**31}, GOOD), "gguf: thousands of entries": write_gguf({f"k{n}": n for n in range(2000)}, GOOD),
    "gguf: hint of a megabyte": write_gguf({"controlvector.model_hint": "x" * 2**20}, GOOD), "gguf: facts that nest": write_gguf({"actiscope.direction": "{}", "actiscope.facts": "[" * 50_000}, GOOD),
    "gguf: facts of 10^400": write_gguf({"actiscope.direction": json.dumps(_ABOUT), "actiscope.facts": json.dumps({"fact.norm": [10**400] * 4})}, GOOD),
    "gguf: facts of objects": write_gguf({"actiscope.direction": json.dumps(_ABOUT), "actiscope.facts": '{"fact.norm":{"a":1}}'}, GOOD), "gguf: words of a list": write_gguf({"actiscope.direction": "[]", "actiscope.facts": "{}"}, GOOD),
    "gguf: tensor beyond": gguf(0, 1, text("direction.1") + struct.pack("<IQIQ", 1, WIDTH, 0, 2**63)), "gguf: axes of 2^32": gguf(0, 1, text("direction.1") + struct.pack("<I", 2**32 - 1)),
    "gguf: quantised": gguf(0, 1, text("direction.1") + struct.pack("<IQIQ", 1, WIDTH, 12, 0) + bytes(999)), "gguf: cut off": write_gguf({}, GOOD)[:-100],
    "gguf: layer 0 of texts": write_gguf({"actiscope.layer_0": "x"}, GOOD),
}  # fmt: skip

_CFG = {"architecture": "standard", "d_in": 8, "d_sae": 16, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
_WEIGHTS = {
    "W_enc": np.ones((8, 16), np.float32),
    "W_dec": np.ones((16, 8), np.float32),
    "b_enc": np.zeros(16, np.float32),
    "b_dec": np.zeros(8, np.float32),
}


def sae(config: Any = None, weights: bytes | None = None, **names: bytes) -> dict[str, bytes]:
    """The files of an SAE's folder."""
    text = config if isinstance(config, bytes) else json.dumps({**_CFG, **(config or {})}).encode()
    return {"cfg.json": text, "sae_weights.safetensors": save(_WEIGHTS) if weights is None else weights} | names


SAES = {
    "pickle": {"cfg.json": json.dumps(_CFG).encode(), "sae_weights.pt": PICKLE}, "pickle by another name": sae(weights=PICKLE), "nothing": {}, "no weights": {"cfg.json": b"{}"},
    "configuration that nests": sae(b'{"a":' * 50_000), "configuration of 2 MB": sae(b" " * 2**21), "configuration of digits": sae(b'{"d_in":' + b"9" * 9999 + b"}"), "no utf-8": sae(b"\xff\xfe{}"),
    "widths of 2^62": sae({"d_in": 2**62, "d_sae": 2**62}), "widths of floats": sae({"d_in": 8.5}), "widths of infinity": sae(b'{"architecture":"standard","d_in":Infinity,"d_sae":1e999}'), "negative widths": sae({"d_in": -8}),
    "a threshold of infinity": sae({"architecture": "matching_pursuit", "residual_threshold": "x"}), "iterations of 10^9": sae({"architecture": "matching_pursuit", "max_iterations": 10**9}), "k of 10^9": sae({"architecture": "topk", "k": 10**9}),
    "architecture of a list": sae({"architecture": ["standard"]}), "architecture of markup": sae({"architecture": "<img src=x>" * 999}), "a hook of a path": sae({"metadata": {"hook_name": "../../etc/passwd"}}),
    "a hook of a megabyte": sae({"metadata": {"hook_name": "a" * 900_000}}), "metadata of a list": sae({"metadata": [1]}), "metadata that nests": sae({"metadata": {"a": json.loads("[" * 400 + "]" * 400)}}),
    "header of 2^63": sae(weights=tensors({}, length=2**63)), "weights not finite": sae(weights=save(_WEIGHTS | {"b_dec": np.full(8, np.nan, np.float32)})), "weights of other shapes": sae(weights=save(_WEIGHTS | {"W_enc": np.ones((16, 8), np.float32)})),
    "weights of whole numbers": sae(weights=save({k: v.astype(np.int64) for k, v in _WEIGHTS.items()})), "ten thousand weights": sae(weights=save(_WEIGHTS | {f"x{n}": np.zeros(1) for n in range(10_000)})),
    "a name of a path": sae(**{"../../../../tmp/actiscope-escaped": b"x"}), "a name of NUL": sae(**{"a\x00b": b"x"}), "a long name": sae(**{"n" * 5000: b"x"}), "an empty name": sae(**{"": b"x"}), "a name of dots": sae(**{"..": b"x"}),
}  # fmt: skip

NUMBERS = {
    "nothing": b"", "pickle": PICKLE, "zip of nothing": zipped({}), "no archive": b"PK\x03\x04" + bytes(999), "object array": zipped({"a.npy": npy((1,), "|O", PICKLE)}),
    "a claim of 10 GB": zipped({"a.npy": npy((10**9, 10), "<f8")}), "a claim of 2^62": zipped({"a.npy": npy((2**31, 2**31))}), "a negative shape": zipped({"a.npy": npy((-1,))}),
    "a bomb": zipped({"a.npy": npy((10**8,), "|u1", bytes(10**8))}), "a member of a path": zipped({"../../x.npy": npy((1,), "<f8", bytes(8))}), "thousands of members": zipped({f"{n}.npy": npy((1,), "<f8", bytes(8)) for n in range(5000)}),
    "members twice": zipped({"a.npy": npy((1,), "<f8", bytes(8)), "a": b"x"}), "header of rubbish": zipped({"a.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}), "header that runs": zipped({"a.npy": b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('x')".ljust(64)}),
    "a type of structures": zipped({"a.npy": npy((1,), "[('a','<f8')]", bytes(8))}), "a type of texts": zipped({"a.npy": npy((10**9,), "<U1")}), "lied sizes": zipped({"a.npy": npy((100,), "<f8", bytes(800))}, claim=2**31 - 1),
    "good": Curve(np.zeros(3), np.zeros((1, 3)), ("a",)).to_npz(),
}  # fmt: skip

_EXPERIMENT = '{"interventions":[],"lens":{"method":"logit_lens","settings":{},"version":1},"model":"stories","prompt":"a","v":"1"}'
SNAPSHOT: dict[str, Any] = {
    "v": 1, "experiment": _EXPERIMENT, "view": {}, "title": "", "weights": "", "numbers": "", "kind": "TokenGrid", "places": {}, "parts": [],
}  # fmt: skip
SNAPSHOTS: dict[str, dict[str, Any]] = {
    "good": {}, "version 2": {"v": 2}, "version of a list": {"v": []}, "no experiment": {"experiment": ""}, "experiment of a list": {"experiment": []}, "experiment that nests": {"experiment": "[" * 50_000},
    "experiment of a path": {"experiment": _EXPERIMENT.replace("stories", "/etc")}, "experiment of an upload": {"experiment": _EXPERIMENT.replace('"prompt":"a"', '"image":"sha256:../x"')},
    "view of a list": {"view": []}, "view of numbers": {"view": {"a": [1]}}, "view of markup": {"view": {"second": ["<img src=x>"]}}, "view of many": {"view": {f"k{n}": ["x"] for n in range(3000)}},
    "title of a list": {"title": [1]}, "title of a kilobyte": {"title": "x" * 1000}, "title of markup": {"title": "<script>alert(1)</script>"}, "places of a path": {"places": {"../../x": "0" * 64}},
    "places of absolute": {"places": {"/tmp/actiscope-escaped": "0" * 64}}, "places outside": {"places": {"directions/../../x.safetensors": "0" * 64}}, "a place that is not there": {"places": {f"directions/{'0' * 64}.safetensors": "0" * 64}},
    "places of a list": {"places": ["a"]}, "places without digests": {"places": {f"directions/{'0' * 64}.safetensors": "x"}}, "parts of a path": {"parts": ["../../etc/passwd"]}, "parts of numbers": {"parts": [1]},
    "numbers of a path": {"numbers": "../x"}, "numbers elsewhere": {"numbers": "0" * 64}, "kind of a list": {"kind": []}, "kind of dunder": {"kind": "__class__"}, "weights of others": {"weights": "x" * 9999},
}  # fmt: skip

TEXTS = {
    "nothing": b"", "blank": b"\n\n\n \n", "no utf-8": b"\xff\xfe\x00a\n", "NUL": b"a\x00b\n", "surrogates": b'"\\ud800"\n', "bare surrogates": b"\xed\xa0\x80\n", "nest": b"[" * 100_000 + b"\n", "digits": b"9" * 10_000 + b"\n",
    "objects": b'{"text": 5}\n', "lists": b'["a"]\n', "null": b"null\n", "one line of 9 MB": b'"' + b"a " * 4_500_000 + b'"\n', "hundred thousand lines": b'"a"\n' * 100_000, "infinity": b"1e999\n", "cut off": b'{"text": "a',
    "keys twice": b'{"text": 1, "text": "a"}\n', "markup": b'"<script>alert(1)</script>"\n', "a gzip": zlib.compress(bytes(10_000)), "a pickle": PICKLE, "line ends of all kinds": "\"a\"\u2028\"b\"\x0b\x0c\r\n".encode(),
}  # fmt: skip

LABELS = {
    "nothing": b"", "a list": b"[]", "nest": b"[" * 100_000, "digits": b'{"stories/resid_post.2":{"' + b"9" * 9999 + b'":["a","b"]}}', "a path": b'{"../../etc":{"1":["a","b"]}}', "numbers": b'{"stories/resid_post.2":{"1":[1,2]}}',
    "negative": b'{"stories/resid_post.2":{"-1":["a","b"]}}', "three": b'{"stories/resid_post.2":{"1":["a","b","c"]}}', "text": b'{"stories/resid_post.2":{"1":"ab"}}', "no utf-8": b"\xff", "surrogates": b'{"stories/resid_post.2":{"1":["\\ud800","x"]}}',
    "a megabyte": b'{"stories/resid_post.2":{"1":["' + b"x" * 2**20 + b'",""]}}', "infinity": b'{"stories/resid_post.2":{"1e999":["a","b"]}}', "null": b"null", "many": json.dumps({"stories/resid_post.2": {str(n): ["a", "b"] for n in range(50_000)}}).encode(),
}  # fmt: skip

PACKED = {
    "nothing": "", "rubbish": "!!!!", "not base64": "é" * 99, "surrogates": "\ud800", "no zlib": "AAAA", "long": "A" * 10**6,
    "a bomb": urlsafe_b64encode(zlib.compress(bytes(10**7), 9)).decode(), "cut off": urlsafe_b64encode(zlib.compress(b"{}"))[:5].decode(),
    "nest": urlsafe_b64encode(zlib.compress(b"[" * 100_000)).decode(),
}  # fmt: skip
