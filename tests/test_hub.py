"""Models of the hub, through the real client against a stand-in: what is loaded is bit for bit what was saved there."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import close_session

from interp import Unsuitable, progress, sae_hub, settings, zoo
from interp import hub as real
from interp.experiment import Call, Experiment
from interp.progress import Cancelled, Progress, watch
from interp.samples import Image
from tests import tiny
from tests.hub import COMMITS, Hub, Ill, environment, restart, serving
from tests.test_model import IDS
from tests.test_zoo import save

hub = pytest.fixture(serving)
MAIN = COMMITS["main"]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**values: Any) -> None:
        monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, **values))

    return put


def refused(name: str, by: Callable[[str], Any] = zoo.load, seconds: float = 8) -> str:
    start = time.monotonic()
    with pytest.raises(Unsuitable) as reason:
        by(name)
    text = str(reason.value)
    assert "\n" not in text and 30 < len(text) < 400 and text.endswith((".", ")")), text
    assert time.monotonic() - start < seconds
    return text


def big(hub: Hub, size: int = 200_000, name: str = "owner/big") -> bytes:
    """A repository with one file that is large enough to stop in the middle of."""
    data = os.urandom(size)
    (hub.root / name).mkdir(parents=True, exist_ok=True)
    (hub.root / name / "a.safetensors").write_bytes(data)
    return data


def fetch(name: str = "owner/big") -> Path:
    return real.fetch(name, real.listing(*real.split(name)), ["a.safetensors"]) / "a.safetensors"


def resolved(hub: Hub) -> list[str]:
    return [path.split("/resolve/")[1] for path in hub.paths if "/resolve/" in path]


def ranges(hub: Hub) -> list[str]:
    return [headers.get("range", "") for path, headers in hub.asked if path.startswith("cdn/")]


# ----------------------------------------------------------------------------------------------------------- what comes


@pytest.mark.parametrize(("family", "options"), [("vit", {}), ("resnet", {"max_shard_size": "10KB"}), ("gpt2", {}),
                                                 ("llama", {"max_shard_size": "20KB"})])  # fmt: skip
def test_what_is_loaded_is_what_was_saved(
    family: str, options: dict[str, Any], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(hub.root / "owner/good", family, **options)
    for other in ("pytorch_model.bin", "flax_model.msgpack", "evil.py", "README.md", "model.fp16.safetensors"):
        (folder / other).write_bytes(b"not asked for")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.safetensors").write_bytes(b"not asked for")
    given: Any = IDS if family in tiny.LANGUAGE else tiny.image()
    plain = zoo.load(folder)(given)
    card = zoo.look("owner/good")
    assert not hub.weights and not card.here and card.name == f"owner/good@{MAIN}" and card.licence == "apache-2.0"
    assert card.family == family and card.architecture.startswith(plain_class(folder))
    assert card.bytes == sum((folder / each).stat().st_size for each in card.files)
    seen: list[Progress] = []
    with watch(seen.append):
        model = zoo.load("owner/good")
    assert torch.equal(model(given), plain) and model.name == "owner/good"
    assert {path.partition("/")[2] for path in resolved(hub)} == set(card.files)
    assert not any("not asked for" in (folder / each).read_text("latin1") for each in card.files)
    assert {path[:40] for path in resolved(hub)} == {MAIN}, "all of one commit"
    told = [each for each in seen if each.label == "Fetching owner/good"]
    assert told[-1].done == told[-1].total and [each.done for each in told] == sorted(each.done for each in told)
    assert zoo.load(f"owner/good@{MAIN}") is model is zoo.load("owner/good") and zoo.here("owner/good")
    restart(monkeypatch)
    hub.asked.clear()
    assert not zoo.here("owner/good") and zoo.here(f"owner/good@{MAIN}")
    assert torch.equal(zoo.load(f"owner/good@{MAIN}")(given), plain) and not hub.asked, "asked for a commit again"
    restart(monkeypatch)
    zoo.load("owner/good")
    assert hub.paths == ["api/models/owner/good"], "downloaded again"


def plain_class(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["architectures"][0])


def test_a_link_means_the_same_weights_when_the_branch_has_moved(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (zoo.load(save(folder, "resnet")) for folder in (hub.root / "owner/good", tmp_path / "new"))
    network = two.network
    with torch.no_grad():
        network.classifier[-1].bias += 1  # type: ignore[index, union-attr]
    network.save_pretrained(tmp_path / "new")  # type: ignore[operator]
    given = tiny.image()
    zoo.load("owner/good")
    experiment = Experiment("owner/good", Image.gallery("chelsea"), Call("grad_cam"))
    link = experiment.to_url()
    assert f"model=owner%2Fgood%40{MAIN}&" in link
    hub.move("owner/good", tmp_path / "new")
    assert torch.equal(zoo.load("owner/good")(given), one(given)), "changed under a run"
    restart(monkeypatch)
    after = zoo.load("owner/good")
    assert not torch.equal(one(given), two(given))
    assert torch.equal(after(given), two(given)) and zoo.shared_name("owner/good") == f"owner/good@{'2' * 40}"
    linked = Experiment.from_url(link)
    assert linked.model == f"owner/good@{MAIN}" and torch.equal(zoo.load(linked.model)(given), one(given))
    assert zoo.load("owner/good") is after and zoo.pin("owner/good", anew=True) == f"owner/good@{'2' * 40}"
    assert torch.equal(zoo.load("owner/good@v1")(given), two(given))


def test_whoever_asks_anew_is_told_where_the_branch_is_now(hub: Hub) -> None:
    big(hub)
    assert zoo.pin("owner/big") == f"owner/big@{MAIN}"
    hub.commits["main"] = "3" * 40
    assert zoo.pin("owner/big") == f"owner/big@{MAIN}" and zoo.pin("owner/big", anew=True) == f"owner/big@{'3' * 40}"
    assert zoo.pin("owner/big") == f"owner/big@{'3' * 40}"


# ------------------------------------------------------------------------------------------------------------ sentences


@pytest.mark.parametrize(
    ("ill", "name", "words"),
    [
        (Ill("gated"), "owner/good", "accept its conditions"), (Ill("private"), "owner/good", "look at the spelling"),
        (Ill(), "owner/none", "no repository 'owner/none'"), (Ill(), "owner/good@v9", "tag or commit 'v9'"),
        (Ill(), f"owner/good@{'4' * 40}", "tag or commit"), (Ill(401), "owner/good", "let this machine in (401)"),
        (Ill(403), "owner/good", "let this machine in (403)"), (Ill(404), "owner/good", "error (404)"),
        (Ill(429), "owner/good", "too many requests"), (Ill(503), "owner/good", "error (503)"),
        (Ill("stalled"), "owner/good", "can't be reached"), (Ill(size=10**13), "owner/good", "is too large"),
        (Ill(size=-1), "owner/good", "no safetensors"), (Ill(size="9"), "owner/good", "no safetensors"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_repository(
    ill: Ill, name: str, words: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "ANSWER", 0.5 if ill.info == "stalled" else 30)
    made(hub)
    hub.ills["owner/good"] = ill
    for ask in (zoo.look, zoo.load, zoo.load):
        assert words in refused(name, ask)
    assert not hub.weights and len([path for path in hub.paths if path.startswith("api/")]) <= 3, "asks again at once"


def made(hub: Hub, **config: Any) -> Path:
    """A repository whose files say what a model is, with weights that are never looked at."""
    folder = hub.root / "owner/good"
    folder.mkdir(parents=True, exist_ok=True)
    said = {"model_type": "vit", "architectures": ["ViTForImageClassification"]} | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "is a bert; Actiscope looks into resnet"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, "code of its own"),
        ({"model_type": None}, "no type"), ({"model_type": ["vit"]}, "no type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "(gptq)"),
        ({"quantization_config": {"quant_method": "awq"}}, "(awq)"),
        ({"quantization_config": {"load_in_4bit": True}}, "(bitsandbytes)"),
        ({"architectures": ["ViTModel"]}, "is a ViTModel, without a classifier"),
    ],
)  # fmt: skip
def test_what_is_no_model_for_here_is_known_from_its_configuration(
    config: dict[str, Any], words: str, hub: Hub
) -> None:
    made(hub, **config)
    assert words in refused("owner/good") and not hub.weights


def test_files_that_are_lacking_or_not_what_they_should_be(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(hub)
    index = folder / "model.safetensors.index.json"

    def without(*names: str) -> str:
        restart(monkeypatch)
        kept = {each: (folder / each).read_bytes() for each in names}
        for each in names:
            (folder / each).unlink()
        hub.commits["main"] = f"{len(hub.asked):040x}"
        reason = refused("owner/good")
        for each, data in kept.items():
            (folder / each).write_bytes(data)
        return reason

    assert "config.json" in without("config.json") and "image processor" in without("preprocessor_config.json")
    assert "no safetensors" in without("model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(3))
    assert "pickled weights (pytorch_model.bin)" in without("model.safetensors")
    for parts in ({"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
                  {"a": "../../other/model.safetensors"}, {"a": 3}, [], "x"):  # fmt: skip
        index.write_text(json.dumps({"weight_map": parts}))
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"w")
        assert "part of its weights" in without("model.safetensors")
    for text in ("", "{", "[]", "3", "[" * 50_000):
        (folder / "config.json").write_text(text)
        assert "configuration" in without()
    (folder / "config.json").write_text(" " * 2**21)
    assert "larger than such files are" in without()
    assert not hub.weights
    made(hub, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    (folder / "preprocessor_config.json").unlink()
    assert "a tokenizer" in without()


def test_own_code_is_left_alone_where_the_model_is_known_without_it(hub: Hub) -> None:
    folder = save(hub.root / "owner/good", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    (folder / "evil.py").write_text("raise SystemExit")
    plain = zoo.load(folder)(IDS)
    assert torch.equal(zoo.load("owner/good")(IDS), plain) and not any(path.endswith(".py") for path in hub.paths)


@pytest.mark.parametrize(
    "name",
    ["owner/../x", "../owner/good", "owner/good/deep", "~/x", "owner\\good", "local:owner/good", "owner/good@..",
     "owner/good@", "owner/good@a b", "owner/good?x=1", "owner/good#x", "http://x/y", "owner/good\n", "a--b/c", "."],
)  # fmt: skip
def test_names_that_are_none_are_refused_and_nobody_is_asked(name: str, hub: Hub) -> None:
    made(hub)
    for ask in (zoo.load, zoo.look):
        with pytest.raises(Unsuitable):
            ask(name)
    assert not hub.asked


def test_names_of_files_that_lead_elsewhere_are_not_seen(hub: Hub) -> None:
    made(hub)
    odd = ["../x.json", "/x.json", "a/../b", "a//b", "a\\b", "c:x", "a/./b", "x\0", "..", ""]
    entries = [{"rfilename": each, "size": 1, "blobId": "0" * 40} for each in [*odd, "a/b.json"]]
    hub.about["siblings"] = [
        *entries,
        {"rfilename": "no digest", "size": 1},
        {"rfilename": "x", "size": 1, "blobId": "../x"},
    ]
    assert list(real.listing("owner/good").files) == ["a/b.json"]


# ------------------------------------------------------------------------------------------------------------ downloads


@pytest.mark.parametrize(
    ("ill", "seen"),
    [
        (Ill(pause=0.001), [""]), (Ill(cut=[50_000]), ["", "bytes=50000-"]),
        (Ill(cut=[50_000, 0, 10_000]), ["", "bytes=50000-", "bytes=50000-", "bytes=60000-"]),
        (Ill(stall=[60_000]), ["", "bytes=60000-"]), (Ill(status=[503, 500, 429]), ["", "", "", ""]),
        (Ill(cut=[50_000], whole=True), ["", "bytes=50000-"]), (Ill(length=[10]), ["", "bytes=10-"]),
    ],
)  # fmt: skip
def test_a_line_that_breaks_is_taken_up_again(
    ill: Ill, seen: list[str], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3 if ill.stall else 10)
    data, hub.ills["owner/big"] = big(hub), ill
    assert fetch().read_bytes() == data
    assert ranges(hub)[: len(seen)] == seen
    assert {path[:40] for path in resolved(hub)} == {MAIN}


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        (Ill(flip=True), "came damaged"), (Ill(cut=[10_000] + [0] * 9), "broke off"), (Ill(more=b"x"), "more bytes"),
        (Ill(stall=[10_000] + [0] * 9), "broke off"), (Ill(status=[500] * 9), "error (500)"),
        (Ill(status=[403]), "let this machine in (403)"), (Ill(status=[404]), "error (404)"),
        (Ill(pause=0.05), "too slowly"), (Ill(length=[10] * 9999), "too slowly"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_promised_is_never_there(
    ill: Ill, words: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2 if ill.stall else 10)
    monkeypatch.setattr(real, "PATIENCE", 0.4 if "slowly" in words else 60)
    monkeypatch.setattr(real, "SLOWEST", 10**6)
    data, hub.ills["owner/big"] = big(hub, 20_000), ill
    assert words in refused("owner/big", fetch)
    cache = Path(constants.HF_HUB_CACHE)
    assert not list(cache.rglob("snapshots/*/*")), "a file that is not whole can be read"
    hub.ills.clear()
    monkeypatch.setattr(real, "PATIENCE", 60)
    assert fetch().read_bytes() == data and not list(cache.rglob("*.incomplete"))


def test_a_large_file_comes_from_another_host_which_is_told_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    data = big(hub)
    assert fetch().read_bytes() == data
    told = {
        path.split("/")[0]: (headers["host"].split(":")[0], headers.get("authorization")) for path, headers in hub.asked
    }
    assert told["cdn"] == ("localhost", None) and told["owner"] == told["api"] == ("127.0.0.1", "Bearer hf_secret")


def test_stopped_in_the_middle_and_taken_up_again(hub: Hub) -> None:
    data, hub.ills["owner/big"] = big(hub), Ill(pause=0.01)
    cancel, told = threading.Event(), []

    def report(progress: Progress) -> None:
        told.append(progress.done)
        if progress.done > 50_000:
            cancel.set()

    start = time.monotonic()
    with watch(report, cancel), pytest.raises(Cancelled):
        fetch()
    assert time.monotonic() - start < 6 and told[-1] < len(data)
    while "gone" not in hub.paths:
        assert time.monotonic() - start < 20, "goes on downloading what nobody waits for"
        time.sleep(0.02)
    hub.ills.clear()
    hub.asked.clear()
    seen: list[Progress] = []
    with watch(seen.append):
        assert fetch().read_bytes() == data
    assert int(ranges(hub)[0].removeprefix("bytes=").rstrip("-")) >= told[-1] > 0 and seen[-1].done == len(data)


CHILD = """
import sys
from interp import hub
from interp.progress import watch
def report(progress):
    if progress.done > 60_000:
        print("far enough", flush=True)
with watch(report):
    hub.fetch("owner/big", hub.listing("owner/big"), ["a.safetensors"])
assert "torch" not in sys.modules
"""


def test_killed_in_the_middle_and_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    data, hub.ills["owner/big"] = big(hub), Ill(pause=0.01)
    here = os.environ | environment(constants.ENDPOINT, tmp_path)
    child = subprocess.Popen([sys.executable, "-c", CHILD], env=here, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "far enough\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not list(Path(constants.HF_HUB_CACHE).rglob("snapshots/*/*"))
    hub.ills.clear()
    hub.asked.clear()
    assert fetch().read_bytes() == data
    assert int(ranges(hub)[0].removeprefix("bytes=").rstrip("-")) > 50_000
    assert [each.name for each in real.kept()] == [f"owner/big@{MAIN}"]


def test_many_who_ask_at_once_wait_for_one_download(hub: Hub) -> None:
    save(hub.root / "owner/good")
    hub.ills["owner/good"] = Ill(pause=0.005)
    names = ["owner/good", f"owner/good@{MAIN}", "owner/good@main", "owner/good"]
    with ThreadPoolExecutor(4) as pool:
        models = set(map(id, pool.map(zoo.load, names)))
    assert len(models) == 1 and len(hub.weights) == 1 and not progress._alone and not any(real._using.values())


def test_two_programs_that_want_the_same_file_bring_it_once(hub: Hub) -> None:
    """As another process would: with a lock of the file system."""
    data = big(hub)
    found, stop = real.listing("owner/big"), threading.Event()
    place = real._folder("owner/big")
    lock = place.parent / ".locks" / place.name / f"{found.files['a.safetensors'].digest}.lock"
    with ThreadPoolExecutor(1) as pool:
        with real._locked(lock, stop):
            waiting = pool.submit(fetch)
            time.sleep(0.3)
            assert not hub.weights and not waiting.done()
            with pytest.raises(Cancelled), watch(seconds=0.1):
                fetch()
        assert waiting.result(20).read_bytes() == data and len(hub.weights) == 1


# ---------------------------------------------------------------------------------------------------------- on the disk


def test_what_is_here_serves_when_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = zoo.load(save(hub.root / "owner/good"))(tiny.image())
    zoo.load("owner/good")
    before = constants.ENDPOINT
    for place, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9"), ("ENDPOINT", before)):
        monkeypatch.setattr(constants, "ENDPOINT", before)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, place, value)
        hub.ills = {"owner/good": Ill(503), "owner/none": Ill(503)}
        close_session()
        restart(monkeypatch)
        assert torch.equal(zoo.load("owner/good")(tiny.image()), plain)
        assert "can't be fetched" in refused("owner/none") and "can't be fetched" in refused("owner/good@v1")


def test_what_another_program_downloaded_is_used_and_never_deleted(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    data = big(hub)
    hf_hub_download("owner/big", "a.safetensors")
    asked = len(hub.weights)
    monkeypatch.setattr(real, "BUSY", 0)
    limits(hub_bytes=300_000)
    assert fetch().read_bytes() == data and len(hub.weights) == asked and not real.kept()
    big(hub, name="owner/other")
    fetch("owner/other")
    big(hub, name="owner/third")
    fetch("owner/third")
    assert [each.name for each in real.kept()] == [f"owner/third@{MAIN}"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    restart(monkeypatch)
    assert fetch().read_bytes() == data


def test_what_was_damaged_on_the_disk_is_fetched_anew(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = big(hub)
    blob = fetch().resolve()
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]), data[:100], b""):
        blob.write_bytes(damaged)
        restart(monkeypatch)
        assert fetch().read_bytes() == data
    blob.write_bytes(damaged)
    restart(monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert "can't be fetched" in refused("owner/big", fetch) or "broke off" in refused("owner/big", fetch)


def test_the_longest_unused_make_room(hub: Hub, monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    limits(hub_bytes=700_000)
    for number, name in enumerate(("owner/a", "owner/b", "owner/c")):
        big(hub, 200_000, name)
        fetch(name)
        os.utime(real._record_path(name, MAIN), (number, number))
    fetch("owner/a")  # used again, and being read
    monkeypatch.setattr(real, "HELD", [lambda: [f"owner/b@{MAIN}"]])
    big(hub, 200_000, "owner/d")
    fetch("owner/d")
    names = {each.name.split("@")[0]: each.bytes for each in real.kept()}
    assert names == dict.fromkeys(("owner/a", "owner/b", "owner/d"), 200_000), "not the longest unused that may go"
    assert not list(Path(constants.HF_HUB_CACHE).glob("models--owner--c/blobs/*"))
    big(hub, 600_000, "owner/e")
    assert "the rest is in use" in refused("owner/e", fetch)
    assert len(real.kept()) == 3 and not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    monkeypatch.setattr(real, "HELD", [])
    for name in names:
        if (path := real._record_path(name, MAIN)).exists():
            os.utime(path, (1, 1))
    fetch("owner/e")
    assert [each.name for each in real.kept()] == [f"owner/e@{MAIN}"]


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    big(hub)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(real.shutil, "disk_usage", lambda _: usage._replace(free=real.SPARE + 1000))
    assert "195 KB of disk, and 1000 bytes is free" in refused("owner/big", fetch) and not hub.weights
    monkeypatch.undo()


def test_a_disk_that_is_full_in_the_middle(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    data = big(hub)
    more = real._more

    def full(*arguments: Any) -> Any:
        for have in more(*arguments):
            yield have
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(real, "_more", full)
    assert "disk here is full" in refused("owner/big", fetch)
    monkeypatch.setattr(real, "_more", more)
    assert fetch().read_bytes() == data and ranges(hub)[-1].startswith("bytes=")


# ---------------------------------------------------------------------------------------------- a server for strangers


def test_only_what_is_offered_is_fetched(hub: Hub, limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made(hub)
    big(hub)
    limits(hosted=True, hub="owner/big@v1, owner/good")
    for name in ("owner/none", "other/big", "owner/big2"):
        assert "does not offer" in refused(name) and "does not offer" in refused(name, zoo.look)
    for name in (f"hub:{each}/x" for each in ("owner/none", "other/big")):
        assert "does not offer" in refused(name, sae_hub.fetch)
    assert "offers owner/big at v1, not at main" in refused("owner/big@main")
    assert "offers owner/big at v1" in refused("hub:owner/big/x@main", sae_hub.fetch)
    assert not hub.asked
    assert zoo.pin("owner/big") == f"owner/big@{COMMITS['v1']}", "another revision than the one that is offered"
    assert real.permitted("owner/big", COMMITS["v1"]) and zoo.pin("owner/good") == f"owner/good@{MAIN}"
    release = {
        "repo_id": "other/big",
        "model": "gpt2-small",
        "conversion_func": None,
        "saes": [{"id": "x", "path": "x"}],
    }
    monkeypatch.setattr(sae_hub, "_directory", lambda: {"some": release})
    gpt2: Any = type("M", (), {"name": "gpt2", "config": None})
    assert "does not offer" in refused("release:some/x", sae_hub.fetch) and not sae_hub.releases(gpt2)
    release["repo_id"] = "owner/big"
    assert sae_hub.releases(gpt2) == [("some", "x", None)]
    limits(hub="")
    assert "does not offer" in refused("owner/good", zoo.load)
    assert "does not offer" in refused(f"owner/good@{MAIN}", zoo.load)
    limits(hub="*")
    assert real.permitted("other/any", "v7") == "v7"


def test_a_commit_is_offered_if_it_was_on_the_branch_that_is(hub: Hub, limits: Any, tmp_path: Path) -> None:
    big(hub)
    big(hub, name="owner/next")
    hub.move("owner/big", hub.root / "owner/next")
    hub.old["5" * 40] = hub.root / "owner/big"  # of a pull request
    limits(hosted=True, hub="owner/big")
    assert fetch(f"owner/big@{MAIN}").exists() and fetch(f"owner/big@{'2' * 40}").exists()
    assert "not at 555555555555" in refused(f"owner/big@{'5' * 40}", fetch)
    assert "not at refs/pr/1" in refused("owner/big@refs/pr/1", fetch)


def test_tokens_of_the_server_are_for_what_it_offers_by_name(
    hub: Hub, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    big(hub)
    for offered, told in (("*", False), ("owner/big, *", True), ("owner/big@main", True)):
        limits(hosted=True, hub=offered)
        restart(monkeypatch)
        hub.asked.clear()
        fetch("owner/big@main")
        assert {"authorization" in headers for path, headers in hub.asked} == {told}, offered
    hub.about["gated"] = "auto"
    limits(hub="*")
    restart(monkeypatch)
    assert "is gated" in refused("owner/big", fetch), "what was fetched with a token is given to whoever asks"


def test_no_name_is_a_folder_there(hub: Hub, limits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "owner/good")
    monkeypatch.chdir(tmp_path)
    limits(hosted=True, hub="*")
    for name in (str(folder), "./owner/good", "owner/good", "~", "../x", "."):
        assert re.search("no Hugging Face id|no repository", refused(name))
    assert zoo.load(Path("owner/good")).name == "good", "but the program itself may"
