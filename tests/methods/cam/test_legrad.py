import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods.cam.legrad import legrad
from interp.sites import Site
from tests import tiny

TRANSFORMERS = ("vit", "deit", "dinov2", "dinov2_with_registers", "beit")


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_the_formula_by_finite_differences_layer_by_layer(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    step, index = 1e-6, 1
    with model.record([Site("pattern", 0)]) as recorded:
        model(sample)
    shape = recorded[Site("pattern", 0)].shape[1:]
    directions = step * torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    pixels = model.inputs(sample).expand(len(directions), -1, -1, -1)
    expected = []
    for layer in range(model.layers):
        above = {each: lambda run, x: x for each in range(layer + 1, model.layers)}
        logits = []
        for sign in (1, -1):
            with model.around(above), model.edit({Site("pattern", layer): lambda p, sign=sign: p + sign * directions}):
                logits.append(model(pixels)[:, index])
        slope = ((logits[0] - logits[1]) / (2 * step)).view(shape)
        expected.append(slope.relu().mean((0, 1)))
    patches = model.parts.patches
    for layers in (1, 2, 48):
        values = torch.stack(expected[-layers:]).mean(0)[-patches[0] * patches[1] :].view(patches)
        found = legrad(model, sample, target=index, layers=layers)
        np.testing.assert_allclose(found.values, values.numpy(), atol=1e-7 * float(values.max()))
        # not closer: with its pattern in the plan, attention is eager, whose softmax runs in float32
        assert found.score == pytest.approx(float(model(sample)[0, index]), abs=1e-6)
        assert not found.signed


def test_networks_without_attention_over_all_patches_are_refused():
    for family, reason in (("resnet", "no attention"), ("swin", "windows"), ("swinv2", "windows")):
        with pytest.raises(Unsuitable, match=reason):
            legrad(tiny.vision(family), tiny.image())
