import numpy as np
import pytest
import torch

from interp.methods.cam.grad_cam import grad_cam
from interp.methods.cam.hires_cam import BLIND, hires_cam
from interp.methods.cam.layer_cam import layer_cam
from interp.methods.cam.xgrad_cam import xgrad_cam
from tests import tiny
from tests.methods.cam.pooled import POOLED


def without_biases(model, from_stage):
    """The swap that takes every bias, and every mean of BatchNorm, out of the layers from a stage on."""
    zeros = {}
    for name, tensor in [*model.network.named_parameters(), *model.network.named_buffers()]:
        behind = name.startswith("classifier") or f"stages.{from_stage}." in name
        if behind and name.endswith(("bias", "running_mean")):
            zeros[name] = torch.zeros_like(tensor)
    return model.swap(zeros)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["resnet", "resnet_bottleneck"])
def test_without_biases_xgrad_and_hires_conserve_the_logit_and_the_others_do_not(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    with without_biases(model, 1):
        found = {each.key: each(model, sample, target=1, site="stage.0") for each in (
            xgrad_cam, hires_cam, grad_cam, layer_cam
        )}  # fmt: skip
    score = found["hires_cam"].score
    for key in ("xgrad_cam", "hires_cam"):
        assert found[key].values.sum() == pytest.approx(score, abs=1e-10)
        assert abs(found[key].residual.value) < 1e-10
    for key in ("grad_cam", "layer_cam"):
        assert abs(found[key].values.sum() - score) > 1e-4 * abs(score)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["resnet", "convnext", "efficientnet", "vit", "beit", "swin"])
def test_xgrad_and_hires_have_one_sum_and_the_residual_states_it(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    site = model.spatial_sites()[0]
    with model.record([site], grad=True) as recorded:
        logits = model(sample)
    slope = torch.autograd.grad(logits[0, 1], recorded[site])[0]
    maps = model.grid(site)
    expected = float((maps(slope) * maps(recorded[site].detach())).sum())
    for method in (xgrad_cam, hires_cam):
        found = method(model, sample, target=1, site=site)
        assert found.values.sum() == pytest.approx(expected, abs=1e-9)
        assert found.residual.value == pytest.approx(expected - float(logits[0, 1].detach()), abs=1e-9)


@pytest.mark.parametrize("family", POOLED)
def test_on_a_linear_tail_a_cell_is_what_the_logit_loses_without_it(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    found = hires_cam(model, sample, target=1)
    height, width = found.values.shape
    for i in range(height):
        for j in range(width):
            cell = torch.zeros(height, width, dtype=torch.bool)
            cell[i, j] = True
            with model.edit({model.last_spatial: lambda x, cell=cell: x.masked_fill(cell, 0)}):
                drop = found.score - float(model(sample)[0, 1])
            assert drop == pytest.approx(found.values[i, j], abs=1e-10)


def test_at_a_shallow_layer_grad_cam_is_another_map():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    maps = [each(model, sample, target=1, site="stage.0").values.ravel() for each in (grad_cam, hires_cam)]
    assert abs(np.corrcoef(*maps)[0, 1]) < 0.9


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_before_a_layer_norm_the_channels_cancel_and_the_note_says_so(family):
    for dtype in (torch.float32, torch.float64):
        assert BLIND in hires_cam(tiny.vision(family, dtype), tiny.image(), target=1).note
    assert BLIND not in hires_cam(tiny.vision("resnet"), tiny.image(), target=1).note
