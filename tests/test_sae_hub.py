"""SAEs of the hub, through the real client against a stand-in: what is fetched is equal to what was saved there."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from interp import Unsuitable, progress, sae, sae_hub, settings
from interp import hub as real
from interp.progress import Cancelled, Progress, watch
from interp.sites import Site
from tests.hub import COMMITS, Hub, Ill, restart, serving

hub = pytest.fixture(serving)


def save(folder: Path, d_in: int = 6, d_sae: int = 10, seed: int = 0, **settings: Any) -> dict[str, torch.Tensor]:
    """A standard SAE of random weights as SAELens saves one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    folder.mkdir(parents=True)
    save_file(weights, folder / sae.WEIGHTS)
    config = {
        "architecture": "standard", "d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2-small", "sae_lens_version": "6.0.0"},
    }  # fmt: skip
    (folder / sae.CONFIG).write_text(json.dumps(config | settings))
    return weights


def refused(name: str, seconds: float = 5) -> str:
    start = time.monotonic()
    with pytest.raises(Unsuitable) as reason:
        sae.load(name)
    text = str(reason.value)
    assert "\n" not in text and 30 < len(text) < 400 and not isinstance(reason.value, AssertionError), text
    assert time.monotonic() - start < seconds
    return text


# ---------------------------------------------------------------------------------------------------- of a repository


@pytest.mark.parametrize("name", ["hub:owner/some/deep/in.it", "hub:owner/some/deep/in.it@v1", "hub:owner/flat"])
def test_what_is_fetched_is_what_was_saved(name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    where = hub.root / name.removeprefix("hub:").partition("@")[0]
    weights = save(where)
    (where / "sparsity.safetensors").write_bytes(b"not asked for")
    found = sae.load(name)
    assert found.name == name and found.site == Site("resid_pre", 1)
    assert all(torch.equal(found.weights[key], weights[key]) for key in weights)
    assert found.digest == sae.read(where).digest, "the files are the same, byte for byte"
    wanted = COMMITS["v1" if name.endswith("@v1") else "main"]
    assert {path.split("/resolve/")[1].split("/")[0] for path in hub.paths if "/resolve/" in path} == {wanted}
    assert not any("sparsity" in path for path in hub.paths)
    asked = len(hub.asked)
    assert sae_hub.fetch(name) == sae_hub.fetch(name) and len(hub.asked) == asked, "asked again in the same process"
    restart(monkeypatch)
    sae.load(name)
    assert hub.paths[asked:] == [each for each in hub.paths[asked:] if each.startswith("api/")], "downloaded again"


def test_a_commit_is_asked_for_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/x")
    name = f"hub:owner/some/x@{COMMITS['v1']}"
    sae.load(name)
    restart(monkeypatch)
    hub.asked.clear()
    sae.load(name)
    assert not hub.asked


def test_a_name_with_its_commit_means_the_same_when_the_branch_has_moved(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = save(hub.root / "owner/some/x", seed=0)
    name = sae_hub.pinned("hub:owner/some/x")
    assert name == f"hub:owner/some/x@{COMMITS['main']}" == sae_hub.pinned(name) and sae.NAME.fullmatch(name)
    save(hub.root / "owner/next/x", seed=1)
    hub.move("owner/some", hub.root / "owner/next")
    restart(monkeypatch)
    assert torch.equal(sae.load(name).W_enc, weights["W_enc"])
    assert not torch.equal(sae.load("hub:owner/some/x").W_enc, weights["W_enc"])
    assert sae_hub.pinned("release:a/b") == "release:a/b"


def test_what_moved_is_fetched_anew_by_the_next_process(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/x", seed=0)
    sae.load("hub:owner/some/x")
    weights = save(hub.root / "owner/other", seed=1)
    os.replace(hub.root / "owner/other" / sae.WEIGHTS, hub.root / "owner/some/x" / sae.WEIGHTS)
    hub.commits["main"] = "2" * 40
    restart(monkeypatch)
    assert torch.equal(sae.load("hub:owner/some/x").W_enc, weights["W_enc"])


@pytest.mark.parametrize(
    "name",
    [
        "hub:owner/../x", "hub:../owner/some/x", "hub:owner/some/..", "hub:owner", "hub:owner//x", "hub:/owner/some/x",
        "hub:owner/some//x", "hub:owner/some/x/", "hub:owner/some/./x", "hub:https://example.org/x", "hub:",
        "hub:owner/some/x@..", "hub:owner/some/x y", "release:gpt2-small-res-jb/../x", "hub:owner/some/x?a=1", "x",
        "hub:owner/some/%2e%2e/x", "hub:owner/some/x#y", "hub:owner:pw@host/x", "hub:owner/some/\nx",
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused_and_nobody_is_asked(name: str, hub: Hub) -> None:
    save(hub.root / "owner/some/x")
    with pytest.raises(Unsuitable, match="names no"):
        sae_hub.fetch(name)
    assert not hub.asked


@pytest.mark.parametrize(
    ("ill", "revision", "words", "asks"),
    [
        (Ill("gated"), "", "gated", True), (Ill("private"), "", "no repository 'owner/some'", False),
        (Ill(403), "", "does not let this machine in (403)", False), (Ill(503), "", "an error (503)", False),
        (Ill(size=10**13), "", "GB", False), (Ill(), "@v9", "tag or commit 'v9'", False),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_repository(ill: Ill, revision: str, words: str, asks: bool, hub: Hub) -> None:
    save(hub.root / "owner/some/x")
    hub.ills["owner/some"] = ill
    assert words in refused(f"hub:owner/some/x{revision}")
    assert any("/resolve/" in path for path in hub.paths) == asks


def test_what_is_not_there(hub: Hub) -> None:
    assert "no repository 'owner/none'" in refused("hub:owner/none/x")
    save(hub.root / "owner/some/x")
    assert "cfg.json in 'y'" in refused("hub:owner/some/y")
    assert "its first folder" in refused("hub:owner/some")
    (hub.root / "owner/some/x" / sae.WEIGHTS).rename(hub.root / "owner/some/x/sae_weights.pt")
    assert "pickled weights (sae_weights.pt)" in refused("hub:owner/some/x")
    (hub.root / "owner/some/x/sae_weights.pt").unlink()
    assert sae.WEIGHTS in refused("hub:owner/some/x")
    assert not any("/resolve/" in path for path in hub.paths), "downloaded what it refuses"


def test_the_limit_is_that_of_the_files_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/x")
    (hub.root / "owner/some/x/other.safetensors").write_bytes(bytes(5000))
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, sae_bytes=4000))
    sae.load("hub:owner/some/x")
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, sae_bytes=400))
    assert "the limit here is 400 bytes" in refused("hub:owner/some/x@v1")


def test_weights_as_older_versions_wrote_them(hub: Hub) -> None:
    folder = hub.root / "owner/some/x"
    weights = save(folder, architecture="jumprelu")
    threshold = torch.rand(10, generator=torch.Generator().manual_seed(3))
    save_file(weights | {"log_threshold": threshold.log(), "scaling_factor": torch.ones(10)}, folder / sae.WEIGHTS)
    torch.testing.assert_close(sae.load("hub:owner/some/x").weights["threshold"], threshold)
    save_file(weights | {"threshold": threshold, "scaling_factor": 1 + threshold}, folder / sae.WEIGHTS)
    assert "scaling_factor" in refused("hub:owner/some/x@v1")


def test_weights_that_are_damaged_on_the_hub(hub: Hub) -> None:
    save(hub.root / "owner/some/x")
    (hub.root / "owner/some/x" / sae.WEIGHTS).write_bytes(b"<html>")
    assert "damaged" in refused("hub:owner/some/x")


def test_what_was_fetched_is_there_when_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = save(hub.root / "owner/some/x")
    sae.load("hub:owner/some/x")
    away = [
        lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True),
        lambda: monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"),
        lambda: hub.ills.update({"owner/some": Ill(503), "owner/other": Ill(503)}),
    ]
    before = constants.ENDPOINT
    for leave in away:
        monkeypatch.setattr(constants, "ENDPOINT", before)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        leave()
        close_session()
        restart(monkeypatch)
        assert torch.equal(sae.load("hub:owner/some/x").W_enc, weights["W_enc"])
        assert "can't be fetched" in refused("hub:owner/other/y")


def test_many_who_ask_at_once_download_it_once(hub: Hub) -> None:
    save(hub.root / "owner/some/x")
    hub.ills["owner/some"] = Ill(pause=0.3)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: sae_hub.fetch("hub:owner/some/x"), range(8)))
    assert len(folders) == 1
    assert len([path for path in hub.paths if path.startswith("api/")]) == 1
    assert len(hub.weights) == 1


def test_progress_and_cancel_in_the_middle_of_a_file(hub: Hub) -> None:
    save(hub.root / "owner/some/x")
    seen: list[Progress] = []
    with watch(seen.append):
        sae_hub.fetch("hub:owner/some/x")
    assert seen and seen[0].label == "Fetching hub:owner/some/x" and all(0 <= each.done <= each.total for each in seen)
    save(hub.root / "owner/other/x", d_sae=4000, seed=1)
    hub.ills["owner/other"], cancel, told = Ill(pause=0.03), threading.Event(), []

    def report(progress: Progress) -> None:
        told.append(progress.done)
        if len(told) > 5 and told[-1] > 0:
            cancel.set()

    start = time.monotonic()
    with watch(report, cancel), pytest.raises(Cancelled):
        sae_hub.fetch("hub:owner/other/x")
    assert time.monotonic() - start < 5
    while "gone" not in hub.paths:
        assert time.monotonic() - start < 20, "goes on downloading what nobody waits for"
        time.sleep(0.05)


def test_whoever_waits_for_another_can_stop(hub: Hub) -> None:
    with progress.alone("hub:owner/some/x"), ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with watch(seconds=0.3):
                sae_hub.fetch("hub:owner/some/x")

        with pytest.raises(Cancelled):
            pool.submit(wait).result(timeout=10)


# --------------------------------------------------------------------------------------------------------- of releases


def directory(monkeypatch: pytest.MonkeyPatch, **entry: Any) -> None:
    """One release "some" whose SAE "blocks.1/x" lies in the folder "l1" of owner/some."""
    keys = ("neuronpedia", "norm_scaling_factor", "path")
    one = {"id": "blocks.1/x", "path": "l1"} | {key: entry.pop(key) for key in keys if key in entry}
    release = {"repo_id": "owner/some", "model": "gpt2-small", "conversion_func": None, "saes": [one]} | entry
    monkeypatch.setattr(sae_hub, "_directory", lambda: {"some": release})


def x(d_in: int = 6) -> torch.Tensor:
    return 3 * torch.randn(50, d_in, generator=torch.Generator().manual_seed(5)) + 1


def test_a_release_comes_with_what_it_says_of_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/l1")
    directory(monkeypatch, neuronpedia="gpt2-small/1-x", config_overrides={"normalize_activations": "layer_norm"})
    found, plain = sae.load("release:some/blocks.1/x"), sae.read(hub.root / "owner/some/l1")
    assert found.neuronpedia == "https://www.neuronpedia.org/gpt2-small/1-x" and plain.neuronpedia is None
    assert found.config["normalize_activations"] == "layer_norm" and found.metadata["model_name"] == "gpt2-small"
    assert found.site == plain.site and all(
        torch.equal(found.weights[key], plain.weights[key]) for key in plain.weights
    )


@pytest.mark.parametrize("setting", ["expected_average_only_in", True, "none"])
def test_the_scale_of_a_release_is_folded_in(setting: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"metadata": {}} if setting == "none" else {}
    save(hub.root / "owner/some/l1", normalize_activations=setting, **old)
    directory(monkeypatch, norm_scaling_factor=2.5)
    plain = sae.read(hub.root / "owner/some/l1")
    found = sae.load("release:some/blocks.1/x")
    assert found.config["normalize_activations"] == "none"
    scale = 1 if setting == "none" else 2.5
    # f of the folded one at x is f of the other at s x, and its reconstruction is 1/s of the other's
    torch.testing.assert_close(found.encode(x()), plain.encode(scale * x()), atol=1e-4, rtol=1e-4)
    there = plain.decode(plain.encode(scale * x()), x()) / scale
    torch.testing.assert_close(found.decode(found.encode(x()), x()), there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("takes_off", [True, False])
@pytest.mark.parametrize("factor", [None, 1.7])
def test_one_of_a_centred_model_takes_the_mean_off(
    takes_off: bool, factor: float | None, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(hub.root / "owner/some/l1", apply_b_dec_to_input=takes_off, normalize_activations="expected_average_only_in")
    centring = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    directory(monkeypatch, config_overrides=centring, norm_scaling_factor=factor)
    plain, found = sae.read(hub.root / "owner/some/l1"), sae.load("release:some/blocks.1/x")
    there = plain.encode((factor or 1) * (x() - x().mean(-1, keepdim=True)))
    torch.testing.assert_close(found.encode(x()), there, atol=1e-4, rtol=1e-4)


def test_a_release_is_copied_once_and_is_there_when_the_hub_is_away(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/l1")
    directory(monkeypatch)
    first = sae_hub.fetch("release:some/blocks.1/x")
    made = (first / sae.CONFIG).stat().st_mtime_ns
    restart(monkeypatch)
    assert sae_hub.fetch("release:some/blocks.1/x") == first and (first / sae.CONFIG).stat().st_mtime_ns == made
    restart(monkeypatch)
    hub.ills["owner/some"] = Ill(503)
    assert sae_hub.fetch("release:some/blocks.1/x") == first
    restart(monkeypatch)
    hub.ills.clear()
    (first / sae.WEIGHTS).unlink()
    assert sae_hub.fetch("release:some/blocks.1/x") == first and (first / sae.WEIGHTS).exists()


def test_releases_that_are_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    save(hub.root / "owner/some/l1")
    directory(monkeypatch)
    assert "no release 'none'" in refused("release:none/x")
    assert "no SAE 'blocks.2'" in refused("release:some/blocks.2")
    directory(monkeypatch, conversion_func="temporal")
    assert "temporal" in refused("release:some/blocks.1/x")
    for conversion, path, files in (
        ("dictionary_learning_1", "l2", ("l2/ae.pt", "l2/config.json")),
        ("qwen_scope", "layer0.sae.pt", ("layer0.sae.pt",)),
        ("gemma_2", "l3", ("l3/params.pkl",)),
        ("goodfire", "l4.pth", ("l4.pth", "l4.pth.safetensors")),
    ):
        for file in files:
            (hub.root / "owner/some" / file).parent.mkdir(exist_ok=True)
            (hub.root / "owner/some" / file).write_bytes(b"x")
        directory(monkeypatch, conversion_func=conversion, path=path)
        assert "pickled weights" in refused("release:some/blocks.1/x")
    directory(monkeypatch, conversion_func="gemma_2", path="l5")
    assert "no weights for 'l5'" in refused("release:some/blocks.1/x")
    (hub.root / "owner/some/l6").mkdir()
    (hub.root / "owner/some/l6/params.npz").write_bytes(b"x")
    directory(monkeypatch, conversion_func="gemma_2", path="l6")
    (hub.root / "owner/some/l6/other.safetensors").write_bytes(b"x")
    hub.ills["owner/some"] = Ill(size=10**13)
    assert "GB" in refused("release:some/blocks.1/x")
    assert not any("/resolve/" in path for path in hub.paths), "downloaded what it refuses"


def test_the_releases_of_a_model() -> None:
    def of(name: str) -> list[tuple[str, str, str | None]]:
        return sae_hub.releases(SimpleNamespace(name=name, config=SimpleNamespace(_name_or_path="")))  # type: ignore[arg-type]

    gpt2 = of("openai-community/gpt2")
    assert gpt2 == of("gpt2@main") == of("gpt2-small")
    assert ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "gpt2-small/8-res-jb") in gpt2
    assert not any(release == "gpt2-small-hook-z-kk" for release, *_ in gpt2), "these are pickled"
    assert len(of("google/gemma-3-270m")) > 300 and not of("stories")
    assert all(sae.NAME.fullmatch(f"release:{release}/{one}") for release, one, _ in gpt2)


def test_every_entry_of_the_list_has_a_name_that_finds_it() -> None:
    for release, entry in sae_hub._directory().items():
        for one in entry["saes"]:
            name = f"{release}/{one['id']}"
            assert sae.NAME.fullmatch(f"release:{name}")
            if entry["conversion_func"] != "temporal":
                assert sae_hub._entry(name) == (release, entry, one)


# ---------------------------------------------------------------------------------------------- converted by SAELens


def llama_scope(root: Path) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """A small one as Llama Scope's are stored, and f(x) as its authors define it."""
    folder = root / "fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L0R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    g = torch.Generator().manual_seed(1)
    weights = {
        "encoder.weight": torch.randn(12, 8, generator=g), "encoder.bias": torch.randn(12, generator=g),
        "decoder.weight": torch.randn(8, 12, generator=g), "decoder.bias": torch.randn(8, generator=g),
    }  # fmt: skip
    save_file(weights, folder / "checkpoints/final.safetensors")
    norm = 8**0.5 / 58.935251798561154  # so that sqrt(d) / norm is the factor of that release
    settings = {
        "d_model": 8, "d_sae": 12, "jump_relu_threshold": 0.01, "hook_point_in": "blocks.0.hook_resid_post",
        "dataset_average_activation_norm": {"in": norm},
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(settings))

    def encode(at: torch.Tensor) -> torch.Tensor:
        scale = 8**0.5 / norm
        before = (scale * at) @ weights["encoder.weight"].T + weights["encoder.bias"]
        return before.relu() * (before > 0.01 * scale)

    return "release:llama_scope_lxr_8x/l0r_8x", encode


def gemma_scope(root: Path) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    """A small one as Gemma Scope 2's are stored: SAELens asks for a part of the file to learn its shapes."""
    folder = root / "google/gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big"
    folder.mkdir(parents=True)
    g = torch.Generator().manual_seed(2)
    shapes = {"w_enc": (8, 12), "w_dec": (12, 8), "b_enc": (12,), "b_dec": (8,), "threshold": (12,)}
    weights = {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}
    save_file(weights, folder / "params.safetensors")
    settings = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt"}
    (folder / "config.json").write_text(json.dumps(settings))

    def encode(at: torch.Tensor) -> torch.Tensor:
        before = at @ weights["w_enc"] + weights["b_enc"]
        return before.relu() * (before > weights["threshold"])

    return "release:gemma-scope-2-270m-pt-res/layer_12_width_16k_l0_big", encode


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama_scope, gemma_scope])
def test_a_release_that_sae_lens_converts(make: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    name, encode = make(hub.root)
    found = sae.load(name)
    torch.testing.assert_close(found.encode(x(8)), encode(x(8)), atol=1e-4, rtol=1e-4)
    assert {path.split("/resolve/")[1][:40] for path in hub.paths if "/resolve/" in path} == {COMMITS["main"]}
    asked = len(hub.asked)
    restart(monkeypatch)
    start = time.monotonic()
    assert sae.load(name).digest == found.digest and time.monotonic() - start < 3, "converted again"
    assert len(hub.asked) == asked + 1


@pytest.mark.slow
def test_what_sae_lens_can_not_convert_is_said_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    name, _ = gemma_scope(hub.root)
    folder = next(hub.root.rglob("config.json")).parent
    (folder / "config.json").write_text('{"architecture": "other"}')
    assert "SAELens can't convert" in refused(name, seconds=60)
    assert not [each for each in (tmp_path / "store/saes-hub").iterdir() if each.is_dir()], "leaves something behind"


@pytest.mark.slow
def test_no_pickle_is_opened_in_the_conversion(hub: Hub, tmp_path: Path) -> None:
    """Even where the list of files did not give it away."""
    folder = hub.root / "canrager/lm_sae/pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0"
    folder.mkdir(parents=True)
    torch.save({"W_enc": torch.zeros(2, 3)}, folder / "ae.pt")
    trainer = {"layer": 3, "dict_class": "AutoEncoderTopK", "k": 2, "activation_dim": 2, "dict_size": 3, "lm_name": "p"}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    made = tmp_path / "made" / "sae"
    made.mkdir(parents=True)
    release, one = "sae_bench_pythia70m_sweep_topk_ctx128_0730", "blocks.3.hook_resid_post__trainer_0"
    listed = real.Listing("canrager/lm_sae", "", COMMITS["main"], {})
    with pytest.raises(Unsuitable, match="pickled, which can run any code"):
        sae_hub._converted(f"release:{release}/{one}", release, one, listed, made)


@pytest.mark.slow
def test_a_release_is_what_sae_lens_makes_of_it(hub: Hub, tmp_path: Path) -> None:
    """An old configuration, a factor to be folded and a centred model, in one entry of the real list."""
    release, one = "gpt2-small-mlp-tm", "blocks.0.hook_mlp_out"
    where = hub.root / "tommmcgrath/gpt2-small-mlp-out-saes/sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1"
    save(where)
    old = {
        "hook_point": "blocks.0.hook_mlp_out", "d_in": 6, "d_sae": 10, "model_name": "gpt2-small", "dtype": "float32",
        "device": "cpu", "normalize_activations": "expected_average_only_in", "activation_fn_str": "relu",
    }  # fmt: skip
    (where / sae.CONFIG).write_text(json.dumps(old))
    code = (
        "import sys, torch; from sae_lens import SAE; from safetensors.torch import load_file, save_file; "
        "found = SAE.from_pretrained(*sys.argv[1:3]); x = load_file(sys.argv[3])['x']; f = found.encode(x).detach(); "
        "save_file({'f': f, 'out': found.decode(f).detach()}, sys.argv[4])"
    )
    save_file({"x": x() - x().mean(-1, keepdim=True)}, tmp_path / "x")
    command = [sys.executable, "-c", code, release, one, str(tmp_path / "x"), str(tmp_path / "there")]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    there, found = load_file(tmp_path / "there"), sae.load(f"release:{release}/{one}")
    assert (there["f"] > 0).any() and found.site == Site("mlp_out", 0) and found.metadata["model_name"] == "gpt2-small"
    torch.testing.assert_close(found.encode(x()), there["f"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.decode(there["f"], x()), there["out"], atol=1e-5, rtol=1e-5)
