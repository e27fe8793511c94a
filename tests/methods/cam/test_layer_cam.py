import numpy as np
import torch

from interp.methods.cam.layer_cam import layer_cam
from tests import tiny


def test_tanh_is_that_of_twice_the_value_over_the_largest():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    for site in ("stage.0", "stage.1"):
        plain = layer_cam(model, sample, target=1, site=site).values
        lifted = layer_cam(model, sample, target=1, site=site, scaling="tanh").values
        np.testing.assert_allclose(lifted, np.tanh(2 * plain / plain.max()), atol=1e-12)
        assert lifted.max() == np.tanh(2)


def test_tanh_of_a_map_that_is_nowhere_positive_keeps_its_pattern():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    with model.edit({"stage.1": lambda x: -x.abs() - 1}):
        plain = layer_cam(model, sample, target=1).values
        lifted = layer_cam(model, sample, target=1, scaling="tanh").values
    assert plain.max() < 0
    np.testing.assert_allclose(lifted, np.tanh(2 * plain / np.abs(plain).max()), atol=1e-12)
