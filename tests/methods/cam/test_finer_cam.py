import numpy as np
import pytest
import torch

from interp.methods.cam.finer_cam import finer_cam
from interp.methods.cam.grad_cam import grad_cam
from tests import tiny


@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "swin"])
def test_it_is_grad_cam_of_the_class_less_that_of_the_similar_ones(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    logits = model(sample)[0]
    nearest = min((1, 2), key=lambda other: abs(float(logits[other] - logits[0])))
    maps = [grad_cam(model, sample, target=index).values for index in range(3)]
    one = finer_cam(model, sample, target=0, similar=1, alpha=0.6)
    np.testing.assert_allclose(one.values, maps[0] - 0.6 * maps[nearest], atol=1e-12)
    assert one.note.startswith(f"Compared with {tiny.CLASSES[nearest]}.")
    both = finer_cam(model, sample, target=0)
    np.testing.assert_allclose(both.values, maps[0] - (maps[1] + maps[2]) / 2, atol=1e-12)
    np.testing.assert_allclose(finer_cam(model, sample, target=0, alpha=0).values, maps[0], atol=1e-12)


def test_it_costs_one_pass():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    found = finer_cam(model, sample)
    assert (found.forwards, found.backwards) == (1, 1)
