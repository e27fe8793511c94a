import sys
import threading
from itertools import product

import numpy as np
import pytest
import torch

from interp import progress
from interp.methods.attribution._pixels import references
from interp.methods.attribution.rise import random_masks, rise
from interp.results import resize
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, flat

MODULE = sys.modules[rise.__module__]


def probability(model, pixels, index):
    with torch.no_grad():
        parts = [model._network(pixel_values=each).logits.softmax(1)[:, index] for each in pixels.split(512)]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("by", ["zeros", "white"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_mask_by_mask(family, seed, by):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    pixels = model.inputs(sample)
    fill = references(model, pixels, by)
    expected = np.zeros((32, 32))
    for mask in random_masks(30, (32, 32), 5, 0.3, seed):
        expected += probability(model, mask * pixels + (1 - mask) * fill, 1)[0] * mask.numpy() / (30 * 0.3)
    settings = {"target": 1, "masks": 30, "cells": 5, "keep": 0.3, "by": by, "seed": seed}
    found = rise(model, sample, **settings)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    shown = sum(mask.numpy() for mask in random_masks(30, (32, 32), 5, 0.3, seed))
    actual = rise(model, sample, coverage="actual", **settings)
    np.testing.assert_allclose(actual.values, expected * 30 * 0.3 / shown, atol=1e-12)
    assert found.units == "probability" and not found.signed


@pytest.mark.parametrize(("size", "cells"), [((32, 32), 5), ((24, 40), 7), ((32, 32), 30)])
def test_a_mask_is_a_coarse_grid_enlarged_and_shifted(size, cells):
    generator = torch.Generator().manual_seed(3)
    cell = [-(-side // cells) for side in size]
    for mask in random_masks(5, size, cells, 0.4, 3):
        grid = (torch.rand(cells, cells, generator=generator, dtype=torch.float64) < 0.4).double().numpy()
        top, left = (int(torch.randint(each, (1,), generator=generator)) for each in cell)
        whole = resize(grid, ((cells + 1) * cell[0], (cells + 1) * cell[1]))
        np.testing.assert_allclose(mask, whole[top : top + size[0], left : left + size[1]], atol=1e-12)


def test_each_pixel_is_shown_as_often_as_asked():
    masks = torch.stack(list(random_masks(2000, (24, 40), 6, 0.3, 0)))
    assert masks.min() >= 0 and masks.max() <= 1 + 1e-12
    error = masks.std(0) / 2000**0.5
    # normal beyond 5 once in two million, and there are 960 pixels
    assert float(((masks.mean(0) - 0.3) / error).abs().max()) < 5
    assert torch.equal(masks[:50], torch.stack(list(random_masks(50, (24, 40), 6, 0.3, 0)))), "a prefix"


@pytest.mark.parametrize(("seed", "by", "index"), [(0, "zeros", 2), (1, "black", 0)])
def test_it_scatters_around_the_mean_over_all_masks(seed, by, index):
    model, sample, n = tiny.vision("vit", torch.float64, seed), tiny.image(seed), 2000
    pixels, masks = model.inputs(sample), []
    for bits in product((0.0, 1.0), repeat=4):
        whole = resize(np.array(bits).reshape(2, 2), (48, 48))
        # every third shift: the probability varies slowly with it
        masks += [whole[top : top + 32, left : left + 32] for top in range(0, 16, 3) for left in range(0, 16, 3)]
    every = np.array(masks)
    shown = torch.from_numpy(every)[:, None]
    chances = probability(model, shown * pixels + (1 - shown) * references(model, pixels, by), index)[:, None, None]
    mean = (chances * every).mean(0) / 0.5
    settings = {"target": index, "masks": n, "cells": 2, "by": by, "seed": seed}
    error = (chances * every).std(0) / 0.5 / n**0.5
    assert np.abs((rise(model, sample, **settings).values - mean) / error).max() < 5
    assert np.ptp(mean) > 10 * error.max(), "enough to see the map"
    # the same limit with less scatter: that of a ratio of means
    actual = rise(model, sample, coverage="actual", **settings)
    less = ((chances - mean) * every).std(0) / 0.5 / n**0.5
    assert np.abs((actual.values - mean) / less).max() < 5 and less.mean() < 0.7 * error.mean()
    assert actual.forwards == 0


def test_where_hiding_changes_nothing_the_map_is_the_coverage():
    model, sample = tiny.vision("vit", torch.float64), flat()
    masks = torch.stack(list(random_masks(40, (32, 32), 7, 0.5, 2)))
    own = probability(model, model.inputs(sample), 1)[0]
    found = rise(model, sample, target=1, masks=40, by="image mean", seed=2).values
    np.testing.assert_allclose(found, own * masks.mean(0).numpy() / 0.5, atol=1e-9)
    level = rise(model, sample, target=1, masks=40, by="image mean", seed=2, coverage="actual").values
    np.testing.assert_allclose(level, own, atol=1e-9)


def test_pixels_that_no_mask_shows_have_no_value_and_a_note():
    model, sample = tiny.vision("vit"), tiny.image()
    shown = sum(random_masks(10, (32, 32), 7, 0.05, 0)).numpy()
    found = rise(model, sample, masks=10, keep=0.05, coverage="actual")
    assert (shown == 0).any() and "no mask" in found.note and not found.values[shown == 0].any()
    assert found.values[shown > 0].all() and not rise(model, sample, masks=50).note


def test_the_maps_of_all_classes_add_up_to_the_coverage():
    model, sample = tiny.vision("convnext", torch.float64), tiny.image()
    masks = torch.stack(list(random_masks(20, (32, 32), 7, 0.5, 0)))
    model.forget()
    found = [rise(model, sample, target=index, masks=20) for index in range(3)]
    np.testing.assert_allclose(sum(each.values for each in found), masks.mean(0) / 0.5, atol=1e-12)
    assert [each.forwards for each in found] == [21, 0, 0] and rise.estimate(model, {"masks": 20}) == (21, 0)


def test_batches_do_not_change_the_numbers(monkeypatch):
    model, sample, found = tiny.vision("resnet", torch.float64), tiny.image(), []
    for batch in (1, 7, 64):
        monkeypatch.setattr(MODULE, "BATCH", batch)
        model.forget()
        found.append(rise(model, sample, target=1, masks=25, by="uniform").values)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-12)


def test_the_seed_and_nothing_else_fixes_the_masks():
    model, sample = tiny.vision("vit"), tiny.image()
    first = rise(model, sample, seed=3, masks=10)
    model.forget()
    torch.manual_seed(99)
    assert rise(model, sample, seed=3, masks=10) == first != rise(model, sample, seed=4, masks=10)


def test_it_stops_within_a_batch():
    model, sample, cancel, seen = tiny.vision("vit"), tiny.image(), threading.Event(), []
    model.forget()

    def report(step: progress.Progress) -> None:
        seen.append((step.done, step.total))
        if step.done == 1:
            cancel.set()

    with pytest.raises(progress.Cancelled), progress.watch(report, cancel):
        rise(model, sample)
    assert seen == [(0, 50), (1, 50)]
