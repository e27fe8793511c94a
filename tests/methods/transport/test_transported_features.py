"""Which features were carried: against loops over tokens, and where everything is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable, sae
from interp.methods.change.scale_site import scale_site
from interp.methods.transport.transported_features import _reason, transported_features
from interp.samples import Prompt
from interp.sites import Site
from interp.transport import Policy
from tests import tiny
from tests.methods.transport.lens import FAMILIES, PROMPT, STORE, fitted, linear


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For what would be found by other tests."""
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("source", ["resid_pre.0", "resid_post.0"])
def test_where_layers_are_linear_every_feature_is_carried(family: str, seed: int, source: str) -> None:
    model, _, _ = linear(family, seed)
    found = transported_features(model, PROMPT, source=source)
    fires = found.grid > 1e-3
    assert fires.sum() > 20 and len(found.features) > 5
    np.testing.assert_allclose(found.carried[fires], 1, atol=0.02)
    np.testing.assert_allclose(found.held_out[np.isfinite(found.held_out)], 1, atol=1e-3)
    assert found.residual is not None and abs(found.residual.value) < 1e-3
    start = "carried from the embedding: " if source == "resid_pre.0" else "carried from 0: "
    assert all(each.startswith(start) for each in found.reasons)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("policy", ["same", "previous"])
def test_shares_are_those_of_a_loop_over_tokens(family: str, seed: int, policy: Policy) -> None:
    model, of, mine = fitted(family, seed, policy)
    source, target = Site("resid_pre", 0), Site("resid_post", 1)
    found = transported_features(model, PROMPT, source=source, policy=policy, top=200)
    with model.record([source, target]) as record:
        model(PROMPT)
    x, y = record[source][0], record[target][0]
    operator, numbers = of.operator(source, target), found.features.tolist()
    whole = common = 0.0
    for t in range(len(y)):
        true = mine.encode(y[t : t + 1])[0]
        np.testing.assert_allclose(found.grid[:, t], true[numbers], atol=1e-5)
        assert float(true.sum()) == pytest.approx(float(true[numbers].sum()))  # all that fire are listed
        if policy == "previous" and t == 0:
            assert np.isnan(found.carried[:, 0]).all()
            continue
        read = mine.encode(operator(x[t if policy == "same" else t - 1])[None])[0]
        for row, number in enumerate(numbers):
            if true[number] > 1e-6:
                assert found.carried[row, t] == pytest.approx(float(read[number] / true[number]), rel=1e-3, abs=1e-3)
            else:
                assert np.isnan(found.carried[row, t])
        whole += float(true.sum())
        common += float(torch.minimum(true, read).sum())
    assert found.residual is not None and found.residual.value == pytest.approx(1 - common / whole, abs=1e-4)
    kept = of.features(mine.name, 0, 2)
    assert kept is not None
    np.testing.assert_array_equal(found.held_out.T, [kept[name][numbers] for name in ("read", "read low", "read high")])
    assert (np.diff(found.values) <= 0).all()
    np.testing.assert_allclose(found.values, found.grid.max(1))


def test_a_verdict_is_of_the_whole_interval_and_without_one_of_the_prompt() -> None:
    f, carried = np.array([0.0, 2.0, 1.0]), np.array([np.nan, 0.92, 0.1])
    for known, want in (
        ((0.88, 0.84, 0.9), "carried from 1: 92 % on ' Paris'; held out R² 0.88 (0.84 to 0.90)"),
        ((0.3, 0.2, 0.49), "made between 1 and 2: 92 % on ' Paris'; held out R² 0.30 (0.20 to 0.49)"),
        ((0.6, 0.49, 0.7), "open between 1 and 2: 92 % on ' Paris'; held out R² 0.60 (0.49 to 0.70)"),
        ((np.nan,) * 3, "carried from 1: 92 % on ' Paris'; by this prompt alone"),
    ):
        assert _reason(f, carried, np.array(known), ("a", " Paris", "b"), "1", "2") == want
    silent = _reason(f, np.full(3, np.nan), np.full(3, np.nan), ("a", "b", "c"), "embed", "2")
    assert silent == "open between the embedding and 2: no source on 'b'; by this prompt alone"


def test_of_an_sae_that_the_fit_did_not_know_this_prompt_decides(own_store: Path) -> None:
    model, _, _ = fitted("gpt2")
    tiny.random_sae(own_store / "new", metadata={"actiscope": {"site": "resid_pre.2"}, "hook_name": "-"}, seed=3)
    name = sae.keep(own_store / "new", model)
    found = transported_features(model, PROMPT, sae=name)
    assert found.saes[0] == name and np.isnan(found.held_out).all()
    for reason, carried, grid in zip(found.reasons, found.carried, found.grid, strict=True):
        assert reason.startswith("carried" if carried[grid.argmax()] > 0.5 else "made") and "alone" in reason


def test_only_the_chosen_tokens_count() -> None:
    model, _, mine = fitted("llama")
    whole = transported_features(model, PROMPT, top=200)
    some = transported_features(model, PROMPT, top=200, positions=(3, 5))
    others = [each for each in range(len(PROMPT.text)) if each not in (3, 5)]
    assert not some.grid[:, others].any() and np.isnan(some.carried[:, others]).all()
    assert set(some.features.tolist()) == set(whole.features[whole.grid[:, [3, 5]].max(1) > 0].tolist())
    for row, number in enumerate(some.features.tolist()):
        at = whole.features.tolist().index(number)
        np.testing.assert_allclose(some.carried[row, [3, 5]], whole.carried[at, [3, 5]], rtol=1e-4, atol=1e-6)
    alone = transported_features(model, PROMPT, positions=(0,), policy="same", top=1)
    assert len(alone.features) == 1 and alone.saes == (mine.name,)


def test_a_special_token_counts_only_where_it_is_asked_for() -> None:
    model, _, _ = fitted("llama")
    prompt = Prompt("<bos>the cat")
    assert not transported_features(model, prompt, top=200).grid[:, 0].any()
    assert transported_features(model, prompt, top=200, positions=(0,)).grid[:, 0].any()


def test_where_no_token_has_a_source_the_features_are_listed_and_nothing_is_said() -> None:
    model, _, _ = fitted("llama", 0, "previous")
    found = transported_features(model, PROMPT, policy="previous", positions=(0,))
    assert len(found.features) and np.isnan(found.carried).all() and found.residual is None
    assert "look at other tokens" in found.note


def test_it_is_the_changed_model_that_is_looked_at() -> None:
    model, of, mine = fitted("gpt2")
    source, target = of.streams[1], of.streams[2]
    with scale_site(model, PROMPT, site=source, by=1.7):
        found = transported_features(model, PROMPT)
        with model.record([source, target]) as record:
            model(PROMPT)
    true, read = mine.encode(record[target][0]), mine.encode(of.operator(source, target)(record[source][0]))
    for row, number in enumerate(found.features.tolist()):
        np.testing.assert_allclose(found.grid[row], true[:, number], atol=1e-5)
        on = (true[:, number] > 1e-3).numpy()
        np.testing.assert_allclose(found.carried[row, on], (read / true)[on, number], rtol=1e-3, atol=1e-3)


def test_what_has_no_source_or_reads_no_stream_gets_a_sentence(own_store: Path) -> None:
    model, _, _ = fitted("gpt2")
    other = next(each for each in sae.available(model) if sae.load(each).is_transcoder)
    with pytest.raises(Unsuitable, match="not the residual stream"):
        transported_features(model, PROMPT, sae=other)
    for site, hint in (("resid_pre.0", "nothing leads"), ("z.1", "not the residual stream")):
        tiny.random_sae(own_store / site, metadata={"actiscope": {"site": site}, "hook_name": "-"})
        with pytest.raises(Unsuitable, match=hint):
            transported_features(model, PROMPT, sae=sae.keep(own_store / site, model))
    for source in ("resid_post.1", "resid_post.2", "resid_pre.2"):
        with pytest.raises(Unsuitable, match="before its target"):
            transported_features(model, PROMPT, source=source)
    with pytest.raises(Unsuitable, match="none of these"):
        transported_features(model, PROMPT, source="z.1")
    with pytest.raises(Unsuitable, match="positions 0 to 21, not 22"):
        transported_features(model, PROMPT, positions=(22,))
