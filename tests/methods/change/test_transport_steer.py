"""Steering upstream: that it moves what it should by as much as it should, and by the least that does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, hooks, sae
from interp.methods.change.steer_upstream import steer_upstream
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.transport.lens import FAMILIES, PROMPT, STORE, fitted, linear
from tests.test_hooks import near

FIRST, MIDDLE = Site("resid_pre", 0), Site("resid_post", 1)
METRICS = ("covariance", "euclid")


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def recorded(model: LanguageModel, *sites: Site, sample: Prompt = PROMPT) -> list[Tensor]:
    with model.record(sites) as found:
        model(sample)
    return [found[site] for site in sites]


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("by", [2.5, -0.4])
def test_the_operator_moves_the_direction_by_exactly_so_much(family: str, seed: int, metric: str, by: float) -> None:
    model, of, mine = fitted(family, seed)
    (x,) = recorded(model, FIRST)
    with steer_upstream(model, PROMPT, source=FIRST, feature=5, by=by, metric=metric):
        moved = recorded(model, FIRST)[0] - x
    near(moved, moved[:, :1].expand_as(moved), 1e-4)
    d = mine.W_dec[5] / mine.W_dec[5].norm()
    assert float(of.map(0, 2).float() @ moved[0, 0] @ d) == pytest.approx(by, rel=1e-3)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_no_other_change_with_that_effect_is_smaller(family: str, seed: int) -> None:
    model, of, mine = fitted(family, seed)
    (x,) = recorded(model, FIRST)
    row = (of.map(0, 2).T @ (mine.W_dec[5] / mine.W_dec[5].norm()).double()).numpy()
    values, vectors = np.linalg.eigh(of.covariance(0, 0).numpy())
    there = values > 1e-6 * values[-1]
    for metric, basis in (
        ("euclid", np.eye(16)),
        ("covariance", vectors[:, there] * np.sqrt(values[there])),  # coordinates in which the spread is one
    ):
        with steer_upstream(model, PROMPT, source=FIRST, feature=5, by=1.5, metric=metric):
            delta = (recorded(model, FIRST)[0] - x)[0, 0].numpy()
        least = np.linalg.lstsq((row @ basis)[None], np.array([1.5]), rcond=None)[0]
        np.testing.assert_allclose(delta, basis @ least, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
@pytest.mark.parametrize("metric", METRICS)
def test_where_layers_are_linear_the_target_moves_as_the_operator_says(family: str, seed: int, metric: str) -> None:
    model, _, mine = linear(family, seed)
    (h,) = recorded(model, MIDDLE)
    with steer_upstream(model, PROMPT, source=FIRST, feature=4, by=0.8, metric=metric):
        moved = recorded(model, MIDDLE)[0] - h
    d = mine.W_dec[4] / mine.W_dec[4].norm()
    # what the texts never vary in the operator knows nothing of, so only the covariance keeps to what it knows
    near(moved @ d, torch.full(moved.shape[:2], 0.8), 0.02 if metric == "covariance" else 0.3)


def test_only_the_chosen_tokens_are_moved_and_special_ones_only_if_chosen() -> None:
    model, _, _ = fitted("llama")
    prompt = Prompt("<bos>the cat")
    (x,) = recorded(model, FIRST, sample=prompt)
    for positions, want in (((), range(1, 8)), ((2, 5), (2, 5)), ((0, 3), (0, 3))):
        with steer_upstream(model, prompt, source=FIRST, by=1.0, positions=positions):
            moved = (recorded(model, FIRST, sample=prompt)[0] - x)[0].abs().amax(1) > 1e-6
        assert moved.nonzero().flatten().tolist() == list(want)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_with_a_cache_of_keys_and_values_it_generates_as_without(family: str) -> None:
    model, _, _ = fitted(family)
    plain = list(model.generate(PROMPT, 12, 1.0, 4))
    for positions in ((), (3, 24)):
        with steer_upstream(model, PROMPT, by=6.0, positions=positions):
            texts = [list(model.generate(PROMPT, 12, 1.0, 4, cache)) for cache in (True, False)]
        assert texts[0] == texts[1] and (positions or texts[0] != plain)


def test_at_nothing_there_is_nothing_to_enter_and_by_default_the_layer_before_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, of, _ = fitted("gpt2")
    before = recorded(model, *of.streams[:3])
    with steer_upstream(model, PROMPT, by=1.0):
        after = recorded(model, *of.streams[:3])
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    with steer_upstream(tiny.language("gpt2"), PROMPT, by=0.0):
        assert hooks.in_force() == ()


def test_what_can_not_be_steered_gets_a_sentence() -> None:
    model, _, mine = fitted("gpt2")
    for settings, hint in (
        ({"feature": 32}, "features 0 to 31, not 32"),
        ({"source": MIDDLE}, "before its target"),
        ({"source": "mlp_out.0"}, "none of these"),
        ({"by": 1e9}, "between"),
        ({"operators": fitted("gpt2", 0, "previous")[1].key}, "same token"),
        ({"sae": next(e for e in sae.available(model) if e != mine.name)}, "not the residual stream"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            steer_upstream(model, PROMPT, **{"by": 1.0, **settings})


def test_of_a_feature_that_the_source_says_nothing_of_there_is_no_change() -> None:
    model, _, mine = fitted("llama")
    row = mine.W_dec[3].clone()
    mine.W_dec[3] = 0  # no direction at all
    try:
        with pytest.raises(Unsuitable, match="says nothing of feature 3"):
            steer_upstream(model, PROMPT, feature=3, by=1.0)
    finally:
        mine.W_dec[3] = row
