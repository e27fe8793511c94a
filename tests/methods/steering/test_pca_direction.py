"""Principal directions on data whose true shift is known, with something else that varies more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable, directions
from interp.methods.steering.difference_of_means import difference_of_means, shift
from interp.methods.steering.pca_direction import by_all, by_pairs, pca_direction
from interp.samples import Contrast
from tests import tiny

SHIFT, NUISANCE = 3.0, 1.5


def planted(seed: int, topic: float = 0.0, pairs: int = 400, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs [pair, 1, d] that differ by SHIFT along axis 0, and by noise of standard deviation NUISANCE along axis 1.

    topic: how far what both sides of a pair share reaches along axis 2.
    """
    rng = np.random.default_rng(seed)
    middle = 0.05 * rng.normal(size=(pairs, 1, d))
    middle[..., 2] += topic * rng.normal(size=(pairs, 1))
    half = 0.05 * rng.normal(size=(pairs, 1, d))
    half[..., 0] += SHIFT / 2
    half[..., 1] += NUISANCE / 2 * rng.normal(size=(pairs, 1))
    return torch.from_numpy(middle + half).float(), torch.from_numpy(middle - half).float()


def cosines(v: torch.Tensor) -> np.ndarray:
    return (v[0] / v[0].norm()).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_to_centre_find_the_shift_that_centred_differences_lose(seed: int) -> None:
    positive, negative = planted(seed)
    for make in (by_pairs, by_all):
        assert cosines(make(positive, negative))[0] > 0.99
    differences = (positive - negative)[:, 0].double()
    centred = torch.linalg.svd(differences - differences.mean(0), full_matrices=False).Vh[0]
    assert abs(float(centred[0])) < 0.05 and abs(float(centred[1])) > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_a_topic_that_pairs_share_leads_only_the_mean_of_all_astray(seed: int) -> None:
    positive, negative = planted(seed, topic=10.0)
    assert cosines(by_pairs(positive, negative))[0] > 0.99
    astray = cosines(by_all(positive, negative))
    assert abs(astray[0]) < 0.1 and abs(astray[2]) > 0.99


def test_it_is_as_long_as_the_shift_along_it_and_points_to_the_positive_side() -> None:
    positive, negative = planted(0)
    for make in (by_pairs, by_all):
        v, mean = make(positive, negative)[0].double(), shift(positive, negative)[0].double()
        assert float(v @ mean / v.norm()) == pytest.approx(float(v.norm()), rel=1e-5)
        torch.testing.assert_close(make(negative, positive), -make(positive, negative))


def test_of_two_texts_it_is_their_difference() -> None:
    model = tiny.language("llama")
    data = Contrast(("the cat sat",), ("a dog ran off",))
    means, *pcas = (
        directions.load(each, model)
        for each in (
            difference_of_means(model, data),
            pca_direction(model, data),
            pca_direction(model, data, centre="all"),
        )
    )
    for each in pcas:
        torch.testing.assert_close(each.vectors, means.vectors, rtol=1e-4, atol=1e-4)
        assert each.facts["cosine"] == pytest.approx(1)


def test_pairs_of_unequal_number_are_refused_where_pairs_are_centred(tmp_path: Path) -> None:
    model, data = tiny.language("gpt2"), Contrast(("a", "b"), ("c",))
    with pytest.raises(Unsuitable, match="as many texts on both sides, not 2 and 1"):
        pca_direction(model, data)
    assert pca_direction(model, data, centre="all")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
