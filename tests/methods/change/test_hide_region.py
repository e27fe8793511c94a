import numpy as np
import pytest
import torch
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from interp.methods.change.hide_region import hide_region
from interp.model import VisionModel
from interp.sites import Site
from kernels.blur import blur_reference
from tests import tiny

INPUT = Site("input")


def seen(model, sample, *blocks) -> torch.Tensor:
    """The pixels that reach the network under these interventions."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block)
        with model.record([INPUT]) as recorded:
            model(sample)
    return recorded[INPUT]


@pytest.mark.parametrize("by", ["blur", "mean", "noise"])
def test_only_the_box_changes_and_the_fill_is_made_of_the_whole_image(by):
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    pixels = model.inputs(sample)
    found = seen(model, sample, hide_region(model, sample, box=(0.25, 0.5, 0.75, 1), by=by, width=0.05))
    box = (slice(None), slice(None), slice(16, 32), slice(8, 24))
    outside = torch.ones_like(pixels, dtype=torch.bool)
    outside[box] = False
    assert torch.equal(found[outside], pixels[outside])
    if by == "mean":
        expected = pixels.mean((2, 3), keepdim=True).expand_as(pixels)[box]
        torch.testing.assert_close(found[box], expected)
    if by == "blur":
        expected = torch.stack([blur_reference(channel, 0.05 * 32) for channel in pixels[0]])[None][box]
        torch.testing.assert_close(found[box], expected)
    if by == "noise":
        assert abs(float(found[box].std() / pixels.std()) - 1) < 0.3
        assert float((found[box] - pixels[box]).abs().min()) > 0


@pytest.mark.parametrize("by", ["blur", "mean", "noise"])
def test_twice_is_once_and_inverted_is_the_rest(by):
    model, sample = tiny.vision("vit"), tiny.image()
    box = (0.1, 0.2, 0.6, 0.7)
    once = seen(model, sample, hide_region(model, sample, box=box, by=by))
    twice = seen(model, sample, *(hide_region(model, sample, box=box, by=by) for _ in range(2)))
    assert torch.equal(once, twice)
    rest = seen(model, sample, hide_region(model, sample, box=box, by=by, invert=True))
    pixels = model.inputs(sample)
    assert ((once == pixels) | (rest == pixels)).all()
    both = seen(
        model,
        sample,
        hide_region(model, sample, box=box, by=by),
        hide_region(model, sample, box=box, by=by, invert=True),
    )
    assert torch.equal(both, torch.where(once == pixels, rest, once))


def test_the_box_lies_on_the_upright_original_whatever_the_processor_crops():
    network = tiny.vision("resnet")._network
    processor = ViTImageProcessorPil(
        size={"shortest_edge": 32}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
    model, sample = VisionModel(network, processor, "cropping"), tiny.image(0, 128, 64)
    # the input is the middle half of a picture twice as wide as high: its right half is there from 0.5 to 0.75
    assert model.box(sample) == pytest.approx((0.25, 0, 0.75, 1))
    found = seen(model, sample, hide_region(model, sample, box=(0.5, 0, 1, 1), by="mean"))
    changed = (found != model.inputs(sample)).any(1)[0]
    assert changed[:, 16:].all() and not changed[:, :16].any()


def test_nothing_to_hide_enters_nothing():
    model, sample = tiny.vision("resnet"), tiny.image()
    for settings in ({}, {"box": (0.5, 0.5, 0.5, 0.9)}, {"box": (0, 0, 1, 1), "invert": True}):
        assert hide_region.function(model, sample, **hide_region.canonical(settings)) is None
    whole = seen(model, sample, hide_region(model, sample, invert=True, by="mean"))
    assert torch.equal(whole, whole[:, :, :1, :1].expand_as(whole))


def test_the_noise_is_fixed_by_its_seed():
    model, sample = tiny.vision("resnet"), tiny.image()
    box = (0.0, 0.0, 1.0, 1.0)
    found = [seen(model, sample, hide_region(model, sample, box=box, by="noise", seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert np.corrcoef(found[0].flatten(), found[2].flatten())[0, 1] < 0.5
