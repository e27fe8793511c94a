"""Directions: what a file has to be like, how they are found, and the way out to files and back."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from interp import Missing, Unsuitable, direction_files, directions
from interp.direction_files import exported, imported, read_gguf, write_gguf
from interp.directions import Direction
from interp.methods.steering.difference_of_means import difference_of_means
from tests import tiny

GOLDEN = bytes.fromhex(
    "474755460300000002000000000000000300000000000000140000000000000067656e6572616c2e617263686974656374757265080000000d"
    "00000000000000636f6e74726f6c766563746f721800000000000000636f6e74726f6c766563746f722e6d6f64656c5f68696e740800000004"
    "00000000000000677074321900000000000000636f6e74726f6c766563746f722e6c617965725f636f756e7404000000020000000b00000000"
    "000000646972656374696f6e2e310100000003000000000000000000000000000000000000000b00000000000000646972656374696f6e2e32"
    "010000000300000000000000000000002000000000000000000000000000803f000020c00000003e0000000000000000000000000000000000"
    "0000000000000000004040000000bf0000000000000000000000000000000000000000"
)
"""What the package `gguf` 0.19 writes, called as repeng calls it: (1, -2.5, .125) after layer 1, (0, 3, -.5) after
2."""


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def fitted(family: str = "gpt2") -> Direction:
    model = tiny.language(family)
    return directions.load(difference_of_means(model, tiny.two_sides()), model)


def vectors(layers: int = 3, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(layers, width)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------- what it knows


def test_the_best_layer_is_the_first_of_the_most_accurate_and_the_middle_one_where_none_is_known() -> None:
    v = torch.ones(4, 2)
    known = Direction("a", "m", "", "", (2, 3, 5, 7), v, {"accuracy": np.array([0.5, 0.9, 0.9, np.nan])})
    assert known.best == 3
    assert Direction("a", "m", "", "", (2, 3, 5, 7), v).best == 5
    assert Direction("a", "m", "", "", (2,), v[:1], {"accuracy": np.array([np.nan])}).best == 2


def test_the_score_is_0_at_the_mean_of_the_negative_examples_and_1_at_that_of_the_positive_ones() -> None:
    v = torch.tensor([[3.0, 4.0]])
    plus, minus = torch.tensor([5.0, 1.0]), torch.tensor([-2.0, 0.5])
    facts = {name: np.array([float(each @ v[0]) / 25]) for name, each in (("low", minus), ("high", plus))}
    direction = Direction("a", "m", "", "", (1,), v, facts)
    got = direction.score(torch.stack([minus, plus, (minus + plus) / 2, plus + torch.tensor([-4.0, 3.0])]))
    assert torch.allclose(got, torch.tensor([0.0, 1.0, 0.5, 1.0]), atol=1e-6)
    with pytest.raises(Unsuitable, match="knows no examples"):
        Direction("a", "m", "", "", (1,), v).score(plus)


def test_a_layer_it_is_not_known_at_is_refused_by_name() -> None:
    direction = Direction("a", "m", "", "", (1, 2), torch.ones(2, 2))
    with pytest.raises(Unsuitable, match="layers 1 to 2, not after layer 0"):
        direction.at(0)


# --------------------------------------------------------------------------------------------------------------- store


def test_a_direction_is_found_again_as_it_was_kept_and_its_key_names_its_content() -> None:
    model = tiny.language("gpt2")
    made = Direction("mine", "by hand", model.name, model.digest, (0, 2), torch.from_numpy(vectors(2)),
                     {"accuracy": np.array([0.25, np.nan])}, {"token": "last"})  # fmt: skip
    key = directions.keep(made)
    found = directions.load(key, model)
    assert torch.equal(found.vectors, made.vectors) and found.layers == (0, 2) and found.about == {"token": "last"}
    assert np.array_equal(found.facts["accuracy"], made.facts["accuracy"], equal_nan=True)
    assert directions.keep(made) == key and [each.key for each in directions.available(model)] == [key]
    other = Direction("mine", "by hand", model.name, model.digest, (0, 2), -made.vectors, made.facts, made.about)
    assert directions.keep(other) != key


def test_each_defect_of_a_direction_gets_one_sentence() -> None:
    model, other = tiny.language("gpt2"), tiny.language("llama")
    key = difference_of_means(model, tiny.two_sides())
    with pytest.raises(Unsuitable, match="made for other weights"):
        directions.load(key, other)
    for name in ("0" * 64, "../../etc/passwd", "a/../b", "shelf/none", "x" * 300):
        with pytest.raises(Missing, match="not kept here"):
            directions.load(name, model)
    with pytest.raises(Unsuitable, match="There is no direction for"):
        directions.load("", other)
    v = torch.from_numpy(vectors())
    for wrong, says in (
        (Direction("a", "m", "", model.digest, (0, 1, 2), torch.full_like(v, float("nan"))), "not finite"),
        (Direction("a", "m", "", model.digest, (0, 1, 2), v * torch.tensor([[1.0], [0.0], [1.0]])), "zero at some"),
    ):
        with pytest.raises(Unsuitable, match=says):
            directions.keep(wrong)
    for wrong, says in (
        (Direction("a", "m", "", model.digest, (0,), torch.ones(1, 5)), "is 5 numbers wide"),
        (Direction("a", "m", "", model.digest, (3,), torch.ones(1, 16)), "has layers 0 to 2"),
    ):
        with pytest.raises(Unsuitable, match=says):
            wrong.check(model)


def test_a_damaged_file_of_the_store_is_passed_over() -> None:
    model = tiny.language("gpt2")
    key = difference_of_means(model, tiny.two_sides())
    path = directions.folder() / f"{key}.safetensors"
    (directions.folder() / f"{'f' * 64}.safetensors").write_bytes(path.read_bytes()[:-9])
    assert [each.key for each in directions.available(model)] == [key]
    with pytest.raises(Unsuitable, match="damaged"):
        directions.load("f" * 64, model)


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_direction_survives_export_and_import_bit_for_bit(kind: direction_files.Kind, family: str) -> None:
    model, direction = tiny.language(family), fitted(family)
    data = exported(direction, kind)
    found = directions.load(imported(data, "", model), model)
    assert found.vectors.numpy().tobytes() == direction.vectors.numpy().tobytes()
    assert (found.name, found.method, found.layers) == (direction.name, direction.method, direction.layers)
    assert found.about == direction.about and found.facts.keys() == direction.facts.keys()
    for name, each in direction.facts.items():
        assert found.facts[name].tobytes() == each.tobytes(), name
    assert exported(found, kind) == data
    assert directions.load(imported(data, "another name", model), model).name == "another name"


@pytest.mark.parametrize("layers", [(0,), (2,), (0, 2), (1, 2)])
def test_any_layers_survive_and_llama_cpp_is_never_given_a_layer_0_beside_others(layers: tuple[int, ...]) -> None:
    model = tiny.language("gpt2")
    made = Direction("a", "m", model.name, model.digest, layers, torch.from_numpy(vectors(len(layers))),
                     {"norm": np.full(len(layers), np.nan)})  # fmt: skip
    data = exported(made, "gguf")
    names = [name for name, _ in read_gguf(data)[1]]
    assert names == ([f"direction.{each}" for each in layers if each] or ["direction.0"])
    found = directions.load(imported(data, "", model), model)
    assert found.layers == layers and torch.equal(found.vectors, made.vectors)


def test_gguf_is_written_and_read_as_the_gguf_package_does() -> None:
    rows = {"direction.1": np.array([1, -2.5, 0.125], "<f4"), "direction.2": np.array([0, 3, -0.5], "<f4")}
    assert write_gguf({"controlvector.model_hint": "gpt2", "controlvector.layer_count": 2}, rows) == GOLDEN
    entries, tensors = read_gguf(GOLDEN)
    assert entries == {"general.architecture": "controlvector", "controlvector.model_hint": "gpt2",
                       "controlvector.layer_count": 2}  # fmt: skip
    assert [name for name, _ in tensors] == list(rows)
    assert all(np.array_equal(each, rows[name]) for name, each in tensors)


def test_control_vectors_of_others_lie_after_the_layers_they_are_named_by() -> None:
    model, v = tiny.language("gpt2"), vectors()
    files = {
        "gguf": write_gguf({"controlvector.model_hint": "gpt2"}, {"direction.1": v[1], "direction.2": v[2]}),
        "by layer": save({"layers.1": v[1], "direction_2": v[2].astype(np.float64)}),
    }
    for data in files.values():
        found = directions.load(imported(data, "mine", model), model)
        assert found.layers == (1, 2) and np.array_equal(found.vectors.numpy(), v[1:]) and found.name == "mine"
        assert np.isfinite(found.facts["norm"]).all(), "so that a strength in mean lengths is known"
    whole = directions.load(imported(save({"vector": v}), "", model), model)
    assert whole.layers == (0, 1, 2) and np.array_equal(whole.vectors.numpy(), v)


def _changed(entries: dict[str, object]) -> bytes:
    """A safetensors file of ours that says something else of itself."""
    arrays, metadata = directions.to_bytes(fitted())
    return save(arrays, {"direction": json.dumps(json.loads(metadata["direction"]) | entries)})


def test_each_defect_of_a_file_gets_one_sentence() -> None:
    model, v = tiny.language("gpt2"), vectors()
    nan = v[1].copy()
    nan[3] = np.nan
    gguf = exported(fitted(), "gguf")
    counted = gguf[:8] + struct.pack("<Q", 2**60) + gguf[16:]
    long_text = GOLDEN[:24] + struct.pack("<Q", 2**62) + GOLDEN[32:]
    array = struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 6, 2**61)
    twice = GOLDEN.replace(b"direction.2", b"direction.1")
    defects = {
        b"": "neither safetensors nor GGUF",
        b"{}": "neither safetensors nor GGUF",
        b"PK\x03\x04" + bytes(40): "zip or pickle",
        b"\x80\x02}q\x00.": "zip or pickle",
        b"GGUF": "cut off or damaged",
        gguf[:-40]: "cut off or damaged",
        gguf[:100]: "cut off or damaged",
        exported(fitted(), "safetensors")[:-8]: "neither safetensors nor GGUF",
        counted: "names 1,152,921,504,606,846,976 tensors",
        long_text: "cut off or damaged",
        array: "cut off or damaged",
        b"GGUF\x00\x00\x00\x03" + GOLDEN[8:]: "of a version",
        twice: "two vectors for one layer",
        GOLDEN: "is 3 numbers wide",
        GOLDEN.replace(b"controlvector\x18", b"clip.vision.x\x18"): "is no control vector",
        write_gguf({}, {}): "no vectors named by their layer",
        write_gguf({}, {"direction.1": nan}): "not finite",
        write_gguf({}, {"direction.1": v[1], "direction.2": v[2][:9]}): "rows of one width",
        write_gguf({}, {"direction.9": v[1]}): "has layers 0 to 2",
        save({"direction.1": v[1] * 0}): "zero at some layer",
        save({"direction.1": v[1].astype(np.float64) * 1e60}): "not finite",
        save({"direction.1": v[1], "again.1": v[2]}): "two vectors for one layer",
        save({"weights": np.zeros((7, 16), np.float32)}): "rows for 7 layers",
        save({"bias": v[1]}): "no vectors named by their layer",
        save({"direction.1": np.arange(16)}): "no vectors named by their layer",
        _changed({"layers": [0, 0, 1]}): "one of them twice",
        _changed({"layers": [0, 1]}): "damaged",
        _changed({"model_digest": "0" * 64}): "made for other weights",
        exported(fitted("llama"), "gguf"): "made for other weights",
    }
    before = {each.key for each in directions.available(model)}
    for data, says in defects.items():
        with pytest.raises(Unsuitable, match=says) as told:
            imported(data, "", model)
        assert len(str(told.value)) < 250 and str(told.value).endswith(".")
    assert {each.key for each in directions.available(model)} == before
    with pytest.raises(Unsuitable, match="a direction has at most 64"):
        imported(bytes(direction_files.LIMIT + 1), "", model)


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_bytes_changed_at_random_make_a_direction_or_a_sentence(kind: direction_files.Kind) -> None:
    model, data, chance = tiny.language("gpt2"), exported(fitted(), kind), random.Random(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(min(len(broken), 1200))] = chance.randrange(256)
        try:
            directions.load(imported(bytes(broken), "", model), model)
        except Unsuitable:
            refused += 1
    assert 50 < refused < 300
