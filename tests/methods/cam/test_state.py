"""Every CAM leaves the model as it was, also when it is stopped in the middle."""

import random

import numpy as np
import pytest
import torch

from interp import progress
from interp.methods import METHODS
from tests import tiny

CAMS = [method for method in METHODS.values() if method.family == "cam"]


def state(model) -> list[object]:
    network = model._network
    found: list[object] = [torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    found += [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training, type(m)) for m in network.modules()]  # fmt: skip  # noqa: E501
    found += [(p.requires_grad, p.grad, p._version, float(p.double().sum())) for p in network.parameters()]
    found += [(b._version, float(b.double().sum())) for b in network.buffers()]
    return found


@pytest.mark.parametrize("family", ["resnet", "convnext", "vit"])
@pytest.mark.parametrize("method", CAMS, ids=lambda method: method.key)
def test_the_model_is_left_as_it_was(method, family):
    model, sample = tiny.vision(family), tiny.image()
    if method.refuses(model):
        pytest.skip("refused")
    model.forget()
    before = state(model)
    first = method(model, sample, target=1)
    assert state(model) == before
    model.forget()

    def stop(step: object) -> None:
        raise progress.Cancelled("here")

    with pytest.raises(progress.Cancelled), progress.watch(stop, seconds=0):
        method(model, sample, target=1)
    assert state(model) == before
    assert method(model, sample, target=1) == first


def test_switching_the_gradient_method_costs_nothing():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    keys = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam", "eigen_cam", "cf_cam", "cam")
    costs = [(found.forwards, found.backwards) for found in (METHODS[key](model, sample) for key in keys)]
    assert costs == [(1, 1)] + [(0, 0)] * (len(keys) - 1)
