"""Short links: what one server keeps another opens, with all it needs and the same numbers; what is damaged says so."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from interp import Missing, Unsuitable, __version__, snapshot, storage, store, zoo
from interp.experiment import Call, Experiment
from interp.methods.steering.difference_of_means import difference_of_means
from interp.methods.steering.soft_injection import soft_injection
from interp.results import Table, TokenGrid
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, TextSet
from tests import s3, tiny
from tests.test_storage import configure

PROMPT = Prompt("The capital of France is")
PLAIN = Experiment("stories", PROMPT, Call("logit_lens"))


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Makes this process that of another server: with a store of its own, and the storage that they share."""

    def become(name: str) -> Path:
        monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / name))
        configure(monkeypatch, shared=str(tmp_path / "shared"))
        return tmp_path / name

    become("one")
    return become


@pytest.fixture(scope="module")
def gpt2() -> Any:
    return tiny.language("gpt2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, gpt2: Any) -> Any:
    """A model of which the shelf has nothing, called `tiny`: an SAE, an index, operators, a direction, a task."""
    load = zoo.load
    monkeypatch.setattr(zoo, "load", lambda name: gpt2 if name == "tiny" else load(name))
    return tiny.featured(gpt2)


def photo(seed: int = 5) -> Image:
    return Image.of(tiny.image(seed).picture, "mine.png")


def kept(experiment: Experiment = PLAIN, **view: list[str]) -> str:
    return snapshot.keep(experiment, experiment.run(), view)


def entries() -> set[str]:
    return {each.key for each in storage.shared().entries()}


def table(values: np.ndarray) -> Table:
    return Table(("a",), ("b",), values)


# ----------------------------------------------------------------------------------------------------------- round trip


def test_a_snapshot_is_what_was_kept_under_a_name_of_its_content() -> None:
    result = PLAIN.run()
    view = {"position": ["3"], "pin": ["a,b"], "model": ["photos"], "lens": ["x"], "prompt": ["another"], "v": ["9"]}
    id = snapshot.keep(PLAIN, result, view, "  A title ", b"")
    assert snapshot.ID.fullmatch(id) and snapshot.keep(PLAIN, PLAIN.run(), view, "A title") == id
    assert snapshot.keep(PLAIN, dataclasses.replace(result, forwards=7.0, note="x"), view, "A title") == id
    found = snapshot.read(id)
    assert found == snapshot.Snapshot(
        id, PLAIN, {"position": ["3"], "pin": ["a,b"]}, "A title", zoo.load("stories").digest, found.numbers,
        "TokenGrid", result.forwards, result.backwards, __version__,
    )  # fmt: skip
    assert snapshot.title(id) == "A title" and snapshot.reproduced(found, PLAIN.run())
    numbers = snapshot.numbers(found)
    assert numbers is not None and numbers.keys() == result.arrays().keys()
    others = [
        snapshot.keep(PLAIN, result, {"position": ["4"]}, "A title"),
        snapshot.keep(PLAIN, result, view),
        snapshot.keep(PLAIN, dataclasses.replace(result, values=result.values + 1), view, "A title"),
        snapshot.keep(dataclasses.replace(PLAIN, lens=Call("logit_lens", top=6)), result, view, "A title"),
        snapshot.keep(PLAIN, None, view, "A title"),
    ]
    assert len({id, *others}) == 6


def test_other_numbers_or_another_kind_are_not_reproduced() -> None:
    result = PLAIN.run()
    found = snapshot.read(kept())
    assert isinstance(result, TokenGrid)
    assert snapshot.reproduced(found, dataclasses.replace(result, values=result.values * (1 + 1e-6)))
    assert not snapshot.reproduced(found, dataclasses.replace(result, values=result.values * 1.01))
    assert not snapshot.reproduced(found, table(result.values))
    nothing = snapshot.read(snapshot.keep(PLAIN, None, {}))
    assert snapshot.numbers(nothing) is None and not snapshot.reproduced(nothing, result)


def test_a_picture_lies_beside_it() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    id = snapshot.keep(PLAIN, None, {}, "", buffer.getvalue())
    assert snapshot.preview(id) == buffer.getvalue() and snapshot.keep(PLAIN, None, {}) == id
    assert snapshot.preview("a" * 20) is None and snapshot.preview("../../etc") is None
    storage.shared().put(f"previews/{id[:2]}/{id}.png", buffer.getvalue()[:-9])
    assert snapshot.preview(id) is None
    storage.shared().put(f"previews/{id[:2]}/{id}.png", b"<svg onload=alert(1)>")
    assert snapshot.preview(id) is None


def test_every_artefact_goes_along_and_unnamed_ones_are_named(small: Any, replica: Callable[[str], Path]) -> None:
    """On the second server there is nothing, and then something else that unnamed settings would stand for there."""
    ways = ("steer\ninject_task", 'steer{"strength":2.0}')
    experiments = [
        Experiment("tiny", PROMPT, Call("logit_lens"), (Call("steer"), Call("inject_task"))),
        Experiment("tiny", PROMPT, Call("feature_page", feature=0), (Call("ablate_feature", features=(1,)),)),
        Experiment("tiny", PROMPT, Call("transport_efficiency")),
        Experiment("tiny", PROMPT, Call("compare_steering", ways=ways, n=2, seeds=1, texts=tiny.small_texts(2))),
    ]
    results = [each.run() for each in experiments]
    ids = [
        snapshot.keep(each, result, {"bench": ['steer{"strength":1.5}', "logit_lens"], "second": ["steer"]})
        for each, result in zip(experiments, results, strict=True)
    ]
    here = {path.relative_to(replica("one")) for path in replica("one").rglob("*.safetensors")}
    assert {each.parts[0] for each in here} == {"directions", "tasks", "indexes", "transport", "saes"}
    replica("two")
    for id, experiment, result in zip(ids, experiments, results, strict=True):
        found = snapshot.read(id)
        assert found.experiment != experiment and found.view["second"] == ["steer"]
        assert "direction" in found.view["bench"][0] and found.view["bench"][1] == "logit_lens"
        again = found.experiment.run()
        assert snapshot.reproduced(found, again) and again.reproduces(result.arrays())
    there = {path.relative_to(replica("two")) for path in replica("two").rglob("*.safetensors")}
    assert there <= here and {each.parts[0] for each in there} == {each.parts[0] for each in here}
    replica("three")
    other = difference_of_means(small, tiny.two_sides(4, seed=3))
    assert Call("steer") in experiments[0].interventions and other not in str(snapshot.read(ids[0]).experiment)
    assert snapshot.reproduced(snapshot.read(ids[0]), snapshot.read(ids[0]).experiment.run())
    assert not list(replica("two").rglob("*.new")) and not list(replica("three").rglob("*.new"))


def test_another_server_opens_it_in_a_fresh_process_with_the_same_numbers(
    replica: Callable[[str], Path], tmp_path: Path
) -> None:
    stories = zoo.load("stories")
    direction = difference_of_means(stories, Contrast(("It was good", "A bright day"), ("It was bad", "A dull day")))
    task = soft_injection(stories, tiny.two_sides(3), steps=2, name="mine")
    texts = ("Mary and John went, John gave a drink to", "Mary and John went, Mary gave a drink to")
    experiments = [
        Experiment("photos", photo(), Call("grad_cam")),
        Experiment("photos", Image.gallery("chelsea"), Call("deeplift", images=ImageSet((photo(6), photo(7))))),
        Experiment("stories", PROMPT, Call("logit_lens"), (Call("steer", direction=direction, strength=2.0),)),
        Experiment("stories", PROMPT, Call("logit_lens"), (Call("inject_task", task=task),)),
        Experiment("stories", PromptPair(*texts, " Mary", " John"), Call("edge_attribution_patching")),
    ]
    ids = [kept(each) for each in experiments]
    program = (
        "import sys\nfrom interp import snapshot\nfor id in sys.argv[1:]:\n    found = snapshot.read(id)\n"
        "    print(id, snapshot.reproduced(found, found.experiment.run()))\n"
    )
    environment = {"ACTISCOPE_STORE": str(tmp_path / "two"), "ACTISCOPE_SHARED": str(tmp_path / "shared")}
    done = subprocess.run(
        [sys.executable, "-c", program, *ids], capture_output=True, text=True, env=os.environ | environment, timeout=100
    )
    assert done.stdout == "".join(f"{id} True\n" for id in ids), done.stderr[-2000:]


def test_it_is_the_same_in_s3(monkeypatch: pytest.MonkeyPatch, replica: Callable[[str], Path]) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    with s3.serving() as server:
        configure(monkeypatch, shared=server.url)
        experiment = Experiment("photos", photo(), Call("grad_cam"))
        result = experiment.run()
        id = snapshot.keep(experiment, result, {})
        replica("two")
        configure(monkeypatch, shared=server.url + "&")
        found = snapshot.read(id)
        assert found.experiment == experiment and snapshot.reproduced(found, result)
        # the snapshot was put after all that it names
        assert server.requests[-1][0] == "GET" and not server.refused
        puts = [path for method, path in server.requests if method == "PUT"]
        assert "snapshots" in puts[-1] and all("blobs" in path for path in puts[:-1])


# --------------------------------------------------------------------------------------------------------------- limits


def test_what_is_too_large_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    long = dataclasses.replace(
        PLAIN, sample=Prompt("a" * 3000), lens=Call("tuned_lens", texts=TextSet(("b" * 70_000,)))
    )
    with pytest.raises(Unsuitable, match="too much for a short link"):
        snapshot.keep(long, None, {})
    with pytest.raises(Unsuitable, match="too much for a short link"):
        snapshot.keep(PLAIN, None, {"labels": ["x" * 70_000]})
    configure(monkeypatch, shared_each=20_000)
    noise = np.random.default_rng(0).random
    with pytest.raises(Unsuitable, match="photos and numbers"):
        snapshot.keep(PLAIN, table(noise(3000)), {})
    with pytest.raises(Unsuitable, match="too many numbers"):
        snapshot.keep(PLAIN, table(np.zeros(10**6)), {})
    with pytest.raises(Unsuitable, match="photos and numbers"):
        snapshot.keep(Experiment("photos", photo(), Call("grad_cam")), None, {}, "", bytes(20_000))
    index = Experiment("tiny", PROMPT, Call("feature_page", feature=0))
    with pytest.raises(Unsuitable, match=r"(index|SAE) this is about .* too large .* on this server alone"):
        snapshot.keep(index, index.run(), {})
    assert not entries()


def test_what_is_no_longer_here_is_missing_before_anything_is_kept(small: Any) -> None:
    gone = Experiment("tiny", PROMPT, Call("logit_lens"), (Call("steer", direction="ab" * 32),))
    with pytest.raises(Missing, match="make it again"):
        snapshot.keep(gone, None, {})
    typed = Experiment("tiny", PROMPT, Call("feature_search", words="ab" * 32))
    assert snapshot.keep(typed, None, {"bench": [f'steer{{"direction":"{"ab" * 32}"}}']}) and len(entries()) >= 1


@pytest.mark.parametrize(
    "id", ["", "a" * 19, "a" * 21, "A" * 20, "1" * 20, "../" * 7, "a" * 19 + "\n", "é" * 20, "\0" * 20]
)
def test_what_is_no_id_is_missing(id: str) -> None:
    for call in (snapshot.read, snapshot.title):
        with pytest.raises(Missing, match="no such link"):
            call(id)
    assert snapshot.preview(id) is None


def test_a_title_of_half_characters_is_refused() -> None:
    with pytest.raises(Unsuitable, match="whole characters"):
        snapshot.keep(PLAIN, None, {}, "\ud800")


# ---------------------------------------------------------------------------------------------------------- not trusted


def forged(**changed: Any) -> str:
    """A snapshot that says what it likes, with the right checksum and id, as who can write to the storage may."""
    id = kept()
    data = storage.shared().get(snapshot._place(id))
    about, made = snapshot._parsed(id, data)  # type: ignore[misc]
    id, text = snapshot._written(about | changed, made)
    storage.shared().put(snapshot._place(id), text)
    return id


@pytest.mark.parametrize(
    "changed",
    [
        {"view": [1]}, {"view": {"a": "b", "c": 3}}, {"view": {"a": [1]}}, {"title": "x" * 500}, {"title": 3},
        {"parts": 3}, {"parts": ["../x"], "numbers": ""}, {"parts": [3], "numbers": ""}, {"numbers": "ab" * 32},
        {"numbers": 5}, {"experiment": "{}"},
        {"experiment": ""}, {"experiment": "[" * 5000}, {"experiment": None}, {"kind": None}, {"v": 99}, {"v": None},
        {"places": []},
        {"places": {"../../x": "ab" * 32}}, {"places": {"directions/../../x.safetensors": "ab" * 32}},
        {"places": {"blobs/ab": "ab" * 32}}, {"places": {f"directions/{'ab' * 32}.safetensors": "x"}},
        {"places": {f"directions/{'ab' * 32}.safetensors/x": "ab" * 32}},
        {"places": {"saes/0123456789abcdef/x": "ab" * 32}},
        {"places": {f"/etc/{'ab' * 32}.safetensors": "ab" * 32}},
    ],
)  # fmt: skip
def test_a_forged_snapshot_is_refused_in_a_sentence(changed: dict[str, Any], replica: Callable[[str], Path]) -> None:
    id = forged(**changed)
    replica("two")
    with pytest.raises(Unsuitable) as said:
        snapshot.read(id)
    assert len(str(said.value)) < 200 and str(said.value).endswith(".")
    assert not [path for path in replica("two").rglob("*") if path.is_file()]


def test_a_snapshot_of_another_version_says_so() -> None:
    with pytest.raises(Unsuitable, match="another version"):
        snapshot.read(forged(v=2))


@pytest.mark.parametrize("kind", ["directions", "tasks", "transport", "indexes", "saes"])
def test_an_artefact_that_is_none_is_not_put_into_the_store(kind: str, replica: Callable[[str], Path]) -> None:
    digest = store.keep_blob(b"no safetensors")
    name = f"saes/{'0' * 16}/{snapshot.sae.CONFIG}" if kind == "saes" else f"{kind}/{'ab' * 32}.safetensors"
    id = forged(places={name: digest}, parts=[digest], numbers="")
    replica("two")
    with pytest.raises(Unsuitable, match="kept with this link is damaged"):
        snapshot.read(id)
    assert not [path for path in replica("two").rglob("*") if path.is_file()]


def test_a_photo_that_is_none_of_ours_is_not_decoded() -> None:
    buffer = io.BytesIO()
    PIL.Image.new("1", (20_000, 1_000)).save(buffer, "PNG")
    bomb = Experiment("photos", Image(buffer.getvalue()), Call("grad_cam"))
    digest = store.keep_blob(buffer.getvalue())
    with pytest.raises(Unsuitable, match="photo kept with this link is damaged"):
        snapshot.read(forged(experiment=bomb.to_json(), parts=[digest], numbers=""))


def test_flipped_bits_are_never_another_result(replica: Callable[[str], Path]) -> None:
    experiment = Experiment("photos", photo(), Call("grad_cam"))
    result = experiment.run()
    id = snapshot.keep(experiment, result, {})
    shared, draw = storage.shared(), random.Random(0)
    keys = sorted(entries())
    assert len(keys) == 3
    for key in keys:
        whole = shared.get(key)
        assert whole
        for _ in range(60):
            bad = bytearray(whole)
            for _ in range(draw.choice((1, 1, 3))):
                bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            if draw.random() < 0.2:
                del bad[draw.randrange(len(bad)) :]
            shared.put(key, bytes(bad))
            try:
                found = snapshot.read(id)
                same = snapshot.reproduced(found, result) and found.experiment == experiment
            except Unsuitable as problem:
                assert str(problem).endswith(".")
                continue
            assert same and bytes(bad) == whole
        shared.put(key, whole)
    assert snapshot.reproduced(snapshot.read(id), result)


def test_what_is_damaged_is_whole_once_it_is_kept_again() -> None:
    experiment = Experiment("photos", photo(), Call("grad_cam"))
    result = experiment.run()
    id = snapshot.keep(experiment, result, {})
    for key in entries():
        storage.shared().put(key, b"damaged")
        assert snapshot.keep(experiment, result, {}) == id
        assert snapshot.reproduced(snapshot.read(id), result)


def test_a_part_that_is_gone_is_missing_and_reading_notes_the_use_of_all(tmp_path: Path) -> None:
    id = kept(Experiment("photos", photo(), Call("grad_cam")))
    for key in entries():
        os.utime(tmp_path / "shared" / key, (1e9, 1e9))
    snapshot.read(id)
    assert all(each.used > 1.1e9 for each in storage.shared().entries())
    for key in entries():
        data = storage.shared().get(key)
        assert data is not None
        storage.shared().delete(key)
        with pytest.raises(Missing):
            snapshot.read(id)
        storage.shared().put(key, data)
    snapshot.read(id)
