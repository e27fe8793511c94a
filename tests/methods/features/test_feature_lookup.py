"""Activations are the encoder's; attributions add up to the slope on what stands there, and are what ablating a little
of a feature does; surprise is its formula; patches lie where they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, sae
from interp.experiment import Call
from interp.methods import METHODS
from interp.methods.features import _saes
from interp.methods.features.feature_lookup import feature_lookup
from interp.model import gradient
from interp.samples import Target
from interp.sites import Site
from tests import tiny
from tests.methods.features import kept
from tests.methods.features.kept import ARCHITECTURES, PROMPT


def ranked(values: np.ndarray, top: int) -> list[int]:
    order = np.argsort(-np.abs(values), kind="stable")[:top]
    return [int(each) for each in order if values[each] != 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_what_fires_is_what_the_encoder_says(family: str, architecture: str) -> None:
    model = tiny.language(family)
    name = kept.keep(model, architecture)
    f = kept.dense(model, name, PROMPT)
    largest = f[np.abs(f).argmax(0), np.arange(f.shape[1])]
    result = feature_lookup(model, PROMPT, sae=name, top=10)
    assert result.features.tolist() == ranked(largest, 10)
    np.testing.assert_allclose(result.values, largest[result.features], rtol=1e-5)
    np.testing.assert_allclose(result.grid, f[:, result.features].T, rtol=1e-5, atol=1e-6)
    assert result.saes == (name,) * len(result.features) and result.tokens == tuple(model.tokens(PROMPT.text))
    assert np.isnan(result.density).all(), "there is no index"
    some = feature_lookup(model, PROMPT, sae=name, positions=(3, 7), top=5)
    at = f[[3, 7]]
    assert some.features.tolist() == ranked(at[np.abs(at).argmax(0), np.arange(32)], 5)
    assert not some.grid[:, [each for each in range(22) if each not in (3, 7)]].any()


def test_special_tokens_count_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model)
    special = model.tokenizer("T")["input_ids"][0]
    monkeypatch.setattr(type(model.tokenizer), "all_special_ids", property(lambda _: [special]))
    assert not feature_lookup(model, PROMPT, sae=name, top=32).grid[:, 0].any()
    only = feature_lookup(model, PROMPT, sae=name, positions=(0,))
    np.testing.assert_allclose(only.grid[:, 0], kept.dense(model, name, PROMPT)[0, only.features], rtol=1e-5)


def last(logits: Tensor) -> Tensor:
    return logits[0, -1] if logits.dim() == 3 else logits[0]


CASES = [
    *[("gpt2", each, "none") for each in ARCHITECTURES],
    *[(family, each, "none") for family in ("llama", "gemma2") for each in ("jumprelu", "transcoder")],
    *[("gpt2", "standard", each) for each in ("layer_norm", "constant_norm_rescale")],
    ("resnet", "standard", "none"), ("vit", "topk", "none"), ("swin", "gated", "none"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "architecture", "norm"), CASES)
def test_attributions_add_up_to_the_slope_on_what_stands_there(family: str, architecture: str, norm: str) -> None:
    model: Any = tiny.vision(family) if family in tiny.VISION else tiny.language(family)
    sample: Any = tiny.image() if family in tiny.VISION else PROMPT
    own = sae.load(kept.keep(model, architecture, normalize_activations=norm))
    (seen,), logits = _saes.look(model, sample, [own])
    metric, _ = _saes.metric_of(model, Target(1), Target(2), logits)
    (got,) = _saes.attribute(model, sample, [seen], metric)
    with torch.enable_grad(), model.record([own.target], grad=True) as found:
        row = last(model(sample))
    (slope,) = gradient(row[1] - row[2], [found[own.target]])
    x, g = (own.rows(each.detach(), model, own.target).flatten(0, 1)[seen.rows] for each in (found[own.target], slope))
    assert got.whole == pytest.approx(float((x.double() * g.double()).sum()), rel=1e-4, abs=1e-6)
    total = float(got.parts.sum()) + got.bias + got.error
    size = float(got.parts.abs().sum()) + abs(got.bias) + abs(got.error)
    assert abs(total - got.whole) < 1e-5 * size

    # a little of a feature taken away, at the rows that count
    f = seen.encode()
    for feature in ranked(got.parts.sum(0).numpy(), 3):
        one = torch.tensor([feature])
        step = own.directions(seen.x, one)[:, 0] * f[:, one]

        def metric_without(share: float, step: Tensor = step) -> float:
            def edit(activation: Tensor) -> Tensor:
                rows = own.rows(activation, model, own.target)
                flat = rows.flatten(0, 1).clone()
                flat[seen.rows] -= share * step
                return own.unrows(flat.view(rows.shape), activation, model)

            with torch.no_grad(), model.edit({own.target: edit}):
                row = last(model(sample)).double()
            return float(row[1] - row[2])

        slope_there = (metric_without(-0.03) - metric_without(0.03)) / 0.06
        assert slope_there == pytest.approx(float(got.parts[:, feature].sum()), rel=0.03, abs=2e-4)


def test_the_lens_reports_the_attributions_and_what_the_error_carries() -> None:
    model = tiny.language("llama")
    own = sae.load(kept.keep(model, "topk"))
    result = feature_lookup(model, PROMPT, sae=own.name, by="attribution", target="a", foil="b", top=8)
    (seen,), logits = _saes.look(model, PROMPT, [own])
    metric, name = _saes.metric_of(model, Target("a"), Target("b"), logits)
    (parts,) = _saes.attribute(model, PROMPT, [seen], metric)
    values = parts.parts.sum(0).numpy()
    assert result.features.tolist() == ranked(values, 8) and result.units == f"logit of {name}"
    np.testing.assert_allclose(result.values, values[result.features], rtol=1e-6)
    magnitudes = [float(parts.parts.abs().sum()), abs(parts.bias), abs(parts.error)]
    assert result.residual is not None and result.residual.value == pytest.approx(magnitudes[2] / sum(magnitudes))
    assert f"{parts.error:+.3g}" in result.note and result.backwards == 1


def test_an_sae_without_error_leaves_nothing_to_it() -> None:
    """Decoder and encoder of a rotation and its negative: x_hat = x."""
    model = tiny.language("gpt2")
    own = sae.load(kept.keep(model))
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    weights = {
        "W_enc": torch.cat([turn, -turn], 1), "W_dec": torch.cat([turn.T, -turn.T]), "b_enc": torch.zeros(32),
        "b_dec": torch.zeros(16),
    }  # fmt: skip
    exact = sae.SAE("exact", "", own.config, weights)
    (seen,), logits = _saes.look(model, PROMPT, [exact])
    metric, _ = _saes.metric_of(model, Target(3), Target(), logits)
    (got,) = _saes.attribute(model, PROMPT, [seen], metric)
    assert abs(got.error) < 1e-5 * float(got.parts.abs().sum()) and got.bias == 0
    assert float(got.parts.sum()) == pytest.approx(got.whole, rel=1e-4)


def test_surprise_is_the_share_of_the_maximum_times_how_rarely_it_fires() -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model, "jumprelu", seed=1)
    with pytest.raises(Unsuitable, match="no index"):
        feature_lookup(model, PROMPT, sae=name, by="surprise")
    known = kept.index(model, name)
    f = kept.dense(model, name, PROMPT).max(0)
    most = np.maximum(known.maximum, f)
    values = f / np.where(most > 0, most, 1) * -np.log((known.count + 1) / (known.n_tokens + 1))
    result = feature_lookup(model, PROMPT, sae=name, by="surprise", top=6)
    np.testing.assert_allclose(result.values, np.sort(values)[::-1][:6], rtol=1e-4)
    np.testing.assert_allclose(result.values, values[result.features], rtol=1e-4)
    np.testing.assert_allclose(result.density, known.density[result.features])
    np.testing.assert_allclose(result.maximum, known.maximum[result.features])
    for feature, example, mark in zip(result.features, result.examples, result.marks, strict=True):
        if example:
            page = known.page(int(feature), model)
            assert example == page.top[0].tokens and mark == page.top[0].at


def test_features_of_all_layers_are_ranked_together() -> None:
    model = tiny.language("mistral")
    names = [kept.keep(model, site=Site("resid_post", layer), seed=layer) for layer in range(3)]
    other = kept.keep(model, "transcoder")
    result = feature_lookup(model, PROMPT, sae=names[0], layers="all", top=20)
    each = {name: kept.dense(model, name, PROMPT).max(0) for name in names}
    assert set(result.saes) <= set(names) and len(set(result.saes)) > 1 and result.forwards <= 1 + 8
    together = np.sort(np.concatenate(list(each.values())))[::-1]
    np.testing.assert_allclose(result.values, together[:20], rtol=1e-5)
    for name, feature, value, row in zip(result.saes, result.features, result.values, result.grid, strict=True):
        assert value == pytest.approx(each[name][feature], rel=1e-5) and row.max() == pytest.approx(value, rel=1e-5)
    transcoders = feature_lookup(model, PROMPT, sae=other, layers="all")
    assert set(transcoders.saes) == {other}


@pytest.mark.parametrize("family", ["resnet", "vit", "dinov2_with_registers", "swin"])
def test_on_an_image_each_patch_has_what_fires_there(family: str) -> None:
    model, picture = tiny.vision(family), tiny.image()
    name = kept.keep(model)
    own = sae.load(name)
    with torch.no_grad(), model.record([own.site]) as found:
        model(picture)
        maps = model.grid(own.site)(found[own.site])[0]
        f = own.encode(maps.permute(1, 2, 0)).permute(2, 0, 1).double().numpy()
    result = feature_lookup(model, picture, sae=name, top=5)
    assert result.grid.shape[1:] == maps.shape[1:] and result.tokens == ()
    np.testing.assert_allclose(result.grid, f[result.features], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.values, np.sort(f.max((1, 2)))[::-1][:5], rtol=1e-4)
    width = maps.shape[2]
    one = feature_lookup(model, picture, sae=name, positions=(width + 1,), top=3)
    np.testing.assert_allclose(one.values, f[one.features, 1, 1], rtol=1e-4)


def test_what_is_changed_is_what_is_listed() -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model)
    plain = feature_lookup(model, PROMPT, sae=name, top=1)
    feature = int(plain.features[0])
    with METHODS["skip_layer"](model, PROMPT, layer=1, count=1):
        after = feature_lookup(model, PROMPT, sae=name, top=32)
        np.testing.assert_allclose(
            after.grid, kept.dense(model, name, PROMPT)[:, after.features].T, rtol=1e-5, atol=1e-6
        )
    assert after != feature_lookup(model, PROMPT, sae=name, top=32)
    assert feature_lookup(model, PROMPT, sae=name, top=1).features[0] == feature
    mlp = kept.keep(model, "transcoder")
    with METHODS["skip_layer"](model, PROMPT, layer=1, count=1):
        none = feature_lookup(model, PROMPT, sae=mlp)
        assert not len(none.features) and none.note == "No feature fires here."
        assert not len(feature_lookup(model, PROMPT, sae=mlp, by="attribution").features)


def test_bad_input_gets_a_sentence() -> None:
    model = tiny.language("gpt2")
    name = kept.keep(model)
    for settings in ({"positions": (99,)}, {"target": "no such token"}, {"sae": "stories/nowhere.1"}, {"top": 0}):
        with pytest.raises(Unsuitable):
            feature_lookup(model, PROMPT, **{"sae": name, **settings})
    with pytest.raises(Unsuitable, match="index that is not kept"):
        feature_lookup(model, PROMPT, sae=name, index="0" * 64)
    with pytest.raises(Unsuitable, match="looks at a prompt"):
        feature_lookup(model, tiny.image(), sae=name)
    with pytest.raises(Unsuitable, match="made for other weights"):
        feature_lookup(tiny.language("llama"), PROMPT, sae=kept.keep(tiny.language("gpt2"), seed=3))
    assert Call.parse(str(Call("feature_lookup", sae=name, by="surprise"))).settings["sae"] == name
