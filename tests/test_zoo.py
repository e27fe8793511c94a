"""What can be loaded, and what is refused with a sentence: folders and the shelf."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pickle
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers as T
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from interp import Missing, Unsuitable, progress, settings, zoo
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.model import LanguageModel, VisionModel
from interp.progress import Cancelled, watch
from interp.samples import Image, Prompt
from tests import tiny
from tests.test_model import IDS, MORE, language


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "_loaded", type(zoo._loaded)())
    monkeypatch.setattr(zoo, "_alive", type(zoo._alive)())
    monkeypatch.setattr(zoo, "_folders", {})


def save(folder: Path, family: str = "resnet", **options: Any) -> Path:
    """A folder as save_pretrained writes it."""
    model = tiny.vision(family) if family in tiny.VISION else language(family)
    implementation = model._network.config._attn_implementation
    network = type(model._network)(model._network.config)  # without our attention function in the configuration
    network.load_state_dict(model._network.state_dict())
    network.config._attn_implementation = implementation.removeprefix("actiscope_")
    network.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)
    model._network.config._attn_implementation = implementation
    if isinstance(model, VisionModel):
        model.processor.save_pretrained(folder)
    else:
        model.tokenizer.save_pretrained(folder)
    return folder


def refused(name: str | Path) -> str:
    start = time.monotonic()
    with pytest.raises(Unsuitable) as reason:
        zoo.load(str(name))
    text = str(reason.value)
    assert "\n" not in text and 20 < len(text) < 400, text
    assert time.monotonic() - start < 10
    return text


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("family", [*tiny.VISION, *tiny.LANGUAGE, *(each for each in MORE if each in zoo.LANGUAGE)])
def test_every_family_comes_back_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model: Any = tiny.vision(family) if family in tiny.VISION else language(family)
    given: Any = tiny.image() if family in tiny.VISION else IDS
    folder = str(save(tmp_path / family, family))
    state = torch.get_rng_state()
    loaded = zoo.load(folder)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    assert torch.equal(loaded(given), model(given)) and loaded.sites() == model.sites()
    assert loaded.digest == model.digest and loaded.dtype == torch.float32 and loaded.name == family
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters()) and not loaded.network.training
    if isinstance(loaded, VisionModel):
        assert loaded.labels == tiny.CLASSES
    else:
        assert isinstance(loaded, LanguageModel) and loaded.tokens("ab") == ["a", "b"]


def test_weights_stored_in_half_precision(tmp_path: Path) -> None:
    loaded = zoo.load(str(save(tmp_path / "half", dtype=torch.float16)))
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded(tiny.image()), tiny.vision("resnet")(tiny.image()), rtol=2e-2, atol=2e-2)
    other = zoo.load(str(tmp_path / "half"), dtype=torch.bfloat16)
    assert other.dtype == torch.bfloat16 and other is not loaded
    assert zoo.load(str(tmp_path / "half")) is loaded


def test_sharded_weights(tmp_path: Path) -> None:
    folder = save(tmp_path / "shards", max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert torch.equal(zoo.load(str(folder))(tiny.image()), tiny.vision("resnet")(tiny.image()))


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


def test_pickled_weights_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    folder = save(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
        assert "pickle" in refused(folder) and name in refused(folder)
        (folder / name).unlink()
    assert not (tmp_path / "sprung").exists()
    assert "no weights" in refused(folder)


def test_folders_that_lack_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = save(tmp_path / "whole")

    def without(name: str) -> Path:
        folder = tmp_path / f"without {name}"
        shutil.copytree(whole, folder)
        (folder / name).unlink()
        return folder

    assert "config.json" in refused(without("config.json"))
    assert "image processor" in refused(without("preprocessor_config.json"))
    assert "no weights" in refused(without("model.safetensors"))
    text = save(tmp_path / "text", "gpt2")
    for path in text.glob("token*"):
        path.unlink()
    assert "tokenizer" in refused(text)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in refused(empty)
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, model_bytes=1000))
    assert "too large" in refused(whole) and "1000 bytes" in refused(whole)


def test_a_network_without_its_classifier(tmp_path: Path) -> None:
    folder = save(tmp_path / "vit", "vit")
    T.ViTModel.from_pretrained(folder).save_pretrained(folder)
    assert "classifier" in refused(folder)


def test_other_kinds_of_model_and_damaged_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())

    def configured(change: Any) -> str:
        (folder / "config.json").write_text(change if isinstance(change, str) else json.dumps({**config, **change}))
        return refused(folder)

    assert "bert" in configured({"model_type": "bert"})
    assert "(gptq)" in configured({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "(bitsandbytes)" in configured({"quantization_config": {"load_in_8bit": True}})
    assert "code of its own" in configured({"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"})
    for change in (
        {"model_type": "no-such-type"},
        {"model_type": 3},
        {"model_type": None},
        {"hidden_sizes": "x"},
        {"hidden_sizes": [16, 16]},
        {"depths": [1, 5]},
        {"num_channels": -1},
        {"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"},
        "",
        "{",
        "[]",
        "null",
        "3",
        '"x"',
    ):
        configured(change)
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", b"x", weights[:100], weights[: len(weights) // 2], b"\xff" * 100, pickle.dumps(3)):
        (folder / "model.safetensors").write_bytes(damaged)
        assert "weights" in refused(folder)
    (folder / "model.safetensors").write_bytes(weights)
    for damaged in (b"", b"{", b"[]", b'{"image_processor_type": "NoSuchProcessor"}'):
        (folder / "preprocessor_config.json").write_bytes(damaged)
        refused(folder)
    (folder / "preprocessor_config.json").write_text("{}")


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..",
        "../..",
        "/no/such",
        "a/b/c",
        "a//b",
        "owner/na me",
        "owner/name@",
        "owner/name@../x",
        "owner/..",
        "~nobody/x",
        "a\0b",
        "x" * 5000,
        "owner/" + "x" * 200,
        "https://example.org/model",
        "file:///etc",
        "owner\\name",
        "-x/y",
        "owner/-x",
        "owner/name.",
        "owner--x/name",
        "owner/name\n",
        "日本/語",
    ],
)
def test_names_that_cannot_be(name: str) -> None:
    refused(name)


def test_local_names_stand_for_folders_loaded_here(tmp_path: Path) -> None:
    folder = save(tmp_path / "mine")
    assert not zoo.shared_name("owner/name").startswith("local:")
    name = zoo.shared_name(str(folder))
    assert name.startswith("local:") and len(name) == 22 and zoo.shared_name(name) == name
    assert zoo.load(name) is zoo.load(str(folder)) is zoo.load(str(folder / "." / ".." / "mine"))
    experiment = Experiment(str(folder), Image.of(tiny.image().picture), Call("grad_cam"))
    assert name.split(":")[1] in experiment.to_url() and str(tmp_path) not in experiment.to_url()
    twin = shutil.copytree(folder, tmp_path / "twin")
    assert zoo.shared_name(str(twin)) == name
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert zoo.shared_name(str(twin)) != name  # the same weights under other labels are another model
    with pytest.raises(Missing):
        zoo.load("local:0123456789abcdef")


# ------------------------------------------------------------------------------------------------------------- loading


def test_few_models_are_kept_and_the_last_used_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, models=2))
    first, second, third = (str(save(tmp_path / family, family)) for family in ("resnet", "vit", "swin"))
    one, two = zoo.load(first), zoo.load(second)
    assert zoo.load(first) is one
    zoo.load(third)
    assert len(zoo._loaded) == 2 and zoo.load(first) is one
    assert zoo.load(second) is two, "loaded a second time while the first is in use"
    gone = weakref.ref(two)
    del two
    zoo.load(first), zoo.load(third)
    assert zoo.drop_unused() == 1 and gone() is None and zoo.load(second).sites()


def in_use(model: Any) -> list[Any]:
    """Look into a model in many ways, so that captures, plans and clones of it have been made."""
    sample = Image.of(tiny.image().picture) if isinstance(model, VisionModel) else Prompt("abc")
    found = []
    for key, method in METHODS.items():
        fits = type(sample) in method.samples and not method.refuses(model)
        if method.kind == "lens" and method.family in ("cam", "attribution", "reading") and fits:
            with contextlib.suppress(Unsuitable, Cancelled), watch(seconds=5):
                found.append(METHODS[key](model, sample))
    with model.swap(
        {name: torch.zeros_like(weight) for name, weight in [next(iter(model.network.named_parameters()))]}
    ):
        model(sample)
    return found


@pytest.mark.parametrize("family", ["vit", "gpt2"])
def test_nothing_keeps_a_model_that_was_dropped(family: str, tmp_path: Path) -> None:
    """Neither captures, nor plans, nor results, nor what transformers keeps."""
    folder = str(save(tmp_path / family, family))
    model = zoo.load(folder)
    results = in_use(model)
    network, weight = weakref.ref(model.network), weakref.ref(next(model.network.parameters()))
    assert zoo.drop_unused() == 0 and zoo.load(folder) is model, "in use"
    gone = weakref.ref(model)
    del model
    assert len(results) > 5 and zoo.drop_unused() == 1
    assert gone() is None and network() is None and weight() is None and not zoo._loaded


def test_a_model_that_is_dropped_in_the_middle_of_a_run_goes_on(tmp_path: Path) -> None:
    folder, other = (str(save(tmp_path / family, family)) for family in ("gpt2", "llama"))
    model, wanted = zoo.load(folder), language("gpt2")(IDS)
    began, go_on, found = threading.Event(), threading.Event(), []

    def run() -> None:
        mine = zoo.load(folder)

        def wait(x: torch.Tensor) -> torch.Tensor:
            began.set()
            go_on.wait(20)
            return x

        with mine.edit({"resid_pre.0": wait}):
            found.append(mine(IDS))

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(20)
    gone = weakref.ref(model)
    del model
    zoo.load(other)
    assert zoo.drop_unused() == 1 and gone() is not None and list(zoo.in_memory()) == [folder]
    zoo._loaded.clear()
    assert zoo.load(folder) is gone(), "two of the same model in memory"
    go_on.set()
    thread.join()
    assert torch.equal(found[0], wanted)
    assert zoo.drop_unused() == 1 and gone() is None


def test_eight_threads_asking_for_one_model_load_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, count = str(save(tmp_path / "model")), []
    load = zoo._load

    def counted(*arguments: Any) -> Any:
        count.append(1)
        time.sleep(0.1)
        return load(*arguments)

    monkeypatch.setattr(zoo, "_load", counted)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(zoo.load(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1 and len(found) == 8 and len({id(each) for each in found}) == 1 and not progress._alone


def test_a_failed_load_is_tried_again_and_leaves_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text("{")
    for _ in range(3):
        refused(folder)
    assert not progress._alone and not zoo._loaded
    (folder / "config.json").write_text(config)
    assert isinstance(zoo.load(str(folder)), VisionModel)


def test_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "SHELF", tmp_path)
    (save(tmp_path / "photos") / "card.md").write_text("# Photos")
    assert zoo.shelf()["photos"]["card"] == "# Photos" and zoo.shelf()["photos"]["model_type"] == "resnet"
    model = zoo.load("photos")
    assert model.name == "photos" and zoo.shared_name("photos") == "photos" and not zoo.is_path("photos")
    assert zoo.load("photos") is model


# ---------------------------------------------------------------------------------------------------------- processors

PROCESSORS = {
    "squash": lambda: ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "squash wide": lambda: ViTImageProcessorPil(size={"height": 32, "width": 48}),
    "not normalised": lambda: ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False),
    "squash and crop": lambda: DeiTImageProcessorPil(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}
    ),
    "edge and crop": lambda: BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "edge and crop 2": lambda: MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ),
    "edge only": lambda: BitImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False),
    "larger crop": lambda: DeiTImageProcessorPil(
        size={"height": 24, "width": 24}, crop_size={"height": 32, "width": 32}
    ),
    "crop_pct": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875),
    "crop_pct large": lambda: ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "beit": lambda: BeitImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
    "beit crop": lambda: BeitImageProcessorPil(
        size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    ),
    "efficientnet": lambda: EfficientNetImageProcessorPil(size={"height": 64, "width": 64}),
    "efficientnet crop": lambda: EfficientNetImageProcessorPil(
        size={"height": 72, "width": 72}, crop_size={"height": 64, "width": 64}, do_center_crop=True
    ),
}


@functools.lru_cache(32)
def processed(kind: str) -> VisionModel:
    return VisionModel(tiny.vision("resnet").network, PROCESSORS[kind](), kind)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (500, 500), (900, 200)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_box_says_where_the_input_lies_on_the_original(kind: str, width: int, height: int) -> None:
    """Colours that tell their place: red from left to right, green from top to bottom, blue everywhere."""
    model = processed(kind)
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.stack([20 + 200 * across, 20 + 200 * down, np.full_like(across, 255)], -1)
    image = Image.of(pixels.round().astype(np.uint8))
    given = model.inputs(image)
    assert torch.equal(given, model.processor(images=image.picture, return_tensors="pt")["pixel_values"])
    left, top, right, bottom = model.box(image)
    seen = model.picture(given[0]).astype(float)
    assert seen.shape[:2] == given.shape[-2:]
    real = seen[..., 2] > 250  # a crop larger than the picture is padded with black
    rows, columns = seen.shape[:2]
    at_x = left + (right - left) * (np.arange(columns) + 0.5) / columns
    at_y = top + (bottom - top) * (np.arange(rows) + 0.5) / rows
    inner = real & (at_x > 0.02)[None] & (at_x < 0.98)[None] & (at_y > 0.02)[:, None] & (at_y < 0.98)[:, None]
    assert inner.mean() > 0.3
    pixel = max((right - left) / columns, (bottom - top) / rows)
    found_x, found_y = (seen[..., 0] - 20) / 200, (seen[..., 1] - 20) / 200
    assert np.abs(found_x - at_x[None])[inner].max() < pixel + 0.006
    assert np.abs(found_y - at_y[:, None])[inner].max() < pixel + 0.006
    outside = (at_x < -pixel)[None] | (at_x > 1 + pixel)[None] | (at_y < -pixel)[:, None] | (at_y > 1 + pixel)[:, None]
    assert not real[outside].any()


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_picture_is_what_the_input_shows(kind: str) -> None:
    model = processed(kind)
    for colour in ((10, 200, 90), (255, 0, 128)):
        image = Image.of(PIL.Image.new("RGB", (300, 300), colour))
        picture = model.picture(model.inputs(image)[0])
        assert (
            picture.dtype == np.uint8
            and np.abs(picture[picture.shape[0] // 2, picture.shape[1] // 2].astype(int) - colour).max() <= 1
        )
    assert model.input_size == tuple(model.inputs(image).shape[-2:])
