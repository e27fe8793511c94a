import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods.cam.ablation_cam import ablation_cam
from interp.methods.cam.cam import cam
from interp.methods.cam.grad_cam import grad_cam
from interp.methods.cam.hires_cam import hires_cam
from interp.methods.cam.xgrad_cam import xgrad_cam
from tests import tiny
from tests.methods.cam.pooled import POOLED, classifier


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", POOLED)
def test_on_pooled_networks_the_whole_family_is_one_map(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    map_ = cam(model, sample, target="dog")
    cells = map_.values.size
    for method in (grad_cam, hires_cam, xgrad_cam):
        np.testing.assert_allclose(method(model, sample, target="dog").values * cells, map_.values, atol=1e-9)
    # every channel's relative drop is its part of the sum over the map
    drops = ablation_cam(model, sample, target="dog")
    with model.record([model.last_spatial]) as recorded:
        model(sample)
    activation = recorded[model.last_spatial][0]
    weights = model.weight(f"{classifier(model)}.weight")[1]
    expected = ((weights * activation.mean((1, 2)))[:, None, None] * activation).sum(0) / abs(map_.score)
    np.testing.assert_allclose(drops.values, expected.numpy(), atol=1e-9)


@pytest.mark.parametrize("family", POOLED)
def test_the_mean_of_the_map_is_the_logit_without_the_bias(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    found = cam(model, sample, target="teapot")
    bias = float(model.weight(f"{classifier(model)}.bias")[2])
    assert found.values.mean() == pytest.approx(found.score - bias, abs=1e-10)
    assert abs(found.residual.value) < 1e-10
    assert (found.forwards, found.backwards) in ((1, 0), (0, 0))


def test_other_heads_are_refused_with_the_reason():
    for family in ("convnext", "convnextv2", "vit", "deit", "dinov2", "beit", "swin", "swinv2"):
        with pytest.raises(Unsuitable, match="average pooling and one linear layer"):
            cam(tiny.vision(family), tiny.image())


def test_the_classifier_of_the_swap_in_force_is_read():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    plain = cam(model, sample, target=0).values
    with model.swap({"classifier.1.weight": -model.weight("classifier.1.weight")}):
        np.testing.assert_allclose(cam(model, sample, target=0).values, -plain, atol=1e-12)
