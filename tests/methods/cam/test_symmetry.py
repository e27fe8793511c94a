"""What must not change a map: the numbering of channels, and, mirrored, the side from which one looks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from interp.methods import METHODS
from interp.model import VisionModel
from interp.samples import Image
from tests import tiny

METHODS_HERE = [method for method in METHODS.values() if method.family == "cam" and method.key != "legrad"]


@pytest.mark.parametrize("family", ["resnet", "efficientnet", "convnext"])
@pytest.mark.parametrize("method", METHODS_HERE, ids=lambda method: method.key)
def test_the_numbering_of_channels_does_not_matter(method, family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    if method.refuses(model):
        pytest.skip("refused")
    plain = method(model, sample, **({"target": 1})).values
    site = model.last_spatial
    with model.record([site]) as recorded:
        model(sample)
    order = torch.randperm(recorded[site].shape[1], generator=torch.Generator().manual_seed(0))
    classifier = "classifier.1.weight" if family == "resnet" else "classifier.weight"
    moved = {classifier: model.weight(classifier)[:, order]}
    if family == "convnext":
        moved |= {f"convnext.layernorm.{each}": model.weight(f"convnext.layernorm.{each}")[order] for each in ("weight", "bias")}  # fmt: skip  # noqa: E501
    with model.swap(moved), model.edit({site: lambda x: x[:, order]}):
        mixed = method(model, sample, **({"target": 1})).values
    np.testing.assert_allclose(mixed, plain, atol=1e-9 * np.abs(plain).max())


@pytest.fixture(scope="module")
def mirrored() -> VisionModel:
    """A ResNet with mirrored kernels, at a size whose halvings have a middle."""
    network = copy.deepcopy(tiny.vision("resnet", torch.float64)._network)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    return VisionModel(network, ViTImageProcessorPil(size={"height": 65, "width": 65}), "mirrored")


@pytest.mark.parametrize("method", METHODS_HERE, ids=lambda method: method.key)
def test_a_mirrored_photo_gives_the_mirrored_map(method, mirrored):
    picture = np.asarray(tiny.image(0, 65, 65).picture)
    settings = {"target": 1} | ({"sigma": 0.0, "n": 1} if method.key.startswith("smooth") else {})
    plain = method(mirrored, Image.of(picture), **settings).values
    other = method(mirrored, Image.of(picture[:, ::-1].copy()), **settings).values
    assert plain.shape == (9, 9)
    np.testing.assert_allclose(other, plain[:, ::-1], atol=1e-9 * np.abs(plain).max())
