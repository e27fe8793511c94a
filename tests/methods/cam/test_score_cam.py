import sys
import threading

import numpy as np
import pytest
import torch

from interp import progress
from interp.methods.cam.score_cam import score_cam
from interp.methods.change.ablate_channels import ablate_channels
from interp.methods.change.hide_region import hide_region
from interp.results import resize
from interp.sites import Site
from tests import tiny

MODULE = sys.modules[score_cam.__module__]


def slow(model, sample, index, weighting):
    """Channel by channel, with the resize of results.py, on the network itself."""
    site = model.last_spatial
    with model.record([site]) as recorded:
        model(sample)
    activation = model.grid(site)(recorded[site])[0].numpy()
    pixels = model.inputs(sample)
    weights, live = np.zeros(len(activation)), []
    for k, channel in enumerate(activation):
        mask = resize(channel, pixels.shape[-2:])
        if mask.max() == mask.min():
            continue
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        logits = model._network(pixel_values=pixels * torch.from_numpy(mask)).logits[0].detach().numpy()
        live.append(k)
        weights[k] = logits[index] if weighting != "probability" else np.exp(logits[index]) / np.exp(logits).sum()
    if weighting != "probability":
        weights[live] = np.exp(weights[live]) / np.exp(weights[live]).sum()
    return np.einsum("k,kij->ij", weights, activation)


@pytest.mark.parametrize("weighting", ["probability", "softmax over channels"])
@pytest.mark.parametrize("family", ["resnet", "resnet_bottleneck", "convnext", "vit", "swin"])
def test_the_formula_one_channel_at_a_time(family, weighting):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    expected = slow(model, sample, 1, weighting)
    found = score_cam(model, sample, target=1, weighting=weighting).values
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_a_constant_channel_adds_nothing_and_costs_no_forward():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    model.forget()
    whole = score_cam(model, sample, target=1)
    with ablate_channels(model, sample, channels=(0, 3, 5), by="mean"):
        fewer = score_cam(model, sample, target=1, weighting="softmax over channels")
        with model.record([model.last_spatial]) as recorded:
            model(sample)
    assert whole.forwards - fewer.forwards == 3
    activation = recorded[model.last_spatial][0]
    assert all(float(activation[k].max() - activation[k].min()) < 1e-15 for k in (0, 3, 5))
    assert float(activation[3].abs().max()) > 0, "it is constant, not zero, and still has weight 0"
    live = [k for k in range(16) if k not in (0, 3, 5)]
    logits = []
    for k in live:
        mask = resize(activation[k].numpy(), (32, 32))
        mask = torch.from_numpy((mask - mask.min()) / (mask.max() - mask.min()))
        with ablate_channels(model, sample, channels=(0, 3, 5), by="mean"):
            logits.append(float(model(model.inputs(sample) * mask)[0, 1]))
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(fewer.values, np.einsum("k,kij->ij", weights, activation[live].numpy()), atol=1e-10)


def test_batches_do_not_change_the_numbers(monkeypatch):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model, sample = tiny.vision("resnet", dtype), tiny.image()
        found = []
        for batch in (1, 7, 32):
            monkeypatch.setattr(MODULE, "BATCH", batch)
            model.forget()
            found.append(score_cam(model, sample, target=1).values)
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], atol=tolerance * np.abs(found[0]).max())


def test_the_masks_come_after_the_interventions_in_force():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    with hide_region(model, sample, box=(0, 0, 0.5, 1), by="noise"):
        hidden = score_cam(model, sample, target=1)
        with model.record([Site("input")]) as recorded:
            model(sample)
    with model.edit({Site("input"): lambda x: recorded[Site("input")]}):
        same = score_cam(model, sample, target=1)
    np.testing.assert_allclose(hidden.values, same.values, atol=1e-12)
    assert np.abs(hidden.values - score_cam(model, sample, target=1).values).max() > 1e-3


def test_another_class_or_weighting_costs_no_forward():
    model, sample = tiny.vision("regnet"), tiny.image()
    model.forget()
    first = score_cam(model, sample, target=0)
    assert first.forwards == score_cam.estimate(model, {})[0]
    assert score_cam(model, sample, target=1, weighting="softmax over channels").forwards == 0


def test_it_can_be_cancelled_and_reports_progress():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    cancel, seen = threading.Event(), []

    def report(step: progress.Progress) -> None:
        seen.append(step)
        if step.done == 1:
            cancel.set()

    with pytest.raises(progress.Cancelled), progress.watch(report, cancel):
        score_cam(model, sample, target=1)
    assert [step.done for step in seen] == [0, 1] and seen[0].total == 2
