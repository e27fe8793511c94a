"""The checks under a heatmap measure what they say."""

from __future__ import annotations

import numpy as np
import pytest

from interp import Unsuitable, evidence
from interp.experiment import Call, Experiment
from interp.results import Heatmap
from interp.samples import Image


def heatmap(values: np.ndarray, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> Heatmap:
    return Heatmap(np.asarray(values, float), (64, 64), box)


@pytest.mark.parametrize("seed", [0, 1])
def test_agreement_is_spearmans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 6, (5, 5)).astype(float)  # with ties
    b = a + rng.normal(size=(5, 5))

    def ranks(values: np.ndarray) -> np.ndarray:  # the slow way: count those below, and half of those equal
        flat = values.ravel()
        return np.array([(flat < each).sum() + ((flat == each).sum() - 1) / 2 for each in flat])

    expected = np.corrcoef(ranks(a), ranks(b))[0, 1]
    assert evidence.agreement(heatmap(a), heatmap(b)) == pytest.approx(expected, abs=1e-12)
    assert evidence.agreement(heatmap(a), heatmap(np.exp(a))) == pytest.approx(1)
    assert evidence.agreement(heatmap(a), heatmap(-a)) == pytest.approx(-1)
    assert np.isnan(evidence.agreement(heatmap(a), heatmap(np.ones((5, 5)))))


def test_the_peak_box_holds_the_peak_and_not_a_lower_hill_elsewhere() -> None:
    values = np.zeros((8, 8))
    values[1:3, 1:4] = 1.0
    values[6, 6] = 0.9
    left, top, right, bottom = evidence.peak_box(heatmap(values))
    assert left <= 1 / 8 and top <= 1 / 8 and right >= 4 / 8 - 0.02 and bottom >= 3 / 8 - 0.02
    assert right < 6 / 8 and bottom < 6 / 8
    half = evidence.peak_box(heatmap(values, (0.5, 0, 1, 1)))
    assert half[0] == pytest.approx(0.5 + left / 2, abs=0.01)
    with pytest.raises(Unsuitable):
        evidence.peak_box(heatmap(-values))


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.3, 0.2), (0.6, 0.1, 0.9, 0.5), (0.2, 0.7, 0.5, 1.0)])
def test_elsewhere_is_of_the_same_size_inside_and_apart(box: tuple[float, float, float, float]) -> None:
    other = evidence.elsewhere(box)
    assert other[2] - other[0] == pytest.approx(box[2] - box[0], abs=2e-3)
    assert other[3] - other[1] == pytest.approx(box[3] - box[1], abs=2e-3)
    assert min(other) >= 0 and max(other) <= 1
    apart = other[2] <= box[0] or other[0] >= box[2] or other[3] <= box[1] or other[1] >= box[3]
    assert apart


def test_a_mask_of_a_box_covers_its_share() -> None:
    mask = evidence.mask_of((0.25, 0.5, 0.75, 1.0), (40, 20))
    assert mask.shape == (20, 40) and mask.mean() == pytest.approx(0.25)
    assert mask[10:, 10:30].all()


def test_difference_is_after_minus_before() -> None:
    rng = np.random.default_rng(0)
    before, after = heatmap(rng.normal(size=(4, 4))), heatmap(rng.normal(size=(4, 4)))
    gap = evidence.difference(before, after)
    assert gap is not None and np.allclose(gap.values, after.values - before.values)
    assert evidence.difference(before, heatmap(np.zeros((5, 5)))) is None


def test_the_picture_after_a_change_differs_inside_the_hidden_box_alone() -> None:
    sample = Image.gallery("chelsea")
    change = Call("hide_region", box=(0.25, 0.25, 0.5, 0.75), by="mean")
    experiment = Experiment("scenes", sample, Call("grad_cam"), (change,))
    before, after = np.asarray(sample.picture, int), np.asarray(evidence.picture_after(experiment), int)
    changed = np.abs(before - after).max(2) > 8
    height, width = changed.shape
    slack = width // 96 + 2  # a pixel of the model's input
    inside = np.zeros_like(changed)
    inside[height // 4 - slack : 3 * height // 4 + slack, width // 4 - slack : width // 2 + slack] = True
    assert changed[inside].mean() > 0.6 and not changed[~inside].any()
    assert np.array_equal(np.asarray(evidence.picture_after(experiment.before())), before)


def test_randomising_everything_changes_a_map_of_a_trained_model() -> None:
    experiment = Experiment("scenes", Image.gallery("scene_cross"), Call("hires_cam"))
    one, other = experiment.run(), evidence.randomised(experiment).run()
    assert isinstance(one, Heatmap) and isinstance(other, Heatmap)
    assert abs(evidence.agreement(one, other)) < 0.8


def test_the_strongest_channels_are_those_that_add_most_to_the_logit() -> None:
    from interp import zoo
    from interp.samples import Target

    model, sample = zoo.load("scenes"), Image.gallery("scene_ring")
    chosen = evidence.strongest_channels(model, sample, Target(), None, 5)  # type: ignore[arg-type]
    with model.record([model.last_spatial]) as recorded:  # type: ignore[union-attr]
        index = int(model(sample).argmax())
    # the head is average pooling and one linear layer, so a channel adds weight x mean
    adds = model.weight("classifier.1.weight")[index] * recorded[model.last_spatial][0].mean((1, 2))  # type: ignore[union-attr]
    assert set(chosen) == set(adds.topk(5).indices.tolist())
