"""Scores and slopes of a network without anything of interp between, and a network that is linear in its pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import transformers as T
from torch import Tensor

from interp.model import VisionModel
from interp.samples import Image
from tests import tiny

FAMILIES = ["resnet", "convnext", "vit", "efficientnet"]
SMOOTH = ["convnext", "vit"]
"""GELU and LayerNorm: quadrature and differences converge at their full rate."""
H = 1e-5
SOME = slice(3, None, 7)
"""The places, counted along the rows, at which differences are taken: each costs two forwards in every channel."""


def score(model: VisionModel, pixels: Tensor, index: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([model._network(pixel_values=each).logits[:, index] for each in pixels.split(512)])


def differences(model: VisionModel, pixels: Tensor, index: int) -> np.ndarray:
    """The gradient [3, place] at pixels [1, 3, height, width] by central differences, at the places of SOME."""
    size = pixels[0, 0].numel()
    chosen = torch.arange(3 * size).view(3, size)[:, SOME]
    steps = H * torch.eye(3 * size, dtype=pixels.dtype)[chosen.flatten()].view(-1, *pixels.shape[1:])
    up, down = (score(model, pixels + sign * steps, index) for sign in (1, -1))
    return ((up - down) / (2 * H)).view(chosen.shape).numpy()


def along(model: VisionModel, pixels: Tensor, direction: Tensor, index: int) -> float:
    """The slope of the score along a direction, by central differences."""
    size = 1e-4 / float(direction.abs().max())
    up, down = (score(model, pixels + sign * size * direction, index) for sign in (1, -1))
    return float(up - down) / (2 * size)


@cache
def differences_of(family: str, seed: int) -> np.ndarray:
    """Those of the class `seed` + 1 at the image of that seed."""
    model = tiny.vision(family, torch.float64, seed)
    return differences(model, model.inputs(tiny.image(seed)), seed + 1)


def slope(model: VisionModel, pixels: Tensor, index: int) -> Tensor:
    """The gradient at each of the pictures, by autograd."""
    leaf = pixels.clone().requires_grad_()
    return torch.autograd.grad(model._network(pixel_values=leaf).logits[:, index].sum(), leaf)[0]


@cache
def linear(seed: int = 0) -> VisionModel:
    """A RegNet without activations: convolutions, frozen norms, mean and a linear layer."""
    config = T.RegNetConfig(embedding_size=8, groups_width=8, layer_type="x", hidden_act="linear", **tiny.STAGES)
    config.id2label = dict(enumerate(tiny.CLASSES))
    config.label2id = {label: index for index, label in enumerate(tiny.CLASSES)}
    network = tiny._make(T.AutoModelForImageClassification, config, seed)
    processor = tiny.ViTImageProcessorPil(size={"height": 32, "width": 32})
    return VisionModel(network.to(torch.float64), processor, "linear")


def normalised(model: VisionModel, colour: float) -> Tensor:
    """A picture of one gray level from 0 to 1, as the network gets it."""
    gray = torch.full((1, 3, *model.input_size), colour, dtype=torch.float64)
    return (gray - model.mean.double()) / model.std.double()


def flat(colour: tuple[int, int, int] = (200, 90, 30)) -> Image:
    return Image.of(np.broadcast_to(np.array(colour, dtype=np.uint8), (32, 32, 3)))
