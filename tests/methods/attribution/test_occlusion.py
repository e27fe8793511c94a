import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch

from interp import Unsuitable, progress
from interp.methods.attribution._pixels import references
from interp.methods.attribution.occlusion import edges, occlusion
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, linear, score

MODULE = sys.modules[occlusion.__module__]


def slow(model, sample, index, window, stride, by, seed=0):
    """Window by window and pixel by pixel, on the network itself."""
    pixels = model.inputs(sample)
    fill, plain = references(model, pixels, by, seed=seed), float(score(model, pixels, index))
    height, width = pixels.shape[2:]
    tops, lefts = (sorted({min(start, side - window) for start in range(0, side, stride)}) for side in (height, width))
    drops = [[[] for _ in range(width)] for _ in range(height)]
    for top in tops:
        for left in lefts:
            hidden = pixels.clone()
            covered = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
            for y, x in covered:
                hidden[0, :, y, x] = fill[0, :, y, x]
            drop = plain - float(score(model, hidden, index))
            for y, x in covered:
                drops[y][x].append(drop)
    return np.array([[np.mean(each) for each in row] for row in drops])


@pytest.mark.parametrize("by", ["zeros", "white", "blur", "uniform"])
@pytest.mark.parametrize("family", FAMILIES)
def test_window_by_window(family, by):
    seed = len(by) % 2
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    expected = slow(model, sample, 1, 10, 7, by, seed)
    found = occlusion(model, sample, target=1, window=10, stride=7, by=by, seed=seed)
    np.testing.assert_allclose(found.values, expected, atol=1e-10 * np.abs(expected).max())
    assert np.isfinite(found.values).all() and found.units == "logit drop when hidden"


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(224, 32, 16), (32, 10, 7), (33, 4, 4), (16, 32, 16), (9, 9, 3)]
)
def test_the_windows_cover_the_border_and_leave_no_gap(length, window, stride):
    starts = edges(length, window, stride)
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] + min(window, length) == length
    assert all(later - earlier <= stride for earlier, later in pairwise(starts))


def test_the_tiles_of_a_linear_network_add_up():
    model, sample = linear(), tiny.image()
    pixels = model.inputs(sample)
    found = occlusion(model, sample, target=1, window=8, stride=8, by="white")
    tiles = found.values.reshape(4, 8, 4, 8)
    assert (tiles == tiles[:, :1, :, :1]).all()
    difference = score(model, pixels, 1) - score(model, references(model, pixels, "white"), 1)
    assert tiles[:, 0, :, 0].sum() == pytest.approx(float(difference), rel=1e-9)


def test_a_window_larger_than_the_image_hides_all_of_it():
    model, sample = tiny.vision("vit", torch.float64), tiny.image()
    pixels = model.inputs(sample)
    found = occlusion(model, sample, target=1, window=128, stride=64, by="black").values
    drop = float(score(model, pixels, 1) - score(model, references(model, pixels, "black"), 1))
    np.testing.assert_allclose(found, drop, atol=1e-12)


def test_a_stride_that_leaves_gaps_is_refused():
    with pytest.raises(Unsuitable, match="at most 8"):
        occlusion(tiny.vision("vit"), tiny.image(), window=8, stride=9)


def test_what_it_costs_and_that_another_class_costs_nothing():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    settings = {"window": 10, "stride": 7}
    first = occlusion(model, sample, target=0, **settings)
    assert (first.forwards, 0) == occlusion.estimate(model, settings) == (26, 0)
    second = occlusion(model, sample, target=1, **settings)
    assert second.forwards == 0 and not np.array_equal(first.values, second.values)


def test_batches_do_not_change_the_numbers(monkeypatch):
    model, sample, found = tiny.vision("convnext", torch.float64), tiny.image(), []
    for batch in (1, 5, 64):
        monkeypatch.setattr(MODULE, "BATCH", batch)
        model.forget()
        found.append(occlusion(model, sample, target=1, window=8, stride=5).values)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-11 * np.abs(found[0]).max())


def test_it_stops_within_a_batch():
    model, sample, cancel, seen = tiny.vision("vit"), tiny.image(), threading.Event(), []
    model.forget()

    def report(step: progress.Progress) -> None:
        seen.append(step.done)
        if step.done == 1:
            cancel.set()

    with pytest.raises(progress.Cancelled), progress.watch(report, cancel):
        occlusion(model, sample, window=8, stride=5)
    assert seen == [0, 1]
