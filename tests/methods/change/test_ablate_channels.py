import pytest
import torch

from interp import Unsuitable
from interp.methods.change.ablate_channels import ablate_channels
from tests import tiny


@pytest.mark.parametrize("by", ["zero", "mean"])
@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "swin"])
def test_the_channels_and_only_they_are_replaced(family, by):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    site, maps = model.last_spatial, model.grid(model.last_spatial)
    with model.record([site]) as recorded:
        model(sample)
    plain = recorded[site]
    with ablate_channels(model, sample, channels=(5, 1), by=by), model.record([site]) as recorded:
        model(sample)
    found = recorded[site]
    others = [k for k in range(16) if k not in (1, 5)]
    assert torch.equal(maps(found)[:, others], maps(plain)[:, others])
    for k in (1, 5):
        # over all tokens of a transformer, its prefix too: the mean is over the layer, not the picture
        whole = plain[:, k] if plain.dim() == 4 else plain[:, :, k]
        value = whole.mean() if by == "mean" else torch.zeros(())
        torch.testing.assert_close(maps(found)[0, k], value.double().expand(maps(found).shape[2:]))


def test_ablating_all_channels_of_the_last_stage_leaves_the_bias():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    with ablate_channels(model, sample, channels=tuple(range(16))):
        torch.testing.assert_close(model(sample)[0], model.weight("classifier.1.bias"))


def test_no_channels_enter_nothing_and_too_large_numbers_are_refused():
    model, sample = tiny.vision("resnet"), tiny.image()
    assert ablate_channels.function(model, sample, **ablate_channels.canonical({})) is None
    with pytest.raises(Unsuitable, match="channels 0 to 15, not 99"), ablate_channels(model, sample, channels=(99,)):
        model(sample)
