"""Results: resizing, places on the original, equality, reproduction, files."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from interp.results import Curve, FeatureList, Graph, Heatmap, Residual, Table, Text, TokenGrid, TokenScores, resize

RNG = np.random.default_rng(0)


def examples() -> list[Any]:
    residual = Residual(0.1, "completeness")
    return [
        Heatmap(
            RNG.normal(size=(3, 4)),
            (24, 32),
            (0.1, 0.0, 0.9, 1.0),
            "dog",
            1.5,
            "stage.1",
            "logit",
            residual=residual,
            note="x",
        ),
        Heatmap(np.array([[1.0, np.nan], [np.inf, -1]], np.float32), (4, 4)),
        TokenScores(("a", "b"), np.array([1.0, -2]), "c", "logit"),
        TokenGrid(
            ("0", "1"),
            ("a", "b"),
            np.eye(2)[None],
            ("KL (nat)",),
            ((("x",), ("y",)), (("z",), ("w",))),
            np.ones((2, 2, 1)),
        ),
        Graph(("a", "b"), np.ones(2), np.array([[0, 1]]), np.array([0.5]), "x"),
        Graph((), np.zeros(0), np.zeros((0, 2), int), np.zeros(0)),
        FeatureList(np.array([3, 1]), np.array([0.5, 0.2]), ("a", "b")),
        Curve(np.arange(3.0), np.ones((2, 3)), ("p", "q"), "x", "y"),
        Table(("r",), ("c", "d"), np.array([[1.0, 2.0]])),
        Text("hello"),
    ]


@pytest.mark.parametrize("old", [(1, 1), (2, 3), (7, 7), (14, 5), (64, 48)])
@pytest.mark.parametrize("new", [(1, 1), (7, 7), (32, 20), (224, 100)])
def test_resizing_equals_torch(old: tuple[int, int], new: tuple[int, int]) -> None:
    values = RNG.normal(size=old)
    expected = torch.nn.functional.interpolate(
        torch.tensor(values)[None, None], new, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resize(values, new), expected[0, 0].numpy(), atol=1e-12)


def test_a_heatmap_lies_where_the_model_looked() -> None:
    values = np.arange(16.0).reshape(4, 4)
    whole = Heatmap(values, (8, 8))
    np.testing.assert_allclose(whole.at_input(), resize(values, (8, 8)))
    np.testing.assert_allclose(whole.at_original(20, 30), resize(values, (20, 30)))
    middle = Heatmap(values, (8, 8), (0.25, 0.0, 0.75, 1.0)).at_original(10, 20)
    assert np.isnan(middle[:, :5]).all() and np.isnan(middle[:, 15:]).all()
    np.testing.assert_allclose(middle[:, 5:15], resize(values, (10, 10)))
    beyond = Heatmap(values, (8, 8), (-0.5, 0.0, 1.5, 1.0)).at_original(10, 20)  # a crop larger than the picture
    np.testing.assert_allclose(beyond, resize(values, (10, 40))[:, 10:30])
    for box in ((0.0, 0.0, 0.0, 1.0), (1.0, 1.0, 1.0, 1.0), (0.999, 0.999, 1.0, 1.0)):
        assert Heatmap(values, (8, 8), box).at_original(10, 20).shape == (10, 20)


def test_the_share_in_a_mask_counts_positive_evidence() -> None:
    values = np.array([[2.0, -5.0], [1.0, 1.0]])
    mask = np.zeros((2, 2), bool)
    mask[0] = True
    assert Heatmap(values, (2, 2)).share(mask) == pytest.approx(0.5)
    assert Heatmap(values, (2, 2)).share(mask.astype(int)) == pytest.approx(0.5)
    assert Heatmap(values, (2, 2)).share(~mask) == pytest.approx(0.5)
    assert Heatmap(values, (2, 2)).share(np.ones((50, 30), bool)) == pytest.approx(1)
    assert math.isnan(Heatmap(-np.abs(values), (2, 2)).share(mask))
    half = Heatmap(np.ones((2, 2)), (2, 2), (0.0, 0.0, 0.5, 1.0))
    left = np.zeros((10, 20), bool)
    left[:, :10] = True
    assert half.share(left) == pytest.approx(1) and half.share(~left) == 0


def test_equality_ignores_cost_and_sees_everything_else() -> None:
    for first, second in zip(examples(), _again(), strict=True):
        assert first == second and first == dataclasses.replace(first, forwards=9, backwards=9)
        assert first != dataclasses.replace(first, note="other")
        for name, array in first.arrays().items():
            if array.size:
                other = array.copy()
                other.flat[0] += 1
                assert first != dataclasses.replace(first, **{name: other})
    assert examples()[0] != examples()[2] and examples()[0] != 3
    with pytest.raises(TypeError):
        hash(examples()[0])
    assert Heatmap(np.ones((2, 2)), (4, 4), score=float("nan")) == Heatmap(np.ones((2, 2)), (4, 4), score=math.nan * 1)


def _again() -> list[Any]:
    global RNG
    RNG = np.random.default_rng(0)
    first = examples()
    RNG = np.random.default_rng(0)
    assert first == examples()
    return [
        dataclasses.replace(each, **{name: array.copy() for name, array in each.arrays().items()}) for each in first
    ]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    global RNG
    RNG = np.random.default_rng(0)


def test_reproduced_means_within_a_ten_thousandth_of_the_scale() -> None:
    values = np.array([[1000.0, 0.0], [-3.0, 2.0]])
    stored = {"values": values}
    near, far = values.copy(), values.copy()
    near[0, 1] += 0.09
    far[0, 1] += 0.11
    assert Heatmap(near, (2, 2)).reproduces(stored) and not Heatmap(far, (2, 2)).reproduces(stored)
    assert not Heatmap(values[:1], (2, 2)).reproduces(stored)
    assert not Heatmap(values, (2, 2)).reproduces({})
    assert not Heatmap(values, (2, 2)).reproduces({"values": values, "more": values})
    holes = np.array([[np.nan, 1.0], [np.inf, -np.inf]])
    assert Heatmap(holes.copy(), (2, 2)).reproduces({"values": holes})
    assert not Heatmap(np.nan_to_num(holes), (2, 2)).reproduces({"values": holes})
    assert not Heatmap(holes, (2, 2)).reproduces({"values": np.ones((2, 2))})
    zero = np.zeros((2, 2))
    assert Heatmap(zero, (2, 2)).reproduces({"values": zero}) and not Heatmap(zero + 1, (2, 2)).reproduces(
        {"values": zero}
    )
    features = FeatureList(np.array([3, 1]), np.array([0.5, 0.2]))
    assert features.reproduces(features.arrays())
    assert not FeatureList(np.array([3, 2]), np.array([0.5, 0.2])).reproduces(features.arrays())
    for each in examples():
        assert each.reproduces(each.arrays())


def test_files_hold_everything_and_no_pickles() -> None:
    for result in examples():
        with np.load(io.BytesIO(result.to_npz()), allow_pickle=False) as archive:
            facts = json.loads(str(archive["facts"]))
            assert facts["type"] == type(result).__name__
            for name, array in result.arrays().items():
                assert np.array_equal(archive[name], array, equal_nan=array.dtype.kind == "f")
            assert result.reproduces({name: archive[name] for name in archive.files if name != "facts"})

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        plain = json.loads(result.to_json(), parse_constant=refuse)
        for name, array in result.arrays().items():
            numbers = np.array(plain[name], float).reshape(array.shape)  # None, for what JSON has no number for, is NaN
            finite = np.isfinite(array.astype(float))
            np.testing.assert_allclose(numbers[finite], array[finite], rtol=1e-6)
            assert np.isnan(numbers[~finite]).all()


def test_the_finding_says_where_the_map_peaks() -> None:
    values = np.full((6, 6), -1.0)
    assert "nowhere positive" in Heatmap(values, (6, 6)).finding
    assert "zero everywhere" in Heatmap(values * 0, (6, 6)).finding
    values[0, 5] = 2
    assert Heatmap(values, (6, 6)).finding.startswith("Peak at the upper right; 100% ")
    values[0, 5] = np.nan
    assert "not finite" in Heatmap(values, (6, 6)).finding
    assert Heatmap(np.ones((1, 1)), (6, 6)).finding.startswith("Peak at the middle centre")
