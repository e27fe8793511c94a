"""`python -m interp run`: every kind of spec and what it leaves, and what is said of one that can't be run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from interp import feature_index, zoo
from interp import sae as saes
from interp.__main__ import main
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.samples import Image, Prompt, TextSet
from tests import tiny
from tests.test_feature_index import documents

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))


def spec(folder: Path, value: Any, name: str = "spec.json") -> str:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_an_experiment_gives_the_result_it_gives_in_python(tmp_path, capsys):
    prompt = Prompt("When Mary and John went to the store, John gave a drink to")
    experiment = Experiment("stories", prompt, Call("logit_lens"), (Call("ablate_heads", heads=((2, 1),)),))
    assert main(["run", spec(tmp_path, experiment.to_json())]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "spec" / "result.json")
    wanted = experiment.run()
    found, same = (json.loads(each) for each in ((tmp_path / "spec" / "result.json").read_text(), wanted.to_json()))
    assert found == same | {"forwards": found["forwards"]}  # the second time the activations are known
    with np.load(tmp_path / "spec" / "result.npz") as found:
        for name, value in wanted.arrays().items():
            np.testing.assert_array_equal(found[name], value)


def test_an_experiment_may_name_a_folder_and_a_photo_beside_it(tmp_path):
    folder, model = tmp_path / "mine", tiny.vision("resnet")
    model._network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    tiny.image(3).picture.save(tmp_path / "photo.png")
    value = {"v": "1", "model": "mine", "image": "photo.png", "lens": {"method": "grad_cam", "settings": {}}}
    assert main(["run", spec(tmp_path, value | {"interventions": []}), "--out", str(tmp_path / "there")]) == 0
    wanted = METHODS["grad_cam"](zoo.load(str(folder)), Image.open(tmp_path / "photo.png"))
    with np.load(tmp_path / "there" / "result.npz") as found:
        np.testing.assert_array_equal(found["values"], wanted.values)


def test_a_fit_prints_what_it_returns(tmp_path, capsys):
    texts = documents(30, 0)
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in texts))
    model = zoo.load("stories")
    sae = saes.load("stories/resid_post.2")
    keys = []
    for data in ({"texts": list(texts)}, "corpus.txt", "corpus.jsonl"):
        value = {"fit": "build_index", "model": "stories", "data": data, "settings": {"sae": sae.name, "context": 64}}
        assert main(["run", spec(tmp_path, value)]) == 0
        keys.append(capsys.readouterr().out.strip())
    found = [feature_index.find(model, sae, key) for key in keys]
    wanted = feature_index.build(model, sae, TextSet(texts), context=64)
    assert found[0].path == wanted.path and [each.name for each in found[1:]] == ["corpus.txt", "corpus.jsonl"]
    for each in found:
        np.testing.assert_array_equal(each.context_ids, wanted.context_ids)


def test_a_lens_over_a_file_leaves_arrays_and_facts(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("The cat sat\n\nThe dog ran\n")
    value = {"lens": "logit_lens", "over": "prompts.txt", "model": "stories"}
    change = {"method": "ablate_heads", "settings": {"heads": [[2, 1]]}}
    assert main(["run", spec(tmp_path, value | {"interventions": [change, "scale_site"]})]) == 0
    assert capsys.readouterr().out == f"2 samples in {tmp_path / 'spec'}\n"
    facts = [json.loads(line) for line in (tmp_path / "spec" / "facts.jsonl").read_text().splitlines()]
    assert [each["of"] for each in facts] == ["The cat sat", "The dog ran"]
    change_call = Call("ablate_heads", heads=((2, 1),))
    wanted = Experiment("stories", Prompt("The dog ran"), Call("logit_lens"), (change_call,)).run()
    found = load_file(tmp_path / "spec" / "00000.safetensors")
    np.testing.assert_array_equal(found["1/values"], wanted.values)


def test_a_harvest_leaves_shards_and_runs_again_without_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.txt").write_text("The cat sat\nThe dog ran\n")
    value = {"harvest": {"model": "stories", "sites": ["resid_post.1"], "data": "texts.txt", "dtype": "float16"}}
    path = spec(tmp_path, value)
    assert main(["run", path]) == 0
    assert capsys.readouterr().out == f"1 shard in {tmp_path / 'spec'}\n"
    found = load_file(tmp_path / "spec" / "00000.safetensors")["resid_post.1"]
    assert found.dtype == np.float16 and len(found) > 4
    monkeypatch.setattr("interp.jobs.Harvest.shard", None)
    assert main(["run", path]) == 0


NO = {"v": "1", "model": "stories", "prompt": "a", "interventions": []}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "A spec is"),
        ("{}", "A spec is"),
        ('{"fit": NaN}', "holds NaN"),
        (" " * 2**20 + "{}", "larger than 1 MB"),
        (NO | {"lens": {"method": "nothing", "settings": {}}}, "no method called"),
        (NO | {"lens": 3}, "not an experiment"),
        (NO | {"lens": {"method": "logit_lens", "settings": {}}, "model": "../../etc\0"}, "no folder here"),
        ({"fit": "logit_lens", "model": "stories"}, "is a lens, not a fit"),
        ({"fit": "build_index"}, 'lacks "model"'),
        ({"fit": "build_index", "model": "stories", "layers": 3}, 'no "layers"'),
        ({"fit": "build_index", "model": "stories", "data": "none.txt"}, "no file or folder"),
        ({"fit": "build_index", "model": "stories", "data": "x" * 5000}, "no file or folder"),
        ({"fit": "build_index", "model": "stories", "data": {"texts": [1]}}, "text of whole characters"),
        ({"fit": "build_index", "model": "stories", "data": 1}, "Data are"),
        ({"fit": "build_index", "model": "stories", "settings": {"context": 1}}, "from 2 to 4096"),
        ({"fit": ["build_index"], "model": "stories"}, "A method is"),
        ({"harvest": []}, "is an object"),
        ({"harvest": {"model": "stories", "sites": "z.1", "data": {"texts": ["a"]}}}, "list of sites"),
        ({"harvest": {"model": "stories", "sites": ["z.1"], "data": {"texts": ["a"]}, "batch": 0.5}}, "whole number"),
        ({"harvest": {"model": 5, "sites": ["z.1"], "data": {"texts": ["a"]}}}, "name of the shelf"),
        ({"lens": "logit_lens", "over": {"images": ["chelsea"]}, "model": "stories"}, "looks at Prompt"),
        ({"lens": "grad_cam", "over": {"texts": ["a"]}, "model": "stories"}, "needs an image model"),
        ({"lens": "logit_lens", "over": {"texts": ["a"]}, "model": "stories", "interventions": {}}, "list of methods"),
        ({"lens": "ablate_heads", "over": {"texts": ["a"]}, "model": "stories"}, "not a lens"),
    ],
)
def test_what_can_not_be_run_is_said_in_a_sentence(value, words, tmp_path, capsys):
    assert main(["run", spec(tmp_path, value)]) == 1
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_wrong_usage_and_files_that_are_not_there(tmp_path, capsys):
    for arguments in ([], ["run"], ["walk"], ["run", "a.json", "--on", "cloud"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert main(["run", str(tmp_path / "none.json")]) == 1 and "can't be read" in capsys.readouterr().err
    path = spec(tmp_path, {"harvest": {"model": "stories", "sites": ["z.1"], "data": {"texts": ["a"]}}})
    assert main(["run", path, "--on", "pool", "--workers", "0"]) == 1
    assert "number from 1" in capsys.readouterr().err


def test_a_terminal_is_shown_how_far_it_is(tmp_path, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    path = spec(tmp_path, {"harvest": {"model": "stories", "sites": ["z.1"], "data": {"texts": ["a cat"]}}})
    assert main(["run", path]) == 0
    shown = screen.getvalue()
    assert "harvesting texts: 1 of 1, 0 s left" in shown and shown.endswith("\r\x1b[K")


@pytest.mark.slow
def test_interrupted_it_goes_on_with_the_same_command_to_the_same_bytes(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(documents(250, 1, 60)))
    path = spec(tmp_path, {"lens": "direct_logit_attribution", "over": "texts.txt", "model": "stories"})
    command = [sys.executable, "-m", "interp", "run", path, "--out", str(tmp_path / "cut")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as cut:
        manifest = tmp_path / "cut" / "manifest.jsonl"
        while not manifest.exists() or manifest.read_text().count("\n") < 3:
            assert cut.poll() is None
            time.sleep(0.02)
        cut.send_signal(signal.SIGINT)
        assert cut.communicate(timeout=60) == ("", "Stopped; the same command goes on with the rest.\n")
        assert cut.returncode == 130
    done = {each.name: os.stat(each).st_mtime_ns for each in (tmp_path / "cut").glob("*.safetensors")}
    assert 2 <= len(done) < 16
    for out in ("cut", "whole"):
        assert main(["run", path, "--out", str(tmp_path / out)]) == 0
        said = capsys.readouterr()
        assert (said.out, said.err) == (f"250 samples in {tmp_path / out}\n", "")
    names = {each.name for each in (tmp_path / "whole").iterdir()}
    assert names == {each.name for each in (tmp_path / "cut").iterdir()} and len(names) == 18
    for name in names - {"manifest.jsonl"}:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for name, when in done.items():
        assert os.stat(tmp_path / "cut" / name).st_mtime_ns == when
