import sys

import numpy as np
import pytest
import torch

from interp.methods.cam._channels import put
from interp.methods.cam.ablation_cam import ablation_cam
from interp.methods.change.ablate_channels import ablate_channels
from tests import tiny

MODULE = sys.modules[ablation_cam.__module__]
CASES = [("resnet", "stage.0"), ("resnet_bottleneck", "stage.1"), ("convnext", "stage.0"), ("efficientnet", "stage.1"),
         ("vit", "resid_pre.1"), ("dinov2", "resid_pre.2"), ("beit", "resid_pre.1"), ("swin", "stage.0"),
         ("vit", "z.1"), ("resnet", "module:resnet.encoder.stages.1.layers.0.layer"),
    ("vit", "module:vit.layers.1.layernorm_before"), ("swin", "module:swin.layernorm"),
    ("efficientnet", "module:efficientnet.encoder.blocks.1.projection")]  # fmt: skip


@pytest.mark.parametrize(("family", "site"), CASES)
def test_the_formula_one_channel_at_a_time(family, site):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    maps = model.grid(site)
    with model.record([site]) as recorded:
        score = float(model(sample)[0, 1])
    activation = maps(recorded[site])
    weights = []
    for k in range(activation.shape[1]):
        without = activation.clone()
        without[:, k] = 0
        with model.edit({site: lambda x, without=without: put(x, without)}):
            weights.append((score - float(model(sample)[0, 1])) / abs(score))
    expected = np.einsum("k,kij->ij", weights, activation[0].numpy())
    found = ablation_cam(model, sample, target=1, site=site)
    np.testing.assert_allclose(found.values, expected, atol=1e-9 * np.abs(expected).max())


def test_batches_do_not_change_the_numbers(monkeypatch):
    model, sample = tiny.vision("convnext", torch.float64), tiny.image()
    found = []
    for limit in (1, 7 * 8 * 16 * 64, 2**30):
        monkeypatch.setattr(MODULE, "BYTES", limit)
        model.forget()
        found.append(ablation_cam(model, sample, target=1, site="stage.0").values)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-10)


def test_a_negative_logit_does_not_turn_the_map_inside_out():
    """Where the logit is negative, a channel whose removal lowers it further still speaks for the class."""
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    name = "classifier.1.bias"
    plain = ablation_cam(model, sample, target=1)
    with model.swap({name: model.weight(name) - 100}):
        negative = ablation_cam(model, sample, target=1)
    assert negative.score < 0
    np.testing.assert_allclose(negative.values * abs(negative.score), plain.values * abs(plain.score), atol=1e-9)


@pytest.mark.parametrize("family", ["resnet", "vit", "swin"])
def test_put_is_the_inverse_of_grid(family):
    model, sample = tiny.vision(family), tiny.image()
    for site in model.spatial_sites():
        with model.record([site]) as recorded:
            model(sample)
        assert torch.equal(put(recorded[site], model.grid(site)(recorded[site])), recorded[site])


def test_only_the_layers_behind_the_site_count_for_each_channel():
    model, sample = tiny.vision("vit"), tiny.image()
    for site, share in (("resid_pre.2", 1 / 3), ("resid_post.0", 2 / 3), ("z.1", 2 / 3), ("embed", 1)):
        model.forget()
        found = ablation_cam(model, sample, target=1, site=site)
        assert found.forwards == pytest.approx(2 + 16 * share), site
        assert ablation_cam.estimate(model, {"site": site})[0] == pytest.approx(found.forwards)


def test_dead_channels_and_other_classes_cost_nothing():
    model, sample = tiny.vision("vit"), tiny.image()
    model.forget()
    with ablate_channels(model, sample, site="resid_pre.1", channels=tuple(range(10))):
        found = ablation_cam(model, sample, target=1, site="resid_pre.1")
        again = ablation_cam(model, sample, target=2, site="resid_pre.1")
    assert found.forwards == pytest.approx(2 + 6 * 2 / 3) and again.forwards == 0
