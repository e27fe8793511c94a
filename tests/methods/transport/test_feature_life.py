"""A feature through the layers: against the operators one by one, backwards too, and its life in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp import Unsuitable, sae
from interp.methods.change.scale_site import scale_site
from interp.methods.transport.feature_life import feature_life, in_words
from interp.samples import Prompt
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
def test_where_layers_are_linear_a_feature_is_the_same_in_all_of_them(family: str, seed: int) -> None:
    model, _, _ = linear(family, seed)
    found = feature_life(model, PROMPT, feature=0)
    activation, share = found.sheet("activation"), found.sheet("share")
    assert (activation[2] > 0.1).sum() > 10
    np.testing.assert_allclose(activation, activation[[2] * 4], atol=1e-2)
    np.testing.assert_allclose(share[:, activation[2] > 0.1], 1, atol=0.1)
    np.testing.assert_allclose(found.row_values, 1, atol=1e-3)
    assert found.row_names == ("R²", "low", "high") and found.row_values[2].tolist() == [1, 1, 1]
    assert found.note == "It is there from the embedding on (R² 1.00), and carried to the end."


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("feature", [0, 7])
def test_each_layer_is_read_by_its_own_operator(family: str, seed: int, feature: int) -> None:
    model, of, mine = fitted(family, seed)
    found = feature_life(model, PROMPT, feature=feature)
    assert found.rows == of.names and found.columns == tuple(PROMPT.text)
    with model.record(of.streams) as record:
        model(PROMPT)
    own = mine.encode(record["resid_post.1"][0])[:, feature].numpy()
    for row, site in enumerate(of.streams):
        operator = of.operator(site, of.streams[2], "identity" if row == 2 else "ridge")
        want = mine.encode(operator(record[site][0]))[:, feature].numpy()
        np.testing.assert_allclose(found.sheet("activation")[row], want, atol=1e-3)
        share = found.sheet("share")[row]
        assert (np.isfinite(share) == (own > 1e-6)).all()
        np.testing.assert_allclose(share[own > 1e-6], (want / np.maximum(own, 1e-6))[own > 1e-6], rtol=1e-2, atol=1e-2)
        if row != 2:
            kept = of.features(mine.name, row, 2)
            assert kept is not None
            want = np.array([kept[name][feature] for name in ("read", "read low", "read high")])
            np.testing.assert_array_equal(found.row_values[row], want)


@pytest.mark.parametrize("policy", ["previous", "attention"])
def test_other_policies_read_no_layer_backwards_and_no_first_token(policy: str) -> None:
    model, of, _ = fitted("llama", 0, policy)  # type: ignore[arg-type]
    found = feature_life(model, PROMPT, operators=of.key)
    activation = found.sheet("activation")
    assert np.isnan(activation[3]).all() and np.isnan(found.row_values[3]).all()
    assert np.isnan(activation[:2, 0]).all() and np.isfinite(activation[:2, 1:]).all()
    assert np.isfinite(activation[2]).all()


def test_a_life_in_words() -> None:
    names = ("embed", "0", "1", "2", "3")

    def life(own: int, *values: float) -> str:
        return in_words(names, np.array([[each, each - 0.05, each + 0.05] for each in values]), own)

    assert life(2, 0.1, 0.18, 1, 0.8, 0.7) == "It is made in layer 1 (R² 0.18 before it), and carried to the end."
    assert life(3, 0.1, 0.18, 0.61, 1, 0.2) == (
        "It is made in layer 1 (R² 0.18 before it, 0.61 after), carried through layer 2 and overwritten in layer 3 "
        "(R² 0.20)."
    )
    assert life(2, 0.9, 0.9, 1, 0.9, 0.52) == (
        "It is there from the embedding on (R² 0.90), carried through layer 2 and overwritten in layer 3 (R² 0.52)."
    )
    # a gap ends it, whatever lies beyond
    assert life(3, 0.9, 0.9, 0.3, 1, 0.9) == "It is made in layer 2 (R² 0.30 before it), and carried to the end."
    assert life(4, 0.1, 0.1, 0.1, 0.2, 1) == "It is made in layer 3 (R² 0.20 before it), the last one."
    assert life(0, 1, 0.2, 0.2, 0.2, 0.2) == "It is there from the embedding on and overwritten in layer 0 (R² 0.20)."
    unknown = np.array([[np.nan] * 3] * 2 + [[1.0] * 3] + [[np.nan] * 3] * 2)
    assert "not known" in in_words(names, unknown, 2)


def test_of_an_sae_that_the_fit_did_not_know_there_are_activations_and_no_r2(own_store: Path) -> None:
    model, _, _ = fitted("gpt2")
    tiny.random_sae(own_store / "new", metadata={"actiscope": {"site": "resid_post.2"}, "hook_name": "-"}, seed=3)
    found = feature_life(model, PROMPT, sae=sae.keep(own_store / "new", model), feature=5)
    assert np.isfinite(found.sheet("activation")).all() and "not known" in found.note
    assert np.isnan(found.row_values[:3]).all() and found.row_values[3].tolist() == [1, 1, 1]


def test_special_tokens_have_no_activation() -> None:
    model, _, _ = fitted("llama")
    activation = feature_life(model, Prompt("<bos>the cat")).sheet("activation")
    assert np.isnan(activation[:, 0]).all() and np.isfinite(activation[:, 1:]).all()


def test_it_is_the_changed_model_that_is_looked_at() -> None:
    model, of, _ = fitted("gpt2")
    plain = feature_life(model, PROMPT).sheet("activation")
    with scale_site(model, PROMPT, site=of.streams[2], by=2.0):
        after = feature_life(model, PROMPT).sheet("activation")
    np.testing.assert_array_equal(plain[:2], after[:2])
    assert not np.allclose(plain[2], after[2]) and not np.allclose(plain[3], after[3])


def test_a_feature_that_is_none_gets_a_sentence() -> None:
    model, _, _ = fitted("llama")
    with pytest.raises(Unsuitable, match="features 0 to 31, not 32"):
        feature_life(model, PROMPT, feature=32)
    other = next(each for each in sae.available(model) if sae.load(each).is_transcoder)
    with pytest.raises(Unsuitable, match="not the residual stream"):
        feature_life(model, PROMPT, sae=other)
