"""Experiments as values and as texts: links, JSON, Python."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
import PIL.Image
import pytest

from interp import Missing, Unsuitable, samples, store, zoo
from interp.experiment import Call, Experiment
from interp.method import Channels, Heads, Paper, Range, Region, intervention, lens
from interp.methods import METHODS
from interp.model import VisionModel
from interp.results import Curve
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, Target, TextSet
from interp.sites import Site
from tests import tiny

PAPER = Paper("Doe, J.", "A Test", 2020, "Nowhere", "https://example.org")


@lens("Everything", PAPER)
def everything(
    model: VisionModel,
    sample: Image,
    *,
    needed: int,
    flag: bool = False,
    choice: Literal["a", "b"] = "a",
    size: Literal[1, 2] = 1,
    share: Annotated[float, Range(0, 1)] = 0.5,
    count: Annotated[int, Range(1, 9)] = 3,
    site: Site | None = None,
    target: Target = Target(),
    against: tuple[Target, ...] = (),
    channels: Annotated[tuple[int, ...], Channels()] = (),
    box: Annotated[tuple[float, float, float, float], Region()] = (0.0, 0.0, 1.0, 1.0),
    heads: Annotated[tuple[tuple[int, int], ...], Heads()] = (),
    text: str = "",
    other: Image | None = None,
    prompt: Prompt | None = None,
) -> Curve:
    """Take every kind of setting."""
    return Curve(np.zeros(1), np.zeros((1, 1)), ("a",))


@intervention("Nothing", PAPER)
def nothing(model: VisionModel, sample: Image, *, strength: float = 0.0) -> None:
    """Do nothing."""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two methods of our own, a gallery of two, an empty store, and a tiny model called `tiny`."""
    monkeypatch.setitem(METHODS, "everything", everything)
    monkeypatch.setitem(METHODS, "nothing", nothing)
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    names = ["cat", "a dog & a 'cup'"]
    for index in range(len(names)):
        (gallery / f"{index}.png").write_bytes(tiny.image(index).data)
    listing = [{"name": name, "file": f"{index}.png"} for index, name in enumerate(names)]
    (gallery / "gallery.json").write_text(json.dumps(listing))
    monkeypatch.setattr(samples, "GALLERY", gallery)
    load = zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: tiny.vision("resnet") if name == "tiny" else load(name))
    samples.gallery.cache_clear()
    samples._from_gallery.cache_clear()
    yield
    samples.gallery.cache_clear()
    samples._from_gallery.cache_clear()


def experiments() -> list[Experiment]:
    cat, dog = Image.gallery("cat"), Image.gallery("a dog & a 'cup'")
    ablate = Call("ablate_channels", channels=[3, 1, 1], site="stage.0")
    full = Call(
        "everything",
        needed=-4,
        flag=True,
        choice="b",
        size=2,
        share=1,
        count=9.0,
        site="module:encoder.stages.1:in",
        target="tabby, cat",
        against=[Target("dog"), "x", 3, None],
        channels=range(3),
        box=[0, 0.25, 1, 1],
        heads=[[1, 2], (3, 4)],
        text="{}&?=#%+ \n\"'é🦊",
        other=dog,
        prompt=Prompt("a & b"),
    )
    return [
        Experiment("tiny", cat, Call("grad_cam")),
        Experiment("tiny", dog, Call("grad_cam", target="dog", site=Site("stage", 0)), (ablate,)),
        Experiment(
            "tiny", cat, Call("grad_cam", target=2), (ablate, ablate.but(by="mean"), Call("nothing", strength=-1e-9))
        ),
        Experiment("owner/model@v1.0", dog, full, [Call("nothing", strength=2)]),  # type: ignore[arg-type]
        Experiment("tiny", ImageSet((cat, dog)), Call("everything", needed=0)),
        Experiment("tiny", Prompt("What & why? 100% #1 + é 🦊\n\"'"), Call("everything", needed=0)),
        Experiment("tiny", PromptPair("a", "b", " c", " d"), Call("everything", needed=0)),
        Experiment("tiny", Contrast(("a", "b"), ("c",)), Call("everything", needed=0)),
        Experiment("tiny", TextSet(("a", "b")), Call("everything", needed=0)),
    ]


# --------------------------------------------------------------------------------------------------------- round trips


def test_links_json_and_hashes_come_back() -> None:
    for experiment in experiments():
        for again in (
            Experiment.from_url(experiment.to_url()),
            Experiment.from_url(experiment.to_url("https://example.org/heatmaps")),
            Experiment.from_url(experiment.to_url().lstrip("?")),
            Experiment.from_json(experiment.to_json()),
            Experiment.from_json(json.dumps(json.loads(experiment.to_json()), indent=2)),
        ):
            assert again == experiment and hash(again) == hash(experiment)
            assert again.digest == experiment.digest and again.to_url() == experiment.to_url()
        for call in (experiment.lens, *experiment.interventions):
            assert Call.parse(str(call)) == call and hash(Call.parse(str(call))) == hash(call)
        json.loads(experiment.to_json(), parse_constant=lambda _: pytest.fail("not JSON"))
    assert len({each.digest for each in experiments()}) == len(set(experiments())) == 9


def test_a_link_is_short_and_leaves_defaults_out() -> None:
    url = experiments()[0].to_url()
    assert url == "?v=1&model=tiny&image=cat&lens=grad_cam"
    assert "do" not in experiments()[0].to_query() and len(experiments()[2].to_query()["do"]) == 3


def test_the_python_shown_gives_the_same_experiment_and_an_equal_result() -> None:
    for experiment in experiments():
        names: dict[str, Any] = {}
        head = experiment.to_python().split("result = ")[0]
        exec(head, names)  # as a person would run it
        assert names["experiment"] == experiment, head
    for experiment in experiments()[:3]:
        exec(experiment.to_python(), names)
        assert names["result"] == experiment.run()


def test_the_python_of_an_upload_opens_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    image = Image.of(tiny.image(5).picture, 'it\'s "mine".png')
    (tmp_path / image.name).write_bytes(image.data)
    experiment = Experiment("tiny", image, Call("everything", needed=1, other=image))
    names: dict[str, Any] = {}
    text = experiment.to_python()
    assert "# the file you uploaded" in text
    exec(text.split("result = ")[0], names)
    assert names["experiment"] == experiment


def test_the_digest_is_the_same_in_another_process() -> None:
    script = (
        "from interp.experiment import Call, Experiment; from interp.samples import Prompt;"
        "print(Experiment('m', Prompt('é'), Call('grad_cam', target='x')).digest)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == Experiment("m", Prompt("é"), Call("grad_cam", target="x")).digest


# ------------------------------------------------------------------------------------------------------ canonical form


def test_calls_are_canonical_from_the_start() -> None:
    plain = Call("everything", needed=1)
    assert plain == Call("everything", needed=1.0, share=0.5, against=[], target=None, site=None, choice="a")
    assert plain.settings["needed"] == 1 and type(plain.settings["needed"]) is int
    assert type(Call("everything", needed=1, share=1).settings["share"]) is float
    assert Call("everything", needed=np.int64(1), share=np.float32(0.5)) == plain
    assert Call("everything", needed=1, heads=[[0, 1]]) == Call("everything", needed=1, heads=((0, 1),))
    assert Call("everything", needed=1, channels=[5, 2, 5]) == Call("everything", needed=1, channels=(2, 5))
    assert Call("everything", needed=1, site="blocks.3.hook_resid_post") == Call(
        "everything", needed=1, site=Site("resid_post", 3)
    )
    assert Call("everything", needed=1, target="x") == Call("everything", needed=1, target=Target("x"))
    assert plain.changed == {"needed": 1} and plain.but(share=0.25).changed == {"needed": 1, "share": 0.25}
    assert plain.version == everything.version
    with pytest.raises(Exception, match=r"frozen|assign"):
        plain.method = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"needed": None},
        {"needed": 1.5},
        {"needed": "1"},
        {"needed": True},
        {"needed": float("nan")},
        {"needed": float("inf")},
        {"needed": [1]},
        {"needed": 1, "unknown": 1},
        {"needed": 1, "share": 1.1},
        {"needed": 1, "share": -0.1},
        {"needed": 1, "share": float("nan")},
        {"needed": 1, "share": 10**400},
        {"needed": 1, "count": 0},
        {"needed": 1, "count": 2.5},
        {"needed": 1, "flag": 1},
        {"needed": 1, "flag": "true"},
        {"needed": 1, "choice": "c"},
        {"needed": 1, "choice": ["a"]},
        {"needed": 1, "choice": {}},
        {"needed": 1, "size": 3},
        {"needed": 1, "size": "1"},
        {"needed": 1, "size": None},
        {"needed": 1, "site": "nonsense"},
        {"needed": 1, "site": 3},
        {"needed": 1, "target": 1.5},
        {"needed": 1, "target": ["dog"]},
        {"needed": 1, "target": Target({})},
        {"needed": 1, "target": Target(("a",))},
        {"needed": 1, "target": True},
        {"needed": 1, "target": "\ud800"},
        {"needed": 1, "against": "dog"},
        {"needed": 1, "against": [[1]]},
        {"needed": 1, "against": 3},
        {"needed": 1, "channels": [-1]},
        {"needed": 1, "channels": [0.5]},
        {"needed": 1, "channels": "01"},
        {"needed": 1, "channels": 1},
        {"needed": 1, "box": [0, 0, 1]},
        {"needed": 1, "box": [0, 0, 1, 1.01]},
        {"needed": 1, "box": [0.6, 0, 0.5, 1]},
        {"needed": 1, "box": [float("nan")] * 4},
        {"needed": 1, "heads": [[1]]},
        {"needed": 1, "heads": [1]},
        {"needed": 1, "text": 3},
        {"needed": 1, "text": b"x"},
        {"needed": 1, "text": None},
        {"needed": 1, "other": "cat"},
        {"needed": 1, "other": Prompt("x")},
        {"needed": 1, "prompt": "x"},
        {"needed": 1, "needed ": 1},
        {"needed": 1, "": 1},
    ],
)
def test_what_is_unknown_or_out_of_bounds_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(Unsuitable) as reason:
        Call("everything", **settings)
    assert str(reason.value).endswith(".") and len(str(reason.value)) < 300


def test_a_refusal_does_not_repeat_a_megabyte() -> None:
    for value in ("x" * 10**6, ["x"] * 10**6, 10**4000):
        with pytest.raises(Unsuitable) as reason:
            Call("everything", needed=value)
        assert len(str(reason.value)) < 300


def test_experiments_of_wrong_parts_are_refused() -> None:
    cat, call = Image.gallery("cat"), Call("grad_cam")
    for arguments in (
        ("tiny", "cat", call),
        ("tiny", None, call),
        ("", cat, call),
        (None, cat, call),
        ("m" * 1001, cat, call),
        ("tiny", cat, Call("nothing")),
        ("tiny", cat, call, (call,)),
    ):
        with pytest.raises(Unsuitable):
            Experiment(*arguments)  # type: ignore[arg-type]
    with pytest.raises(Unsuitable, match="no method"):
        Call("no_such_method")


def test_before_takes_the_interventions_away() -> None:
    experiment = experiments()[1]
    assert experiment.before() == Experiment(experiment.model, experiment.sample, experiment.lens)
    assert experiment.run() != experiment.before().run()
    assert experiment.before().run() == METHODS["grad_cam"](
        tiny.vision("resnet"), experiment.sample, target="dog", site="stage.0"
    )


def test_results_are_reproduced_from_a_link() -> None:
    experiment = experiments()[1]
    stored = store.unpacked(store.packed(experiment.run().arrays()), 2**20)
    assert Experiment.from_url(experiment.to_url()).run().reproduces(stored)
    assert not experiment.before().run().reproduces(stored)


# ---------------------------------------------------------------------------------------------------------------- links


def test_an_upload_that_is_not_kept_is_missing() -> None:
    image = Image.of(tiny.image(5).picture, "cat")  # not the one in the gallery
    experiment = Experiment("tiny", image, Call("grad_cam"))
    assert f"sha256%3A{image.sha256}" in experiment.to_url()
    for read, text in ((Experiment.from_url, experiment.to_url()), (Experiment.from_json, experiment.to_json())):
        with pytest.raises(Missing, match="upload"):
            read(text)
    store.keep_blob(image.data)
    assert Experiment.from_url(experiment.to_url()) == experiment


def test_a_link_never_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    cat, call = Image.gallery("cat"), Call("grad_cam")
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    experiment = Experiment(str(folder), cat, call)
    link = experiment.to_url()
    assert str(tmp_path) not in link and "local%3A" in link and str(tmp_path) not in experiment.to_json()
    assert (
        Experiment.from_url(link).model.startswith("local:") and Experiment.from_url(link).digest == experiment.digest
    )
    for name in (
        str(folder),
        "/etc",
        "..",
        "../..",
        "~",
        ".",
        "interp",
        "a/../../etc",
        "file:///etc",
        "C:\\models",
        "a\0b",
        "x" * 999,
    ):
        text = f"?v=1&model={quote(name)}&image=cat&lens=grad_cam"
        with pytest.raises(Unsuitable):
            Experiment.from_url(text)
        with pytest.raises(Unsuitable):
            Experiment.from_json(json.dumps(json.loads(experiment.to_json()) | {"model": name}))
    with pytest.raises(Missing):
        Experiment("local:0123456789abcdef", cat, call).run()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "?",
        "x",
        "?v=1",
        "?v=2&model=tiny&image=cat&lens=grad_cam",
        "?v=&model=tiny&image=cat&lens=grad_cam",
        "http://[",
        "?model=tiny",
        "?model=tiny&image=cat",
        "?image=cat&lens=grad_cam",
        "?model=tiny&lens=grad_cam",
        "?model=tiny&image=no&lens=grad_cam",
        "?model=tiny&image=cat&lens=",
        "?model=tiny&image=cat&lens=no",
        "?model=tiny&image=cat&lens=ablate_channels",
        "?model=tiny&image=cat&lens=grad_cam&do=grad_cam",
        "?model=tiny&image=cat&lens=grad_cam&do=",
        "?model=tiny&prompt=&lens=grad_cam",
        "?model=tiny&pair=x&lens=grad_cam",
        "?model=tiny&pair=[1]&lens=grad_cam",
        "?model=tiny&images=3&lens=grad_cam",
        "?model=tiny&images=[%22no%22]&lens=grad_cam",
        "?model=tiny&image=cat&lens=grad_cam{",
        "?model=tiny&image=cat&lens=grad_cam{}}",
        "?model=tiny&image=cat&lens=grad_cam[1]",
        '?model=tiny&image=cat&lens=grad_cam{"target":{"target":{"target":1}}}',
        '?model=tiny&image=cat&lens=grad_cam{"target":{"a":1,"b":2}}',
        '?model=tiny&image=cat&lens=grad_cam{"target":NaN}',
        '?model=tiny&image=cat&lens=grad_cam{"site":{"site":"x"}}',
        '?model=tiny&image=cat&lens=grad_cam{"no":1}',
        '?model=tiny&image=cat&lens=grad_cam{"target":"\\ud800"}',
        '?model=tiny&image=cat&lens=everything{"needed":1e999}',
        '?model=tiny&image=cat&lens=everything{"needed":1,"share":Infinity}',
        "?" + "&".join(["a=1"] * 200),
        "?model=tiny&image=cat&lens=grad_cam" + "{%22target%22:" + "[" * 20_000,
        "?model=tiny&pair=" + "[" * 20_000 + "&lens=grad_cam",
        '?model=tiny&image=cat&lens=everything{"needed":' + "9" * 5000 + "}",
    ],
)
def test_broken_links_get_a_sentence(url: str) -> None:
    with pytest.raises(Unsuitable) as reason:
        Experiment.from_url(url)
    assert str(reason.value).endswith(".") and len(str(reason.value)) < 300


def _fuzzed(text: str, chance: random.Random) -> str:
    letters = list(text)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(letters) + 1)
        kind = chance.random()
        if kind < 0.4 and letters:
            del letters[at : at + chance.randint(1, 9)]
        elif kind < 0.7:
            letters.insert(
                at,
                chance.choice(
                    ['"', "{", "}", "[", "]", "%", "&", "=", "null", "-1", "1e999", "é", "\0", "NaN", "\ud800", ","]
                ),
            )
        elif letters:
            start = chance.randrange(len(letters))
            letters[at:at] = letters[start : start + chance.randint(1, 30)]
    return "".join(letters)


def test_fuzzed_links_and_json_raise_nothing_but_a_sentence() -> None:
    chance = random.Random(0)
    readable = 0
    for experiment in experiments():
        for read, text in ((Experiment.from_url, experiment.to_url()), (Experiment.from_json, experiment.to_json())):
            for _ in range(150):
                bad = _fuzzed(text, chance)
                try:
                    again = read(bad)
                except Unsuitable as reason:
                    assert len(str(reason)) < 600
                else:  # what is read is whole: it can be written again
                    readable += 1
                    assert (
                        len(again.digest) == 64 and Experiment.from_url(again.to_url()) == again and again.to_python()
                    )
    assert readable > 20


@pytest.mark.parametrize(
    "change",
    [
        {"v": "2"},
        {"v": None},
        {"lens": None},
        {"lens": {}},
        {"lens": {"method": [], "settings": {}}},
        {"lens": []},
        {"interventions": 3},
        {"interventions": [{}]},
        {"lens": {"method": "grad_cam", "settings": []}},
        {"model": ""},
        {"image": None},
        {"image": 3},
        {"image": {}},
    ],
)
def test_json_with_wrong_parts_gets_a_sentence(change: dict[str, Any]) -> None:
    value = json.loads(experiments()[0].to_json())
    with pytest.raises(Unsuitable):
        Experiment.from_json(json.dumps(value | change))
    for text in ("", "null", "[]", "3", "{", "[" * 20_000):
        with pytest.raises(Unsuitable):
            Experiment.from_json(text)


def test_the_gallery_of_this_test_is_lossless() -> None:
    assert np.array_equal(np.asarray(Image.gallery("cat").picture), np.asarray(tiny.image(0).picture))
    assert isinstance(Image.gallery("cat").picture, PIL.Image.Image)
