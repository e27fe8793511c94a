"""Linear probes against scikit-learn's, at several penalties and both with more examples than directions and fewer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from interp import directions
from interp.methods.steering.probe_direction import logistic, probe_direction, ridge, rows
from tests import tiny

PENALTIES = (0.01, 1.0, 100.0)


def sides(seed: int, count: int, other: int, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Two clouds of streams [example, layer, d] about different means, of several scales."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=d))
    positive, negative = (rng.normal(size=(each, 2, d)) * scale for each in (count, other))
    return torch.from_numpy(positive + 0.7 * scale + 5).float(), torch.from_numpy(negative + 5).float()


@pytest.mark.parametrize(("count", "other"), [(30, 40), (3, 4)])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_the_weights_are_scikit_learns(kind: str, penalty: float, count: int, other: int) -> None:
    positive, negative = sides(0, count, other)
    x = torch.cat([positive, negative]).double().numpy()
    middle = (positive.double().mean(0) + negative.double().mean(0)).numpy() / 2
    y = np.array([1.0] * count + [-1.0] * other)
    ours = (logistic if kind == "logistic" else ridge)(positive, negative, penalty).double().numpy()
    for layer in range(2):
        centred = x[:, layer] - middle[layer]
        centred = centred / np.linalg.norm(centred, axis=1).mean()
        theirs = (
            LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000)
            if kind == "logistic"
            else Ridge(alpha=penalty, fit_intercept=False)
        ).fit(centred, y)
        w = np.ravel(theirs.coef_)
        assert ours[layer] @ w / np.linalg.norm(ours[layer]) / np.linalg.norm(w) > 1 - 1e-6
        shift = (positive.double().mean(0) - negative.double().mean(0))[layer].numpy()
        assert np.linalg.norm(ours[layer]) == pytest.approx(shift @ w / np.linalg.norm(w), rel=1e-4)


def test_examples_are_taken_about_the_middle_of_the_two_means_however_many_a_side_has() -> None:
    positive, negative = sides(1, 20, 5)
    x, y = rows(positive, negative)
    means = [x[:, y == each].mean(1) for each in (1, -1)]
    torch.testing.assert_close(means[0], -means[1])
    torch.testing.assert_close(x.norm(dim=2).mean(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_a_weak_penalty_finds_the_boundary_a_difference_of_means_misses(kind: str) -> None:
    """Noise shared by both axes hides the shift along the first; told by both together, the sides part cleanly."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 200, 1)) * 5
    clouds = np.concatenate([noise, noise], 2) + 0.05 * rng.normal(size=(2, 200, 2))
    clouds[0, :, 0] += 1
    positive, negative = (torch.from_numpy(each[:, None]).float() for each in clouds)
    v = (logistic if kind == "logistic" else ridge)(positive, negative, 1e-4)[0]
    assert float((v / v.norm()) @ torch.tensor([0.5**0.5, -(0.5**0.5)])) > 0.99


def test_separable_sides_and_extreme_penalties_stay_finite() -> None:
    positive, negative = sides(2, 10, 10)
    for penalty in (1e-6, 1e6):
        for make in (logistic, ridge):
            v = make(positive + 50, negative - 50, penalty)
            assert v.isfinite().all() and v.any(1).all()


def test_a_probe_is_kept_with_what_is_known_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    model = tiny.language("llama")
    keys = {kind: probe_direction(model, tiny.two_sides(), kind=kind) for kind in ("logistic", "ridge")}
    for kind, key in keys.items():
        found = directions.load(key, model)
        assert found.method == f"{kind} probe" and found.fact("accuracy") >= 0.9, "? or ! at the end"
        assert ((found.facts["cosine"] > 0) & (found.facts["cosine"] < 1)).all()
    assert len({*keys.values(), probe_direction(model, tiny.two_sides(), penalty=2.0)}) == 3
