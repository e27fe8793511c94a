"""Features ablated, clamped and scaled against the same done by hand to the activation."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Unsuitable, feature_index, hooks, sae
from interp.methods.change.ablate_feature import ablate_feature
from interp.methods.change.clamp_feature import clamp_feature
from interp.methods.change.repeat_layer import repeat_layer
from interp.methods.change.scale_feature import scale_feature
from interp.methods.change.skip_layer import skip_layer
from interp.model import Model, gradient
from interp.samples import Prompt, TextSet
from interp.sites import Site
from tests import tiny
from tests.test_hooks import near

PROMPT = Prompt("The cat sat on the mat")
SOME = (1, 4, 9)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))


def keep(
    model: Model, folder: Path, kind: str = "standard", at: str = "resid_post.1", to: str = "", **settings: Any
) -> sae.SAE:
    """A random SAE of that site, wide enough for it, taken into the store."""
    sites = [model.resolve(at), model.resolve(to or at)]
    shell = sae.SAE("", "", {}, {})
    with model.record(sites) as found:
        model(given(model))
    widths = [shell.rows(found[site], model, site).shape[-1] for site in sites]
    metadata = {"actiscope": {"site": at, "target": to or at}, "hook_name": at}
    d_out = {"d_out": widths[1]} if "transcoder" in kind else {}
    tiny.random_sae(folder / "new", kind, widths[0], 24, metadata=metadata, **d_out, **settings)
    return sae.load(sae.keep(folder / "new", model))


def given(model: Model) -> Any:
    return PROMPT if hasattr(model, "tokenizer") else tiny.image()


def recorded(model: Model, *sites: Site, sample: Any = None) -> list[Tensor]:
    with model.record(sites) as found:
        model(given(model) if sample is None else sample)
    return [found[site] for site in sites]


VARIANTS = [
    ("standard", {}), ("standard", {"normalize_activations": "layer_norm"}), ("gated", {}), ("topk", {}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}), ("abstopk", {}), ("matching_pursuit", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"}), ("jumprelu", {}),
]  # fmt: skip
PLACES = [("gpt2", "resid_post.1"), ("llama", "resid_pre.1"), ("opt", "mlp_out.1"), ("gemma2", "z.1"),
          ("resnet", "stage.1"), ("vit", "resid_pre.2"), ("swin", "stage.1")]  # fmt: skip


def made(family: str) -> Model:
    return tiny.language(family) if family in tiny.LANGUAGE else tiny.vision(family)


@pytest.mark.parametrize(("kind", "settings"), VARIANTS)
@pytest.mark.parametrize(("family", "at"), [("gpt2", "resid_post.1"), ("resnet", "stage.1")])
def test_what_is_taken_out_is_what_the_features_put_in(
    tmp_path: Path, family: str, at: str, kind: str, settings: dict[str, Any]
) -> None:
    model = made(family)
    mine = keep(model, tmp_path, kind, at, **settings)
    _same_as_by_hand(model, mine)


@pytest.mark.parametrize(("family", "at"), PLACES)
def test_at_every_kind_of_site(tmp_path: Path, family: str, at: str) -> None:
    model = made(family)
    _same_as_by_hand(model, keep(model, tmp_path, "standard", at))


def _same_as_by_hand(model: Model, mine: sae.SAE) -> None:
    """Ablate, scale and clamp against decode(changed f) + error, put in by a raw edit."""
    (h,) = recorded(model, mine.site)
    x = mine.rows(h, model)
    f = mine.encode(x)
    error = x - mine.decode(f, x)
    assert float((f[..., list(SOME)] != 0).float().mean()) > 0.02

    def by_hand(changed: Tensor) -> tuple[Tensor, Tensor]:
        new = mine.unrows(mine.decode(changed, x) + error, h, model)
        with model.edit({mine.site: lambda _: new}):
            return new, model(given(model))

    scaled, clamped, gone = f.clone(), f.clone(), f.clone()
    gone[..., list(SOME)] = 0
    scaled[..., list(SOME)] *= 2.5
    clamped[..., list(SOME)] = 1.5
    for block, changed in (
        (ablate_feature(model, given(model), features=SOME), gone),
        (scale_feature(model, given(model), features=SOME, factor=2.5), scaled),
        (scale_feature(model, given(model), features=SOME, factor=0), gone),
        (clamp_feature(model, given(model), features=SOME, value=1.5), clamped),
        (clamp_feature(model, given(model), features=SOME, value=0), gone),
    ):
        want, logits = by_hand(changed)
        with block, model.record([mine.site]) as found:
            out = model(given(model))
        near(found[mine.site], want, 1e-5)
        near(out, logits, 1e-4)
        assert not torch.allclose(found[mine.site], h, atol=1e-3)


def test_a_feature_less_is_the_activation_less_its_row(tmp_path: Path) -> None:
    model = tiny.language("llama")
    mine = keep(model, tmp_path)
    (h,) = recorded(model, mine.site)
    f, row = mine.encode(h)[..., 4:5], mine.W_dec[4]
    assert f.max() > 0
    for block, share in (
        (ablate_feature(model, PROMPT, features=(4,)), -1.0),
        (scale_feature(model, PROMPT, features=(4,), factor=2), 1.0),
        (scale_feature(model, PROMPT, features=(4,), factor=10), 9.0),
    ):
        with block, model.record([mine.site]) as found:
            model(PROMPT)
        near(found[mine.site], h + share * f * row, 1e-6)


def test_all_features_less_leaves_the_error_and_the_bias(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    for norm in ("none", "layer_norm"):
        mine = keep(model, tmp_path, normalize_activations=norm)
        (h,) = recorded(model, mine.site)
        f = mine.encode(h)
        with (
            ablate_feature(model, PROMPT, sae=mine.name, features=tuple(range(24))),
            model.record([mine.site]) as found,
        ):
            model(PROMPT)
        near(found[mine.site], (h - mine.decode(f, h)) + mine.decode(torch.zeros_like(f), h), 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "resnet"])
def test_where_nothing_is_asked_for_nothing_is_entered(tmp_path: Path, family: str) -> None:
    model = made(family)
    mine = keep(model, tmp_path, at="resid_post.1" if family == "gpt2" else "stage.1")
    plain = model(given(model))
    for block in (
        ablate_feature(model, given(model)),
        clamp_feature(model, given(model), value=3),
        scale_feature(model, given(model), factor=3),
        scale_feature(model, given(model), features=SOME, factor=1),
    ):
        with block:
            assert hooks.in_force() == () and torch.equal(model(given(model)), plain)
    # of a feature that fires nowhere, and clamped to the value that it has
    f = mine.encode(mine.rows(recorded(model, mine.site)[0], model))
    never = [feature for feature in range(24) if not f[..., feature].any()]
    for feature in never[:2]:
        with ablate_feature(model, given(model), features=(feature,)):
            assert torch.equal(model(given(model)), plain)
    place = int(f[0, :, 4].argmax())
    with clamp_feature(model, given(model), features=(4,), value=float(f[0, place, 4]), positions=(place,)):
        near(model(given(model)), plain, 1e-6)


def test_a_maximum_is_that_of_the_index(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    mine = keep(model, tmp_path)
    with pytest.raises(Unsuitable, match="has no index"):
        clamp_feature(model, PROMPT, features=(4,), value=2, unit="maximum")
    index = feature_index.build(model, mine, TextSet(("The cat sat on the mat.", "A dog ran away, and so did I.")))
    maximum = torch.as_tensor(index.maximum)
    two = tuple(maximum.topk(2).indices.tolist())
    (h,) = recorded(model, mine.site)
    f = mine.encode(h)
    with (
        clamp_feature(model, PROMPT, features=two, value=2, unit="maximum", index=index.key),
        model.record([mine.site]) as found,
    ):
        model(PROMPT)
    want = h
    for feature in two:
        assert maximum[feature] > 0
        want = want + (2 * maximum[feature] - f[..., feature, None]) * mine.W_dec[feature]
    near(found[mine.site], want, 1e-5)
    with pytest.raises(Unsuitable, match="not kept here"):
        clamp_feature(model, PROMPT, features=(4,), value=2, unit="maximum", index="0" * 64)


# --------------------------------------------------------------------------------------------------- transcoders


def read_by(model: Any, layer: int = 1) -> str:
    return f"module:{model.address(Site('mlp_out', layer))}:in"


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_transcoder_changes_what_the_mlp_writes_by_its_rows(tmp_path: Path, family: str, kind: str) -> None:
    model = tiny.language(family)
    mine = keep(model, tmp_path, kind, read_by(model), "mlp_out.1")
    x, out = recorded(model, mine.site, mine.target)
    f = mine.columns(x, torch.tensor(SOME))
    assert (f > 0).any()
    for block, turned in (
        (ablate_feature(model, PROMPT, features=SOME), torch.zeros_like(f)),
        (clamp_feature(model, PROMPT, features=SOME, value=-2), torch.full_like(f, -2)),
        (scale_feature(model, PROMPT, features=SOME, factor=3), 3 * f),
    ):
        with block:
            after, read = recorded(model, mine.target, mine.site)
        near(after, out + (turned - f) @ mine.W_dec[list(SOME)], 1e-5)
        assert torch.equal(read, x)


def test_a_transcoder_in_a_layer_that_runs_twice_or_not_at_all(tmp_path: Path) -> None:
    model = tiny.language("llama")
    mine = keep(model, tmp_path, "transcoder", read_by(model), "mlp_out.1")
    which = torch.tensor(SOME)

    class Twice:
        """By hand: what was read last is what the next output is of."""

        def read(self, x: Tensor) -> Tensor:
            self.x = x
            return x

        def write(self, h: Tensor) -> Tensor:
            return h - mine.columns(self.x, which) @ mine.W_dec[which]

    own = Twice()
    with repeat_layer(model, PROMPT, layer=1, times=3):
        with model.edit({mine.site: own.read, mine.target: own.write}), model.record([mine.target], every=True) as want:
            model(PROMPT)
        with ablate_feature(model, PROMPT, features=SOME), model.record([mine.target], every=True) as found:
            model(PROMPT)
    assert len(found[mine.target]) == 3
    for left, right in zip(found[mine.target], want[mine.target], strict=True):
        near(left, right, 1e-6)
    with skip_layer(model, PROMPT, layer=1, count=1):
        plain = model(PROMPT)
        with ablate_feature(model, PROMPT, features=SOME):
            assert torch.equal(model(PROMPT), plain)


def test_a_transcoder_whose_reading_is_skipped_is_refused(tmp_path: Path) -> None:
    model = tiny.language("llama")
    keep(model, tmp_path, "transcoder", "mlp_out.0", "mlp_out.2")
    with ablate_feature(model, PROMPT, features=SOME):
        model(PROMPT)
        with skip_layer(model, PROMPT, layer=0, count=1), pytest.raises(Unsuitable, match="which is skipped here"):
            model(PROMPT)


def test_a_transcoder_that_reads_heads_or_the_middle_of_the_stream(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    for at in ("resid_mid.1", "z.1"):
        mine = keep(model, tmp_path / at, "transcoder", at, "mlp_out.1")
        x, out = recorded(model, mine.site, mine.target)
        f = mine.encode(mine.rows(x, model))
        with ablate_feature(model, PROMPT, sae=mine.name, features=SOME):
            (after,) = recorded(model, mine.target)
        near(after, out - f[..., list(SOME)] @ mine.W_dec[list(SOME)], 1e-5)


# ------------------------------------------------------------------------------- with other changes, and gradients


def test_activations_are_those_that_earlier_changes_left(tmp_path: Path) -> None:
    model = tiny.language("gpt2")
    mine = keep(model, tmp_path)
    (h,) = recorded(model, mine.site)
    row = mine.W_dec[4]
    f = mine.encode(h * 2)[..., 4:5]
    with (
        model.edit({mine.site: lambda x: x * 2}),
        ablate_feature(model, PROMPT, features=(4,)),
        model.record([mine.site]) as found,
    ):
        model(PROMPT)
    near(found[mine.site], 2 * h - f * row, 1e-6)
    with (
        ablate_feature(model, PROMPT, features=(4,)),
        clamp_feature(model, PROMPT, features=(9,), value=2.0),
        model.record([mine.site]) as found,
    ):
        model(PROMPT)
    first = h - mine.encode(h)[..., 4:5] * row
    near(found[mine.site], first + (2.0 - mine.encode(first)[..., 9:10]) * mine.W_dec[9], 1e-5)
    # two transcoder changes in turn, each of what was read
    other = keep(model, tmp_path, "transcoder", read_by(model), "mlp_out.1")
    x, out = recorded(model, other.site, other.target)
    both = other.encode(x)
    with (
        ablate_feature(model, PROMPT, sae=other.name, features=(4,)),
        scale_feature(model, PROMPT, sae=other.name, features=(9,), factor=3),
    ):
        (after,) = recorded(model, other.target)
    near(after, out - both[..., 4:5] * other.W_dec[4] + 2 * both[..., 9:10] * other.W_dec[9], 1e-5)


@pytest.mark.parametrize("kind", ["standard", "transcoder"])
def test_gradients_go_through_the_features(tmp_path: Path, kind: str) -> None:
    model = tiny.language("llama")
    mine = keep(model, tmp_path, kind, *([read_by(model), "mlp_out.1"] if kind == "transcoder" else ["resid_post.1"]))
    toward = torch.randn(16, generator=torch.Generator().manual_seed(0))
    with (
        scale_feature(model, PROMPT, features=SOME, factor=3),
        model.record([mine.site, mine.target], grad=True) as found,
    ):
        # the first is a leaf behind the change where both are one site, so begin before it
        with model.record(["resid_pre.1"], grad=True) as start:
            model(PROMPT)
        (have,) = gradient((found[mine.target][0] * toward).sum(), [start["resid_pre.1"]])
    which = torch.tensor(SOME)
    with model.record(["resid_pre.1", mine.site, mine.target], grad=True) as found:
        model(PROMPT)
    x = found[mine.site]
    changed = found[mine.target] + 2 * mine.columns(x, which) @ mine.W_dec[which]
    (want,) = gradient((changed[0] * toward).sum(), [found["resid_pre.1"]])
    near(have, want, 1e-5)
    with model.record(["resid_pre.1", mine.target], grad=True) as found:
        model(PROMPT)
    (plain,) = gradient((found[mine.target][0] * toward).sum(), [found["resid_pre.1"]])
    assert not torch.allclose(plain, want, atol=1e-3)


# ----------------------------------------------------------------------------------------- positions and generation


@pytest.mark.parametrize(("family", "at"), PLACES)
def test_at_some_positions_only(tmp_path: Path, family: str, at: str) -> None:
    model = made(family)
    mine = keep(model, tmp_path, at=at)
    (h,) = recorded(model, mine.site)
    with clamp_feature(model, given(model), features=SOME, value=2):
        (everywhere,) = recorded(model, mine.site)
    with clamp_feature(model, given(model), features=SOME, value=2, positions=(0, 3, 500)):
        (here,) = recorded(model, mine.site)
    before, after, whole = (mine.rows(each, model)[0] for each in (h, here, everywhere))
    for position in range(len(before)):
        assert torch.equal(after[position], whole[position] if position in (0, 3) else before[position])
        assert not torch.equal(before[position], whole[position])


def test_padding_is_left_alone_and_positions_are_those_of_each_prompt(tmp_path: Path) -> None:
    model = tiny.language("llama")
    keep(model, tmp_path)
    prompts = ["The cat sat", "on a mat, and"]
    with clamp_feature(model, PROMPT, features=SOME, value=2, positions=(1, 4)):
        alone = [model(each)[0, -1] for each in prompts]
        together = model(prompts)
    for index, each in enumerate(alone):
        near(together[index, -1], each, 1e-4)


@pytest.mark.parametrize("kind", ["standard", "transcoder"])
@pytest.mark.parametrize("positions", [(), (2, 25)])
def test_generation_with_and_without_cache_is_the_same(tmp_path: Path, kind: str, positions: tuple[int, ...]) -> None:
    model = tiny.language("gpt2")
    keep(model, tmp_path, kind, *([read_by(model), "mlp_out.1"] if kind == "transcoder" else ["resid_post.1"]))
    plain = "".join(model.generate(PROMPT, 12))
    with clamp_feature(model, PROMPT, features=SOME, value=9, positions=positions):
        cached = "".join(model.generate(PROMPT, 12))
        whole = "".join(model.generate(PROMPT, 12, cache=False))
    assert cached == whole != plain


# ------------------------------------------------------------------------------------------- streams and threads


@pytest.mark.parametrize("kind", ["standard", "transcoder"])
def test_streams_in_turns_and_threads_at_once_get_what_each_gets_alone(tmp_path: Path, kind: str) -> None:
    model = tiny.language("gpt2")
    keep(model, tmp_path, kind, *([read_by(model), "mlp_out.1"] if kind == "transcoder" else ["resid_post.1"]))
    prompts = [Prompt("The cat sat on the mat"[number:]) for number in range(8)]

    def stream(number: int) -> Any:
        with clamp_feature(model, PROMPT, features=(number, number + 8), value=4.0):
            return model.generate(prompts[number], 10)

    def logits(number: int) -> Tensor:
        with clamp_feature(model, PROMPT, features=(number, number + 8), value=4.0):
            return model(prompts[number])

    alone = [list(stream(number)) for number in range(8)]
    truth = [logits(number) for number in range(8)]
    running, seen = [stream(number) for number in range(8)], [list[str]() for _ in range(8)]
    for turn in range(200):
        with contextlib.suppress(StopIteration):
            seen[turn % 8].append(next(running[turn % 8]))
    assert seen == alone and len({"".join(each) for each in alone}) > 2
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            for _ in range(15):
                if not torch.equal(logits(number), truth[number]) or list(stream(number)) != alone[number]:
                    wrong.append(number)
        except BaseException as problem:
            wrong.append(problem)

    together([lambda number=number: work(number) for number in range(8)])  # type: ignore[misc]
    assert not wrong


def test_one_block_s_edits_serve_threads_that_share_them(tmp_path: Path) -> None:
    """A plan taken up by several threads: what each reads stays its own."""
    model = tiny.language("llama")
    keep(model, tmp_path, "transcoder", read_by(model), "mlp_out.1")
    texts = ["abc", "The cat", "on a mat", "xyz"]
    with ablate_feature(model, PROMPT, features=SOME):
        enter = hooks.plan_now()
        truth = [model(each) for each in texts]
    wrong: list[Any] = []

    def work(number: int) -> None:
        with enter():
            for _ in range(40):
                if not torch.equal(model(texts[number]), truth[number]):
                    wrong.append(number)

    together([lambda number=number: work(number) for number in range(4)])  # type: ignore[misc]
    assert not wrong


def together(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


# -------------------------------------------------------------------------------------------------------- refusals


def test_what_can_not_be_is_refused(tmp_path: Path) -> None:
    model, other = tiny.language("gpt2"), tiny.language("llama")
    for method, settings in ((ablate_feature, {}), (clamp_feature, {}), (scale_feature, {"factor": 2.0})):
        with pytest.raises(Unsuitable, match="There is no SAE for tiny gpt2"):
            method(model, PROMPT, features=(1,), **settings)
    mine = keep(model, tmp_path)
    keep(other, tmp_path)
    with pytest.raises(Unsuitable, match="has features 0 to 23, not 24"):
        ablate_feature(model, PROMPT, features=(2, 24))
    with pytest.raises(Unsuitable, match="other weights"):
        ablate_feature(other, PROMPT, sae=mine.name, features=(1,))
    with pytest.raises(Unsuitable, match="is the name of an SAE"):
        ablate_feature(model, PROMPT, sae="../x", features=(1,))
    with pytest.raises(Unsuitable, match="between -1000000 and 1000000"):
        clamp_feature(model, PROMPT, features=(1,), value=1e7)
    with pytest.raises(Unsuitable, match="looks at Prompt or Image"):
        ablate_feature(model, "text", features=(1,))
