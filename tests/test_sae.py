"""SAEs against SAELens itself, closed forms, and whatever can be wrong with a folder."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp import Missing, Unsuitable, sae, settings, store
from interp.experiment import Call
from interp.sites import Site
from tests import tiny

PLAIN = ("standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
D_IN, D_SAE, D_OUT = 16, 48, 12


@pytest.fixture(scope="session")
def lens() -> Any:
    """SAELens, whose import takes nine seconds."""
    import sae_lens

    return sae_lens


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))


def drawn(theirs: Any, seed: int) -> Any:
    """Their SAE with every weight, bias and threshold drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in theirs.named_parameters():
            each.copy_(0.5 * torch.randn(each.shape, generator=generator))
            if name == "threshold":
                each.abs_()
            if name == "W_dec" and theirs.cfg.architecture() == "matching_pursuit":
                each.div_(each.norm(dim=1, keepdim=True))
    return theirs.eval()


def made(lens: Any, folder: Path, architecture: str, seed: int = 0, **settings: Any) -> tuple[Any, sae.SAE]:
    config = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": True}
    if architecture in TRANSCODERS:
        config |= {"apply_b_dec_to_input": False, "d_out": D_OUT}
    if "topk" in architecture:
        config["k"] = 6
    theirs = drawn(lens.SAE.from_dict(config | settings), seed)
    theirs.cfg.metadata.hook_name = settings.get("metadata", {}).get("hook_name", "blocks.0.hook_resid_post")
    theirs.save_model(folder)
    return theirs, sae.read(folder)


def inputs(seed: int = 0, *shape: int) -> Tensor:
    return 1.5 * torch.randn(*(shape or (4, 9)), D_IN, generator=torch.Generator().manual_seed(100 + seed)) + 0.3


def near(mine: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> None:
    assert mine.shape == theirs.shape
    assert float((mine - theirs).detach().abs().max()) <= tolerance * float(theirs.detach().abs().max())


# ------------------------------------------------------------------------------------------------- equal to SAELens


VARIANTS: list[dict[str, Any]] = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale"},
    {"normalize_activations": "expected_average_only_in"},
]
CASES = [
    *[(kind, settings) for kind in PLAIN for settings in VARIANTS],
    *[(kind, {"rescale_acts_by_decoder_norm": True, **each}) for kind in ("topk", "abstopk") for each in VARIANTS[:3]],
    *[(kind, settings) for kind in TRANSCODERS for settings in ({}, VARIANTS[2])],
    ("matching_pursuit", {"max_iterations": 3}),
    ("matching_pursuit", {"residual_threshold": 0.7, "stop_on_duplicate_support": False}),
    ("matching_pursuit", {"residual_threshold": 0.0, "max_iterations": 4, "stop_on_duplicate_support": False}),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "settings"), CASES, ids=lambda each: each if isinstance(each, str) else str(each))
def test_encode_and_decode_are_those_of_saelens(
    lens: Any, tmp_path: Path, kind: str, settings: dict[str, Any], seed: int
) -> None:
    theirs, mine = made(lens, tmp_path / "sae", kind, seed, **settings)
    x = inputs(seed)
    with torch.no_grad():
        f, found = theirs.encode(x), mine.encode(x)
        near(found, f)
        assert 0 < float((f != 0).float().mean()) < 0.95
        assert torch.equal(found != 0, f != 0)
        whole = theirs(x)  # of a skip transcoder, decode alone leaves the skip out
        near(mine.decode(found, x), whole)
    assert (mine.architecture, mine.d_in, mine.d_sae) == (kind, D_IN, D_SAE)
    assert mine.d_out == (D_OUT if kind in TRANSCODERS else D_IN)


def test_heads_side_by_side_as_hook_z_reshapes_them(lens: Any, tmp_path: Path) -> None:
    theirs, mine = made(
        lens, tmp_path / "sae", "standard", reshape_activations="hook_z", metadata={"hook_name": "blocks.1.attn.hook_z"}
    )
    z = inputs(0, 2, 5).unflatten(-1, (4, 4))
    model = tiny.language("gpt2")
    with torch.no_grad():
        f = theirs.encode(z)
        x = mine.rows(z, model)
        assert mine.site == Site("z", 1)
        near(mine.encode(x), f)
        near(mine.unrows(mine.decode(f, x), z, model), theirs.decode(f))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk", "topk", "standard", "gated", "jumprelu"])
@pytest.mark.parametrize("norm", ["none", "expected_average_only_in"])
def test_what_training_saves_for_inference(lens: Any, tmp_path: Path, kind: str, norm: str) -> None:
    config: dict[str, Any] = {"architecture": kind, "d_in": D_IN, "d_sae": D_SAE, "normalize_activations": norm}
    config |= {"k": 5} if "topk" in kind else {}
    config |= {"matryoshka_widths": [8, D_SAE]} if "matryoshka" in kind else {}
    training = lens.TrainingSAE.from_dict(lens.TrainingSAE.get_sae_config_class_for_architecture(kind)(
        **{key: value for key, value in config.items() if key != "architecture"}
    ).to_dict())  # fmt: skip
    drawn(training, 0)
    if "batchtopk" in kind:
        training.topk_threshold.fill_(0.8)
    training.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    if norm != "none":
        training.fold_activation_norm_scaling_factor(0.7)
    training.save_inference_model(tmp_path)
    theirs, mine, x = lens.SAE.load_from_disk(tmp_path), sae.read(tmp_path), inputs()
    with torch.no_grad():
        f = theirs.encode(x)
        near(mine.encode(x), f)
        near(mine.decode(f, x), theirs(x))
    assert "batchtopk" not in mine.architecture


OLD: dict[str, Any] = {
    "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
    "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "context_size": 128, "d_in": D_IN,
    "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "normalize_activations": False,
    "neuronpedia_id": "gpt2-small/8-res-jb", "apply_b_dec_to_input": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        {"architecture": "gated", "normalize_activations": "layer_norm"},
        {"architecture": "jumprelu", "normalize_activations": True, "hook_name": "blocks.8.hook_resid_pre"},
        {"architecture": None, "normalize_activations": None, "apply_b_dec_to_input": False},
    ],
)
def test_a_configuration_of_before_version_6(lens: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    config = OLD | change
    kind = config.get("architecture") or ("topk" if "activation_fn_str" in config else "standard")
    tiny.random_sae(tmp_path, kind, D_IN, D_SAE)
    (tmp_path / sae.CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    theirs, mine, x = lens.SAE.load_from_disk(tmp_path), sae.read(tmp_path), inputs()
    with torch.no_grad():
        near(mine.encode(x), theirs.encode(x))
        near(mine.decode(theirs.encode(x), x), theirs(x))
    assert mine.site == Site("resid_pre", 8) and mine.metadata["model_name"] == "gpt2-small"
    assert mine.neuronpedia == "https://www.neuronpedia.org/gpt2-small/8-res-jb"


@pytest.mark.parametrize("kind", [*PLAIN, *TRANSCODERS])
def test_the_weights_that_the_tests_draw_are_in_saelens_s_format(lens: Any, tmp_path: Path, kind: str) -> None:
    settings = {"d_out": D_OUT} if kind in TRANSCODERS else {}
    tiny.random_sae(tmp_path, kind, D_IN, D_SAE, **settings)
    theirs, mine, x = lens.SAE.load_from_disk(tmp_path), sae.read(tmp_path), inputs(2)
    with torch.no_grad():
        near(mine.encode(x), theirs.encode(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_computed_with_in_float(lens: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = tiny.random_sae(tmp_path, "standard", D_IN, D_SAE)
    save_file({key: each.to(dtype) for key, each in weights.items()}, tmp_path / sae.WEIGHTS)
    theirs, mine, x = lens.SAE.load_from_disk(tmp_path), sae.read(tmp_path), inputs(2)
    with torch.no_grad():
        near(mine.encode(x), theirs.encode(x))
        assert mine.encode(x.to(dtype)).dtype == torch.float32
        near(mine.encode(x.to(dtype)), theirs.encode(x.to(dtype)))


# --------------------------------------------------------------------------------------------- equal to themselves


SHAPES = [
    (kind, each)
    for kind in (*PLAIN, *TRANSCODERS)
    for each in (({}, {"rescale_acts_by_decoder_norm": True}) if "topk" in kind else ({},))
]
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def random(folder: Path, kind: str, seed: int = 0, **settings: Any) -> sae.SAE:
    tiny.random_sae(folder, kind, D_IN, D_SAE, seed, **({"d_out": D_OUT} if kind in TRANSCODERS else {}) | settings)
    return sae.read(folder)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "settings"), SHAPES)
def test_columns_and_sparse_are_parts_of_encode(tmp_path: Path, kind: str, settings: dict[str, Any], norm: str) -> None:
    mine, x = random(tmp_path, kind, normalize_activations=norm, **settings), inputs()
    whole, which = mine.encode(x), torch.tensor([0, 7, 7, 47, 3])
    near(mine.columns(x, which), whole[..., which])
    assert mine.columns(x, which[:0]).shape == (4, 9, 0)
    rows, features, values = mine.sparse(x.flatten(0, 1))
    assert (rows.diff() >= 0).all() and (values != 0).all()
    dense = torch.zeros(36, D_SAE).index_put((rows, features), values)
    assert torch.equal(dense, mine.encode(x.flatten(0, 1)))
    if norm != "layer_norm":  # whose deviation of nothing warns
        assert mine.encode(x[:0]).shape == (0, 9, D_SAE) and mine.decode(whole[:0], x[:0]).shape == (0, 9, mine.d_out)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "settings"), SHAPES)
def test_directions_and_shifts_are_how_the_reconstruction_moves(
    tmp_path: Path, kind: str, settings: dict[str, Any], norm: str
) -> None:
    mine, x = random(tmp_path, kind, normalize_activations=norm, **settings), inputs(1, 3)
    f = (torch.rand(3, D_SAE, generator=torch.Generator().manual_seed(1)) + 0.1).requires_grad_()
    slope = torch.autograd.functional.jacobian(lambda each: mine.decode(each, x), f)
    own = torch.stack([slope[row, :, row] for row in range(3)]).transpose(1, 2)  # [row, feature, out]
    which = torch.tensor([5, 0, 47])
    near(mine.directions(x, which), own[:, which], 1e-5)
    by = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    moved = f.detach().index_add(1, which, by)
    near(mine.shift(x, which, by), (mine.decode(moved, x) - mine.decode(f.detach(), x)), 1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("kind", "settings"), SHAPES)
def test_gradients_in_x(tmp_path: Path, kind: str, settings: dict[str, Any], norm: str) -> None:
    single = random(tmp_path, kind, normalize_activations=norm, **settings)
    mine = dataclasses.replace(single, weights={key: each.double() for key, each in single.weights.items()})
    x = inputs(3, 2).double().requires_grad_()
    which = torch.tensor([1, 9, 30])
    assert torch.autograd.gradcheck(mine.encode, (x,))
    assert torch.autograd.gradcheck(lambda each: mine.columns(each, which), (x,))
    assert torch.autograd.gradcheck(lambda each: mine.decode(mine.encode(each), each), (x,))


def test_gradients_are_those_of_saelens(lens: Any, tmp_path: Path) -> None:
    for index, kind in enumerate((*PLAIN, *TRANSCODERS)):
        theirs, mine = made(lens, tmp_path / str(index), kind)
        x, toward = inputs().requires_grad_(), torch.randn(4, 9, mine.d_out, generator=torch.Generator().manual_seed(5))
        (want,) = torch.autograd.grad((theirs(x) * toward).sum(), x)
        (have,) = torch.autograd.grad((mine.decode(mine.encode(x), x) * toward).sum(), x)
        near(have, want, 2e-6)


# ---------------------------------------------------------------------------------------------------- in a model


def kept(tmp_path: Path, model: Any, kind: str = "standard", at: str = "resid_post.1", **settings: Any) -> sae.SAE:
    metadata = {"model_digest": model.digest, "model_name": model.name, "hook_name": at}
    tiny.random_sae(tmp_path / "new", kind, 16, 24, metadata=metadata | settings.pop("metadata", {}), **settings)
    return sae.load(sae.keep(tmp_path / "new"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma2"])
def test_with_the_sae_in_place_and_its_error_added_the_logits_are_the_same(tmp_path: Path, family: str) -> None:
    model = tiny.language(family)
    for norm in NORMS:
        mine = kept(tmp_path, model, normalize_activations=norm)
        mine.check(model)
        plain = model("The cat sat on")

        def whole(h: Tensor, mine: sae.SAE = mine) -> Tensor:
            x = mine.rows(h, model)
            y = mine.decode(mine.encode(x), x)
            return mine.unrows(y + (x - y), h, model)

        with model.edit({mine.target: whole}):
            found = model("The cat sat on")
        assert float((found - plain).abs().max()) <= 1e-5 * float(plain.abs().max())


@pytest.mark.parametrize("family", tiny.VISION)
def test_rows_of_maps_and_back(tmp_path: Path, family: str) -> None:
    model = tiny.vision(family)
    for site in model.sites():
        if site.kind in ("pattern", "input"):
            continue
        with model.record([site]) as found:
            model(tiny.image())
        activation = found[site]
        shell = sae.SAE("", "", {}, {})
        rows = shell.rows(activation, model, site)
        assert rows.dim() == 3 and len(rows) == 1
        assert torch.equal(shell.unrows(rows, activation, model, site), activation)
        if site.kind == "stage" and activation.dim() == 4:
            assert torch.equal(rows[0, 1], activation[0, :, 0, 1])  # places of the map row by row


def test_which_site_a_configuration_means(tmp_path: Path) -> None:
    names = {
        "blocks.3.hook_resid_pre": Site("resid_pre", 3), "blocks.1.attn.hook_z": Site("z", 1),
        "blocks.2.hook_mlp_out": Site("mlp_out", 2), "blocks.4.hook_out": Site("resid_post", 4),
        "blocks.4.hook_in": Site("resid_pre", 4), "transformer.h.0": Site("module", path="transformer.h.0"),
        "model.layers.0.mlp": Site("module", path="model.layers.0.mlp"), "stage.3": Site("stage", 3),
        "module:transformer.h.1.mlp:in": Site("module", path="transformer.h.1.mlp:in"),
    }  # fmt: skip
    for name, site in names.items():
        tiny.random_sae(tmp_path, metadata={"hook_name": name})
        found = sae.read(tmp_path)
        assert found.site == found.target == site
    tiny.random_sae(
        tmp_path,
        "transcoder",
        metadata={"hook_name": "-", "actiscope": {"site": "resid_mid.1", "target": "mlp_out.1"}},
    )
    assert (sae.read(tmp_path).site, sae.read(tmp_path).target) == (Site("resid_mid", 1), Site("mlp_out", 1))
    for metadata, words in (
        ({}, "does not say where"),
        ({"hook_name": 3}, "does not say where"),
        ({"hook_name": "x" * 500}, "does not say where"),
        ({"hook_name": "blocks.1.hook_wonder"}, "no site for"),
        ({"actiscope": "resid_post.1"}, "does not say where"),
    ):
        tiny.random_sae(tmp_path, metadata=metadata)
        refused(words, lambda: sae.read(tmp_path).site)
    tiny.random_sae(tmp_path, "transcoder", metadata={"hook_name": "resid_mid.1"})
    refused("hook_name_out", lambda: sae.read(tmp_path).target)


def test_an_sae_that_does_not_fit_is_refused_with_a_sentence(tmp_path: Path) -> None:
    model, other = tiny.language("gpt2"), tiny.language("llama")
    kept(tmp_path, model).check(model)
    refused("other weights", lambda: kept(tmp_path, model).check(other))
    refused("other weights", lambda: kept(tmp_path, model).check(tiny.language("gpt2", 1)))
    refused("no site", lambda: kept(tmp_path, model, at="resid_post.7").check(model))
    refused("no site", lambda: kept(tmp_path, model, at="stage.1").check(model))
    refused("no module", lambda: kept(tmp_path, model, at="transformer.nowhere").check(model))
    refused(
        "reads 16 numbers at mlp_post.1; tiny gpt2 has 64", lambda: kept(tmp_path, model, at="mlp_post.1").check(model)
    )
    refused(
        "writes 16 numbers at mlp_post.1",
        lambda: kept(tmp_path, model, "transcoder", metadata={"hook_name_out": "mlp_post.1"}).check(model),
    )
    tiny.random_sae(tmp_path / "named", metadata={"model_name": "gpt2-small", "hook_name": "resid_post.1"})
    named = sae.read(tmp_path / "named")
    refused("made for gpt2-small, not for tiny gpt2", lambda: named.check(model))
    sae.load(sae.keep(tmp_path / "named", model)).check(model)  # whoever adds it says that it is the same model
    refused("other weights", lambda: sae.load(sae.keep(tmp_path / "named", model)).check(other))
    tiny.random_sae(tmp_path / "wide", d_in=20, metadata={"hook_name": "resid_post.1"})
    refused("20 numbers", lambda: sae.keep(tmp_path / "wide", model))
    tiny.random_sae(tmp_path / "anyone", metadata={"hook_name": "resid_post.1"})
    sae.read(tmp_path / "anyone").check(model)


def test_names_are_compared_as_people_write_them() -> None:
    for mine, theirs in (("gpt2-small", "gpt2"), ("EleutherAI/pythia-70m-deduped", "pythia-70m"), ("a/B-c@x", "b_c")):
        assert sae._plain(mine) == sae._plain(theirs)
    assert sae._plain("gpt2-medium") != sae._plain("gpt2")


# ---------------------------------------------------------------------------------------------------- bad folders


def refused(words: str, what: Any, kind: type[Unsuitable] = Unsuitable) -> None:
    with pytest.raises(Unsuitable, match=re.escape(words)) as problem:
        what()
    text = str(problem.value)
    assert type(problem.value) is kind and len(text) < 320 and text.endswith((".", ").")) and "\n" not in text, text


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / sae.CONFIG).read_text())
    (folder / sae.CONFIG).write_text(json.dumps({**config, **changes}))


def reweighted(folder: Path, **changes: Any) -> None:
    weights = load_file(folder / sae.WEIGHTS) | changes
    save_file({key: each for key, each in weights.items() if each is not None}, folder / sae.WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.random_sae(tmp_path / "an-sae", "jumprelu", D_IN, D_SAE)
    return tmp_path / "an-sae"


def test_missing_files(folder: Path) -> None:
    (folder / sae.WEIGHTS).rename(folder / "away")
    refused(f"holds no {sae.WEIGHTS}", lambda: sae.read(folder))
    (folder / "sae.pt").write_bytes(b"\x80\x02}q\x00.")
    refused("pickled weights (sae.pt)", lambda: sae.read(folder))
    (folder / sae.CONFIG).unlink()
    refused(f"holds no {sae.CONFIG}", lambda: sae.read(folder))
    refused("is no folder", lambda: sae.keep(folder / "nowhere"))
    refused("is no folder", lambda: sae.keep(folder / "away"))


def test_weights_that_are_not_what_the_configuration_says(folder: Path) -> None:
    whole = (folder / sae.WEIGHTS).read_bytes()

    def with_weights(words: str, **changes: Any) -> None:
        (folder / sae.WEIGHTS).write_bytes(whole)
        reweighted(folder, **changes)
        refused(words, lambda: sae.read(folder))
        refused(words, lambda: sae.keep(folder))

    for bad in (float("nan"), float("inf")):
        spoilt = torch.zeros(D_SAE)
        spoilt[5] = bad
        with_weights("b_enc of an-sae holds numbers that are not finite", b_enc=spoilt)
    with_weights("lacks the weights threshold", threshold=None)
    with_weights("lacks the weights W_dec", W_dec=None)
    with_weights(f"W_enc of an-sae is ({D_SAE}, {D_IN})", W_enc=torch.zeros(D_SAE, D_IN))
    with_weights("W_dec of an-sae is ()", W_dec=torch.zeros(()))
    with_weights(f"b_dec of an-sae is ({D_IN}, 1)", b_dec=torch.zeros(D_IN, 1))
    (folder / sae.WEIGHTS).write_bytes(whole)
    for change in ({"d_in": D_IN + 1}, {"d_sae": 2**30}):
        edited(folder, d_in=D_IN, d_sae=D_SAE)
        edited(folder, **change)
        refused("cfg.json says", lambda: sae.read(folder))
    edited(folder, d_in=D_IN, d_sae=D_SAE, architecture="skip_transcoder", d_out=D_OUT)
    refused("cfg.json says", lambda: sae.read(folder))


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1, -500])
def test_damaged_weights(folder: Path, cut: int) -> None:
    whole = (folder / sae.WEIGHTS).read_bytes()
    (folder / sae.WEIGHTS).write_bytes(whole[:cut])
    refused("damaged or no safetensors", lambda: sae.read(folder))


def test_weights_that_are_something_else(folder: Path) -> None:
    for data in (
        b"PK\x03\x04" + bytes(100),
        b"\x80\x02}q\x00.",
        (2**62).to_bytes(8, "little") + b"{}",
        os.urandom(999),
    ):
        (folder / sae.WEIGHTS).write_bytes(data)
        refused("damaged or no safetensors", lambda: sae.read(folder))
    (folder / sae.WEIGHTS).unlink()
    (folder / sae.WEIGHTS).mkdir()
    refused("damaged or no safetensors", lambda: sae.read(folder))


def test_five_gigabytes_are_refused_before_they_are_read(folder: Path) -> None:
    os.truncate(folder / sae.WEIGHTS, 5 * 2**30)
    refused("5.0 GB of weights; the limit here is 2.0 GB (ACTISCOPE_SAE_BYTES)", lambda: sae.read(folder))
    refused("5.0 GB of weights", lambda: sae.keep(folder))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "null", "3", '"text"', "[" * 100_000, '{"d_in": ' + "1" * 5000 + "}", "\x00", '{"a": ' * 9000],
)
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / sae.CONFIG).write_text(text)
    for use in (sae.read, sae.keep):
        refused("cfg.json", lambda use=use: use(folder))  # type: ignore[misc]


def test_a_configuration_that_is_no_text_too_large_or_a_folder(folder: Path) -> None:
    (folder / sae.CONFIG).write_bytes(b"\xff\xfe\x00{")
    refused("can't be read", lambda: sae.read(folder))
    os.truncate(folder / sae.CONFIG, 3 * 2**30)
    refused("larger than 1 MB", lambda: sae.read(folder))
    (folder / sae.CONFIG).unlink()
    (folder / sae.CONFIG).mkdir()
    refused("can't be read", lambda: sae.read(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "temporal"}, "looks at a whole text at once"),
        ({"architecture": "batchtopk"}, "was saved for training"),
        ({"architecture": "wonder" * 100}, "is not known here"),
        ({"architecture": ["standard"]}, "is not known here"),
        ({"architecture": {"a": 1}}, "is not known here"),
        ({"architecture": 5}, "is not known here"),
        ({"normalize_activations": "batch_norm"}, "normalises by 'batch_norm'"),
        ({"normalize_activations": ["none"]}, "normalises by"),
        ({"d_in": 0}, "how wide"),
        ({"d_in": None}, "how wide"),
        ({"d_in": "16"}, "how wide"),
        ({"d_in": True}, "how wide"),
        ({"d_sae": -3}, "how wide"),
        ({"d_sae": 1e3}, "how wide"),
        ({"d_in": 10**400}, "how wide"),
        ({"architecture": "topk", "k": "many"}, "how wide"),
        ({"architecture": "topk", "k": 0}, "how wide"),
        ({"architecture": "transcoder", "d_out": "x"}, "how wide"),
        ({"architecture": "matching_pursuit", "max_iterations": 1e30}, "how wide"),
        ({"architecture": "matching_pursuit", "residual_threshold": [1]}, "can't be read"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": 5}, "can't be read"),
    ],
)
def test_a_configuration_that_says_what_can_not_be(folder: Path, change: dict[str, Any], words: str) -> None:
    edited(folder, **change)
    refused(words, lambda: sae.read(folder))
    refused(words, lambda: sae.keep(folder))
    shutil.copytree(folder, store.folder() / "saes" / "0123456789abcdef")
    assert sae.available(tiny.language("gpt2")) == []  # one bad folder hides no other


@pytest.mark.parametrize("metadata", [None, "text", 5, [1], {"model_digest": 5}, {"model_digest": ["x"] * 999}])
def test_metadata_of_any_kind(folder: Path, metadata: Any) -> None:
    edited(folder, metadata=metadata)
    found, model = sae.read(folder), tiny.language("gpt2")
    assert isinstance(found.metadata, dict) and found.neuronpedia is None
    refused(".", lambda: found.check(model))
    shutil.copytree(folder, store.folder() / "saes" / "0123456789abcdef")
    assert sae.available(model) == []


@pytest.mark.parametrize(
    "name",
    ["/etc", "../secret", "a/../../b", "local:../../x", "hub:../x", "release:a/../b", "local:xyz", "C:\\x", "a", "",
     "~/saes", "local:0123456789abcdef/..", "file:///etc", "hub:a b", "x" * 300 + "/y", "stories/\x00", "a/b/c",
     "https://example.com/x", "Stories/resid_post.2", "a/.."],
)  # fmt: skip
def test_a_path_names_no_sae(name: str) -> None:
    refused("names no SAE", lambda: sae.load(name))
    if name:
        refused("is the name of an SAE", lambda: Call("ablate_feature", sae=name))


def test_what_is_not_here_is_missing() -> None:
    refused("not kept here", lambda: sae.load("local:0123456789abcdef"), Missing)
    refused("on the shelf", lambda: sae.load("stories/resid_post.99"), Missing)
    Call("ablate_feature", sae="local:0123456789abcdef")


# ------------------------------------------------------------------------------------------------------ the store


def test_kept_is_found_again_and_kept_twice_is_one_folder(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    assert sae.available(model) == []
    refused("There is no SAE for tiny gpt2", lambda: sae.first(model))
    tiny.random_sae(tmp_path / "a", metadata={"hook_name": "resid_post.1", "model_name": "anything"})
    names = {sae.keep(tmp_path / "a", model) for _ in range(3)}
    assert len(names) == 1 and len(os.listdir(store.folder() / "saes")) == 1
    (name,) = names
    assert sae.NAME.fullmatch(name) and sae.available(model) == [name] and sae.first(model) == name
    found, before = sae.load(name), sae.read(tmp_path / "a")
    assert all(torch.equal(found.weights[key], before.weights[key]) for key in before.weights)
    assert found.metadata["model_digest"] == model.digest and found.digest == name.removeprefix("local:")
    assert sae.available(tiny.language("llama")) == []
    without = sae.keep(tmp_path / "a")
    assert without != name and sae.available(model) == [name]  # it says another model's name
    assert "digest" not in str(before.metadata)


def test_those_of_a_model_come_in_the_order_of_its_layers_transcoders_last(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    names = {}
    for site in ("resid_post.2", "resid_post.0", "mlp_out.1"):
        tiny.random_sae(tmp_path / site, metadata={"hook_name": site})
        names[site] = sae.keep(tmp_path / site, model)
    tiny.random_sae(tmp_path / "t", "transcoder", metadata={"hook_name": "attn_out.0", "hook_name_out": "mlp_out.0"})
    names["t"] = sae.keep(tmp_path / "t", model)
    assert sae.available(model) == [names[each] for each in ("mlp_out.1", "resid_post.0", "resid_post.2", "t")]


def test_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("gpt2")
    monkeypatch.setattr(sae, "SHELF", tmp_path / "shelf")
    for site in ("resid_post.0", "resid_post.1"):
        metadata = {"hook_name": site, "model_digest": model.digest}
        tiny.random_sae(tmp_path / "shelf" / "tiny" / site, metadata=metadata)
    assert sae.available(model) == ["tiny/resid_post.0", "tiny/resid_post.1"]
    assert sae.first(model) == "tiny/resid_post.1"  # past the middle
    assert sae.load("tiny/resid_post.0").site == Site("resid_post", 0)


def test_uploaded_files(folder: Path) -> None:
    files = {each.name: each.read_bytes() for each in folder.iterdir()}
    name = sae.keep_files(files)
    assert name == sae.keep(folder) == sae.keep_files({"../../" + key: each for key, each in files.items()})
    for bad in ("..", "", ".", "a\x00b", "x" * 999):
        refused("can't be the name of a file", lambda bad=bad: sae.keep_files({**files, bad: b""}))  # type: ignore[misc]
    refused("holds no cfg.json", lambda: sae.keep_files({sae.WEIGHTS: files[sae.WEIGHTS]}))
    refused("pickled weights (sae.pt)", lambda: sae.keep_files({sae.CONFIG: files[sae.CONFIG], "sae.pt": b"x"}))


def test_many_keep_and_load_the_same_at_once(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    tiny.random_sae(tmp_path / "a", metadata={"hook_name": "resid_post.1"})
    names: list[str] = []
    problems: list[BaseException] = []
    gate = threading.Barrier(8)

    def work() -> None:
        try:
            gate.wait()
            name = sae.keep(tmp_path / "a", model)
            assert sae.load(name).d_sae == 32
            names.append(name)
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not problems and len(names) == 8 and len(set(names)) == 1
    assert os.listdir(store.folder() / "saes") == [names[0].removeprefix("local:")]


def test_loaded_ones_are_kept_up_to_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for seed in range(4):
        tiny.random_sae(tmp_path / "a", seed=seed)
        names.append(sae.keep(tmp_path / "a"))
    size = sae.load(names[0]).bytes
    assert size == 4 * (2 * 16 * 32 + 16 + 32)
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, sae_bytes=2 * size))
    first = sae.load(names[0])
    assert sae.load(names[1]) and sae.load(names[0]) is first
    sae.load(names[2])  # the second goes, as the one used longest ago
    held = [key[0] for key in sae._loaded]
    assert held == [names[0], names[2]]
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, sae_bytes=size - 1))
    monkeypatch.setattr(sae, "read", lambda folder, name: dataclasses.replace(first, name=name))
    assert sae.load(names[3]).name == names[3] and len(sae._loaded) == 1  # the one in use is always kept


def test_reading_does_not_import_saelens(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from types import SimpleNamespace as N; "
        "from interp import sae, sae_hub; "
        f"sae.read(Path({str(folder)!r})); found = sae_hub.releases(N(name='gpt2', config=N())); "
        "print(len(found) < 100 or any(each.startswith(('sae_lens', 'transformer_lens')) for each in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
