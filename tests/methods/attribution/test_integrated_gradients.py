import sys
import threading

import numpy as np
import pytest
import torch

from interp import Unsuitable, progress
from interp.methods.attribution._pixels import references
from interp.methods.attribution.integrated_gradients import integrated_gradients
from interp.samples import ImageSet
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, SMOOTH, flat, linear, normalised, score, slope

MODULE = sys.modules[integrated_gradients.__module__]


def riemann(model, pixels, start, index, steps):
    """The midpoint rule, point by point on the network itself."""
    total = torch.zeros_like(pixels)
    for points in ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).split(100):
        total += slope(model, start + points[:, None, None, None] * (pixels - start), index).sum(0)
    return ((pixels - start) * total / steps)[0].numpy()


@pytest.mark.parametrize(("seed", "reference"), [(0, "black"), (1, "white")])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_agrees_with_a_riemann_sum(family, seed, reference):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    pixels, start = model.inputs(sample), normalised(model, float(reference == "white"))
    expected = riemann(model, pixels, start, 1, 1000)
    found = integrated_gradients(model, sample, target=1, reference=reference, steps=100).values
    # both rules are exact to the fourth digit only where ReLUs bend the path
    tolerance = 1e-5 if family != "resnet" else 2e-2
    np.testing.assert_allclose(found, expected.sum(0), rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("family", SMOOTH)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reference", ["zeros", "white", "blur"])
def test_the_pixels_add_up_to_the_difference_with_enough_steps(family, seed, reference):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    pixels = model.inputs(sample)
    difference = float(score(model, pixels, 2) - score(model, references(model, pixels, reference), 2))
    found = {n: integrated_gradients(model, sample, target=2, reference=reference, steps=n) for n in (2, 8, 128)}
    for each in found.values():
        assert each.residual.value == pytest.approx(abs(each.values.sum() / difference - 1), abs=1e-9)
    assert found[128].residual.value < 1e-6 < found[2].residual.value > found[8].residual.value
    assert found[128].values.sum() == pytest.approx(difference, rel=1e-6)


def test_more_steps_help_where_the_path_has_bends_too():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    few, many = (integrated_gradients(model, sample, target=1, reference="black", steps=n) for n in (3, 300))
    assert many.residual.value < 2e-2 and many.residual.value < few.residual.value


@pytest.mark.parametrize("steps", [1, 5, 32])
@pytest.mark.parametrize("reference", ["zeros", "white", "uniform"])
def test_it_is_exact_for_a_linear_network_whatever_the_steps(steps, reference):
    model, sample = linear(1), tiny.image(1)
    pixels = model.inputs(sample)
    start = references(model, pixels, reference, seed=4)
    expected = ((pixels - start) * slope(model, pixels, 1))[0].sum(0).numpy()
    found = integrated_gradients(model, sample, target=1, reference=reference, steps=steps, seed=4)
    # captum keeps its weights in single precision
    np.testing.assert_allclose(found.values, expected, atol=1e-6 * np.abs(expected).max())
    assert found.residual.value < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_swapping_image_and_reference_turns_every_sign(family):
    model, one, other = tiny.vision(family, torch.float64), tiny.image(0), tiny.image(1)
    there = integrated_gradients(model, one, target=1, images=ImageSet((other,)), steps=9)
    back = integrated_gradients(model, other, target=1, images=ImageSet((one,)), steps=9)
    np.testing.assert_allclose(there.values, -back.values, atol=1e-6 * np.abs(there.values).max())
    assert np.abs(there.values).max() > 1e-4


def test_over_several_references_it_is_the_mean():
    model, sample, others = tiny.vision("vit", torch.float64), tiny.image(0), (tiny.image(1), tiny.image(2), flat())
    single = [integrated_gradients(model, sample, target=1, images=ImageSet((each,)), steps=20) for each in others]
    model.forget()
    whole = integrated_gradients(model, sample, target=1, images=ImageSet(others), steps=20)
    np.testing.assert_allclose(whole.values, np.mean([each.values for each in single], 0), atol=1e-12)
    assert whole.residual.value < 1e-3
    settings = {"images": ImageSet(others), "steps": 20}
    assert (whole.forwards, whole.backwards) == integrated_gradients.estimate(model, settings) == (64, 60)

    drawn = integrated_gradients(model, sample, target=1, reference="uniform", draws=3, seed=5, steps=100)
    pixels = model.inputs(sample)
    starts = references(model, pixels, "uniform", draws=3, seed=5)
    expected = np.mean([riemann(model, pixels, start[None], 1, 300) for start in starts], 0)
    np.testing.assert_allclose(drawn.values, expected.sum(0), atol=1e-5 * np.abs(expected).max())


def test_a_pixel_of_the_references_colour_gets_nothing():
    model = tiny.vision("convnext", torch.float64)
    picture = np.full((32, 32, 3), 255, dtype=np.uint8)
    picture[8:20, 4:16] = np.random.default_rng(0).integers(0, 200, (12, 12, 3))
    found = integrated_gradients(model, type(flat()).of(picture), target=1, reference="white").values
    inside = np.zeros((32, 32), dtype=bool)
    inside[8:20, 4:16] = True
    assert np.abs(found[~inside]).max() < 1e-7 * np.abs(found[inside]).max()


def test_no_images_and_images_of_another_size_get_a_sentence():
    model, sample = tiny.vision("vit"), tiny.image()
    with pytest.raises(Unsuitable, match="at least one"):
        integrated_gradients(model, sample, images=ImageSet(()))


def test_batches_do_not_change_the_numbers(monkeypatch):
    model, sample, found = tiny.vision("resnet", torch.float64), tiny.image(), []
    for batch in (1, 5, 64):
        monkeypatch.setattr(MODULE, "BATCH", batch)
        found.append(integrated_gradients(model, sample, target=1, steps=12, reference="white").values)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-12 * np.abs(found[0]).max())


def test_it_reports_each_batch_and_stops_within_one():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    cancel, seen = threading.Event(), []

    def report(step: progress.Progress) -> None:
        seen.append(step)
        if step.done == 2:
            cancel.set()

    with pytest.raises(progress.Cancelled), progress.watch(report, cancel), progress.meter() as spent:
        integrated_gradients(model, sample, target=1, steps=32)
    assert [step.done for step in seen] == [0, 1, 2] and seen[0].total == 8
    assert spent.backwards == 8 and spent.forwards == 9
