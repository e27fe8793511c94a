"""Shards: killed, damaged, cancelled or moved elsewhere, the numbers are the same."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from interp import Unsuitable, _executors, batch, feature_index, progress, zoo
from interp import sae as saes
from interp.batch import Origin, executor, run
from interp.experiment import Call, Experiment
from interp.jobs import Harvest, Lens
from interp.methods import METHODS
from interp.samples import ImageSet, Prompt, PromptPair, TextSet
from tests import tiny
from tests.draws import Draws, Locked, begun
from tests.test_feature_index import documents, sae_for

ROOT = Path(__file__).parent.parent
NO_RAY = importlib.util.find_spec("ray") is None


def expected(count: int = 6) -> list[np.ndarray]:
    return [n * np.random.default_rng((5, n)).normal(size=(20, 30)).astype(np.float32).T for n in range(count)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(what: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}


def recorded(folder: Path) -> int:
    """How many shards the manifest knows of."""
    path = folder / "manifest.jsonl"
    return path.read_text().count('"sha256"') if path.exists() else 0


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    # what workers get is what the other tests have: one thread
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------------- the engine


def test_shards_are_joined_in_order_reported_and_then_deleted(tmp_path):
    seen: list[progress.Progress] = []
    with progress.watch(seen.append):
        found = run(Draws(str(tmp_path)))
    np.testing.assert_array_equal(found, expected())
    assert {(each.label, each.total) for each in seen} == {("draws", 6)} and seen[-1].done == 6
    assert not list((tmp_path / "store" / "batch").iterdir())


def test_what_is_kept_is_what_the_shards_gave_with_their_sums(tmp_path):
    job = Draws(str(tmp_path))
    run(job, keep=tmp_path / "kept")
    lines = [json.loads(line) for line in (tmp_path / "kept" / "manifest.jsonl").read_text().splitlines()]
    assert lines[0] == {"key": job.key, "name": "draws", "shards": 6}
    for number, line in enumerate(lines[1:]):
        path = tmp_path / "kept" / line["file"]
        assert line["shard"] == number and path.stat().st_size == line["bytes"]
        wanted = job.shard(number)
        found = load_file(path)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():  # transposed, of no dimension, empty, strided
            np.testing.assert_array_equal(found[name], value)
            assert found[name].shape == value.shape and found[name].dtype == value.dtype
    assert {each.name for each in (tmp_path / "kept").iterdir()} == {"manifest.jsonl", *files(tmp_path / "kept")}
    assert len(begun(tmp_path)) == 12
    run(job, keep=tmp_path / "kept")
    assert len(begun(tmp_path)) == 12


def test_a_worker_that_is_killed_costs_nothing_but_its_shard(tmp_path):
    np.testing.assert_array_equal(run(Draws(str(tmp_path), "once"), "pool", 2), expected())
    assert Counter(number for number, _ in begun(tmp_path)) == Counter(range(6)) + Counter([2])
    assert len({pid for _, pid in begun(tmp_path)}) in (2, 3)  # with one that took the dead one's place, if needed


def test_a_shard_that_always_ends_its_worker_is_given_up_with_a_reason_and_the_rest_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(_executors, "TRIES", 2)
    with pytest.raises(Unsuitable, match=r"Shard 2 of draws ended its process 2 times \(exit code -9\).*fewer workers"):
        run(Draws(str(tmp_path), "always"), "pool", 1)
    (kept,) = (tmp_path / "store" / "batch").iterdir()
    assert set(files(kept)) == {"00000.safetensors", "00001.safetensors"}
    assert not any(alive(pid) for _, pid in begun(tmp_path))


SCRIPT = """
import sys
from interp.batch import run
from tests.draws import Draws

run(Draws(sys.argv[1], seconds=0.2), sys.argv[2], 2, keep=sys.argv[3])
"""


@pytest.mark.parametrize("on", ["inline", "pool"])
def test_a_driver_that_is_killed_loses_only_what_was_running(on, tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), on, str(tmp_path / "cut")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "."}, cwd=ROOT) as driver:
        wait_for(lambda: recorded(tmp_path / "cut") >= 2)
        driver.kill()
    pids = {pid for _, pid in begun(tmp_path)}
    wait_for(lambda: not any(map(alive, pids)), 5)  # workers end with their driver
    kept = recorded(tmp_path / "cut")
    running = len(begun(tmp_path)) - kept
    assert 2 <= kept < 6 and running <= (1 if on == "inline" else 2)
    (tmp_path / "cut" / "00009.new").write_bytes(b"half of it")
    found = run(Draws(str(tmp_path)), keep=tmp_path / "cut")
    np.testing.assert_array_equal(found, expected())
    again = Counter(number for number, _ in begun(tmp_path))
    assert set(again) == set(range(6)) and again.total() == 6 + running
    run(Draws(str(tmp_path), seconds=0), keep=tmp_path / "whole")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["changed", "cut off", "gone", "unknown", "torn"])
def test_a_damaged_shard_is_done_again_and_no_other(damage, tmp_path):
    kept, job = tmp_path / "kept", Draws(str(tmp_path))
    run(job, keep=kept)
    whole, path = files(kept), kept / "00003.safetensors"
    data = path.read_bytes()
    manifest = (kept / "manifest.jsonl").read_bytes()
    if damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut off":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        path.unlink()
    elif damage == "unknown":  # killed between the file and its line
        (kept / "manifest.jsonl").write_bytes(b"".join(x for x in manifest.splitlines(True) if b'"shard": 3' not in x))
    else:  # killed within the last line
        (kept / "manifest.jsonl").write_bytes(manifest[:-30])
    for _ in range(2):
        np.testing.assert_array_equal(run(job, keep=kept), expected())
    assert [number for number, _ in begun(tmp_path)] == [*range(6), 5 if damage == "torn" else 3]
    assert files(kept) == whole


@pytest.mark.parametrize("on", ["inline", "pool"])
def test_a_cancel_ends_it_within_a_second_and_keeps_what_is_done(on, tmp_path):
    cancel = threading.Event()
    stopped: list[float] = []

    def report(each: progress.Progress) -> None:
        if each.done == 2:
            cancel.set()
            stopped.append(time.monotonic())

    job = Draws(str(tmp_path), seconds=0.3)
    with pytest.raises(progress.Cancelled), progress.watch(report, cancel):
        run(job, on, 2)
    assert time.monotonic() - stopped[0] < 1
    assert not any(alive(pid) for _, pid in begun(tmp_path) if pid != os.getpid())
    (kept,) = (tmp_path / "store" / "batch").iterdir()
    done = len(files(kept))
    assert done >= 2
    count = len(begun(tmp_path))
    np.testing.assert_array_equal(run(job), expected())
    assert len(begun(tmp_path)) - count == 6 - done


def test_a_cancel_reaches_a_shard_that_hangs(tmp_path):
    cancel = threading.Event()
    threading.Thread(target=lambda: (wait_for(lambda: begun(tmp_path)), cancel.set())).start()
    with pytest.raises(progress.Cancelled), progress.watch(cancel=cancel):
        run(Draws(str(tmp_path), seconds=1000), "pool", 1)
    assert not any(alive(pid) for _, pid in begun(tmp_path))


def test_what_a_shard_raises_reaches_the_caller(tmp_path):
    with pytest.raises(Unsuitable, match="Take another one"):
        run(Draws(str(tmp_path), "unsuitable"))
    with executor("pool", 1):
        with pytest.raises(Unsuitable, match="Take another one"):
            run(Draws(str(tmp_path), "unsuitable"))
        with pytest.raises(ZeroDivisionError, match="by zero") as problem:
            run(Draws(str(tmp_path), "wrong"))
        np.testing.assert_array_equal(run(Draws(str(tmp_path))), expected())
        locked = tmp_path / "other"
        locked.mkdir()
        (locked / "locked").touch()
        with pytest.raises(PermissionError, match="locked"):
            run(Locked(str(locked), count=3))
        (locked / "locked").unlink()
        np.testing.assert_array_equal(run(Locked(str(locked), count=3)), expected(3))
        assert len(begun(locked)) == 3  # not what the worker did before
    assert len({pid for _, pid in begun(tmp_path)} - {os.getpid()}) == 1  # an exception costs no worker
    assert 'raise ZeroDivisionError("by zero")' in "".join(problem.value.__notes__)


def test_run_obeys_the_executor_around_it_whose_workers_stay(tmp_path):
    (tmp_path / "a").mkdir()
    with executor("pool", 1):
        assert batch.elsewhere()
        run(Draws(str(tmp_path)))
        run(Draws(str(tmp_path / "a")))
        run(Draws(str(tmp_path), odd="here"), "inline")
    assert not batch.elsewhere()
    first, second, third = (
        {p for _, p in part} for part in (begun(tmp_path)[:6], begun(tmp_path / "a"), begun(tmp_path)[6:])
    )
    assert first == second and len(first) == 1 and third == {os.getpid()} and not any(map(alive, first))


def test_runs_of_one_job_wait_for_each_other(tmp_path):
    job, found = Draws(str(tmp_path), seconds=0.05), []
    threads = [threading.Thread(target=lambda: found.append(run(job, keep=tmp_path / "kept"))) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3 and len(begun(tmp_path)) == 6
    for each in found:
        np.testing.assert_array_equal(each, expected())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    kept = tmp_path / "kept"
    run(Draws(str(tmp_path)), keep=kept)
    before = files(kept)
    with pytest.raises(Unsuitable, match="another job; choose another folder"):
        run(Draws(str(tmp_path), "other"), keep=kept)
    (kept / "manifest.jsonl").unlink()
    with pytest.raises(Unsuitable, match="something else; choose another folder"):
        run(Draws(str(tmp_path)), keep=kept)
    assert files(kept) == before
    for on, workers in (("cloud", None), ("pool", 0)):
        with pytest.raises(Unsuitable):
            run(Draws(str(tmp_path)), on, workers)


def test_a_model_is_found_again_by_its_origin_or_the_reason_is_given(tmp_path):
    model = zoo.load("induction")
    origin = Origin.of(model)
    assert origin.load() is model and origin.dtype == "float32"
    double = zoo.load("induction", dtype=torch.float64)
    assert Origin.of(double).load() is double
    mine = tiny.language("llama")
    assert Origin.of(mine).load() is mine
    with pytest.raises(Unsuitable, match="save it, and load it"):
        run(Harvest.of(mine, ["resid_post.1"], TextSet(("abc",))), "pool", 1)
    with pytest.raises(Unsuitable, match="has changed"):
        Origin(origin.name, "0" * 64).load()


@pytest.mark.skipif(not NO_RAY, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(tmp_path):
    with pytest.raises(Unsuitable, match=r"requirements-scale\.txt"):
        run(Draws(str(tmp_path)), "ray")


# --------------------------------------------------------------------------------------------------------------- jobs


def lines(count: int, seed: int) -> TextSet:
    return TextSet(tuple(documents(count, seed)))


def test_a_harvest_holds_every_token_of_every_text_once(monkeypatch, tmp_path):
    monkeypatch.setattr("interp.jobs.SHARD_BYTES", 2**10)
    model, texts = tiny.language("llama"), lines(120, 0)
    job = Harvest.of(model, ["resid_post.1", "z.0"], texts, context=40, batch=5)
    count = run(job, keep=tmp_path / "kept")
    parts = [load_file(tmp_path / "kept" / f"{n:05d}.safetensors") for n in range(count)]
    assert count > 5
    for number, text in enumerate(texts.texts):
        mine = [{k: v[part["document"] == number] for k, v in part.items()} for part in parts]
        ids = np.concatenate([each["ids"] for each in mine])
        assert ids.tolist() == model.tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 40):
            with model.record(job.sites) as seen:
                model(torch.from_numpy(ids[None, start : start + 40].astype(np.int64)))
            for site in job.sites:
                found = np.concatenate([each[site] for each in mine])[start : start + 40]
                np.testing.assert_allclose(found, seen[site][0].detach(), atol=1e-5)
    half = Harvest.of(model, ["resid_post.1"], texts, dtype="float16")
    run(half, keep=tmp_path / "half")
    assert load_file(tmp_path / "half" / "00000.safetensors")["resid_post.1"].dtype == np.float16


def test_images_are_harvested_from_a_folder_as_from_a_set(monkeypatch, tmp_path):
    monkeypatch.setattr("interp.jobs.SHARD_BYTES", 2**11)
    model = tiny.vision("resnet")
    images = [tiny.image(seed) for seed in range(5)]
    (tmp_path / "photos").mkdir()
    for number, each in enumerate(images):
        each.picture.save(tmp_path / "photos" / f"{number}.png")
    found = []
    for number, data in enumerate((tmp_path / "photos", ImageSet(tuple(images)))):
        count = run(Harvest.of(model, ["stage.1"], data, batch=1), keep=tmp_path / str(number))
        assert count > 1
        found.append([load_file(tmp_path / str(number) / f"{n:05d}.safetensors") for n in range(count)])
    whole = [np.concatenate([part["stage.1"] for part in parts]) for parts in found]
    np.testing.assert_array_equal(*whole)
    for image, mine in zip(images, whole[0], strict=True):
        with model.record(["stage.1"]) as seen:
            model(image)
        np.testing.assert_allclose(mine, seen["stage.1"][0].detach(), atol=1e-6)


def test_a_lens_over_a_file_is_the_lens_at_each_of_its_lines(tmp_path):
    model = zoo.load("stories")
    prompts = ["When Mary and John went to the store, John gave a drink to", "x" * 20_000, "The cat sat"] * 7
    (tmp_path / "prompts.jsonl").write_text("\n\n".join(json.dumps({"text": each}) for each in prompts))
    change = Call("ablate_heads", heads=((2, 1),))
    job = Lens.of(model, Call("logit_lens"), tmp_path / "prompts.jsonl", [change])
    facts = run(job, keep=tmp_path / "kept")
    arrays: dict[str, np.ndarray] = {}
    for path in (tmp_path / "kept").glob("*.safetensors"):
        arrays |= load_file(path)
    assert [each["sample"] for each in facts] == list(range(21)) and len(files(tmp_path / "kept")) == 2
    for number, (text, about) in enumerate(zip(prompts, facts, strict=True)):
        if len(text) > 10_000:
            assert "the limit is 10,000" in about["unsuitable"]
            continue
        wanted = Experiment("stories", Prompt(text), Call("logit_lens"), (change,)).run()
        assert about["type"] == "TokenGrid" and tuple(about["columns"]) == wanted.columns
        for name, value in wanted.arrays().items():
            np.testing.assert_array_equal(arrays[f"{number}/{name}"], value)


def test_pairs_and_photos_are_samples_too_and_what_serves_none_is_refused(tmp_path):
    pair = PromptPair("abcd", "abxd", "e", "f")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(dict(clean="abcd", corrupted="abxd", answer="e", foil="f")))
    model = tiny.language("llama")
    run(Lens.of(model, Call("attribution_patching"), tmp_path / "pairs.jsonl"), keep=tmp_path / "pairs")
    wanted = METHODS["attribution_patching"](model, pair)
    np.testing.assert_array_equal(load_file(tmp_path / "pairs" / "00000.safetensors")["0/values"], wanted.values)
    photos = tiny.vision("resnet")
    (tmp_path / "photos").mkdir()
    tiny.image(0).picture.save(tmp_path / "photos" / "one.png")
    (tmp_path / "photos" / "two.jpg").write_bytes(b"none")
    one, two = run(Lens.of(photos, Call("grad_cam"), tmp_path / "photos"), keep=tmp_path / "maps")
    assert one["of"] == "one.png" and one["type"] == "Heatmap" and "not an image" in two["unsuitable"]
    assert set(load_file(tmp_path / "maps" / "00000.safetensors")) == {"0/values", "facts"}
    for lens, data, words in (
        (Call("grad_cam"), TextSet(("abc",)), "needs an image model"),
        (Call("logit_lens"), TextSet(("",)), "The prompt is empty"),
        (Call("logit_lens"), TextSet(()), "nothing to look at"),
        (Call("logit_lens"), tmp_path / "nothing.txt", "can't be read"),
        (Call("logit_lens"), tmp_path / "photos", "looks at Prompt"),
    ):
        with pytest.raises(Unsuitable, match=words):
            run(Lens.of(model, lens, data))
    for sites, data, words in (
        ([], TextSet(("abc",)), "at least one site"),
        (["pattern.0"], TextSet(("abc",)), "no vector at each token"),
        (["resid_post.0"], ImageSet((tiny.image(0),)), "give texts"),
        (["resid_post.99"], TextSet(("abc",)), "resid_post"),
    ):
        with pytest.raises(Unsuitable, match=words):
            run(Harvest.of(model, sites, data))


def test_interventions_in_force_reach_no_shard(tmp_path):
    model = tiny.language("llama")
    run(Harvest.of(model, ["resid_post.1"], TextSet(("abc def",))), keep=tmp_path / "plain")
    with model.edit({"resid_post.0": lambda x: 0 * x}):
        run(Harvest.of(model, ["resid_post.1"], TextSet(("abc def",))), keep=tmp_path / "changed")
    assert files(tmp_path / "plain") == files(tmp_path / "changed")


def test_data_that_change_meanwhile_are_noticed(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    job = Harvest.of(tiny.language("llama"), ["resid_post.1"], path)
    path.write_text("two more\n")
    with pytest.raises(Unsuitable, match=r"texts\.txt has changed"):
        run(job)


# --------------------------------------------------------------------------------------------------- an index in shards


@pytest.mark.parametrize("kind", ["texts", "file", "images"])
def test_an_index_built_in_shards_is_the_same_file(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_index, "SHARD", 1500)
    monkeypatch.setattr(feature_index, "CHARACTERS", 1000)
    monkeypatch.setattr(feature_index._Reader, "images", lambda self: 2)
    data: Any
    if kind == "images":
        model: Any = tiny.vision("resnet")
        sae, data = sae_for(model, "stage.1", 16), ImageSet(tuple(tiny.image(seed) for seed in range(50)))
        monkeypatch.setattr(feature_index, "SHARD", 100)
        monkeypatch.setattr("interp._index_pass.TOP", 5)
        monkeypatch.setattr("interp._index_pass.SAMPLED", 5)
    else:
        model = tiny.language("gpt2")
        sae, data = sae_for(model, "resid_post.1", 16), lines(300, 1)
        if kind == "file":
            data = tmp_path / "texts.txt"
            data.write_text("\n".join(documents(300, 1)))
    whole = feature_index.build(model, sae, data, context=50).path
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "shards"))
    monkeypatch.setattr(feature_index, "elsewhere", lambda: True)
    seen: list[progress.Progress] = []
    with progress.watch(seen.append):
        parts = feature_index.build(model, sae, data, context=50).path
    assert max(each.total for each in seen if each.label.startswith("reading")) > 5
    assert parts != whole and parts.name == whole.name and parts.read_bytes() == whole.read_bytes()
    with pytest.raises(Unsuitable, match="nothing to read"):
        feature_index.build(model, sae, type(data)(()) if kind != "file" else TextSet(()))


# ---------------------------------------------------------------------------------------------- here, in a pool, on Ray


def everything(on: batch.On, folder: Path) -> dict[str, bytes]:
    """What a harvest, a lens and an index leave, run there."""
    os.environ["ACTISCOPE_STORE"] = str(folder / f"{on} store")
    texts = lines(400, 2)
    model = zoo.load("stories")
    with executor(on, 2):
        run(Harvest.of(model, ["resid_post.2", "z.1"], texts), keep=folder / on / "harvest")
        run(Lens.of(model, Call("direct_logit_attribution"), TextSet(texts.texts[:40])), keep=folder / on / "lens")
        index = feature_index.build(model, saes.load("stories/resid_post.2"), texts)
    return {f"{each.parent.name}/{each.name}": each.read_bytes() for each in (folder / on).rglob("*.safetensors")} | {
        "index": index.path.read_bytes()
    }


def test_inline_and_pool_agree_bit_for_bit(monkeypatch, tmp_path):
    monkeypatch.setattr("interp.jobs.SHARD_BYTES", 2**21)
    here, pool = everything("inline", tmp_path), everything("pool", tmp_path)
    assert len(here) > 6 and here == pool


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_RAY, reason="needs requirements-scale.txt")
def test_ray_agrees_with_inline_bit_for_bit_and_survives_a_killed_worker(monkeypatch, tmp_path):
    monkeypatch.setattr("interp.jobs.SHARD_BYTES", 2**21)
    here, ray = everything("inline", tmp_path), everything("ray", tmp_path)
    assert len(here) > 6 and here == ray
    with executor("ray", 2):
        np.testing.assert_array_equal(run(Draws(str(tmp_path), "once")), expected())
        assert Counter(number for number, _ in begun(tmp_path)) == Counter(range(6)) + Counter([2])
        with pytest.raises(Unsuitable, match="Take another one"):
            run(Draws(str(tmp_path), "unsuitable"))
        with pytest.raises(ZeroDivisionError) as problem:
            run(Draws(str(tmp_path), "wrong"))
        assert 'raise ZeroDivisionError("by zero")' in "".join(problem.value.__notes__)
        with pytest.raises(Unsuitable, match=r"Shard 2 of draws ended its process 3 times; .*fewer workers"):
            run(Draws(str(tmp_path), "always"))
        cancel = threading.Event()
        (tmp_path / "hangs").mkdir()
        threading.Thread(target=lambda: (wait_for(lambda: begun(tmp_path / "hangs")), cancel.set())).start()
        with pytest.raises(progress.Cancelled), progress.watch(cancel=cancel):
            run(Draws(str(tmp_path / "hangs"), seconds=1000))
        np.testing.assert_array_equal(run(Draws(str(tmp_path), "after")), expected())  # its two cores are free again
