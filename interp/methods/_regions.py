"""Boxes on the upright original, as masks on the model's input or on a layer's grid."""

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.model import VisionModel
from interp.samples import Image

Box = tuple[float, float, float, float]


def mask(model: VisionModel, sample: Image, region: Box, height: int, width: int) -> Bool[Tensor, "height width"]:
    """Which of height x width cells, spread over the model's input, have their centre in `region` of the original."""
    left, top, right, bottom = model.box(sample)
    x = left + (torch.arange(width, dtype=torch.float64) + 0.5) / width * (right - left)
    y = top + (torch.arange(height, dtype=torch.float64) + 0.5) / height * (bottom - top)
    inside_x = (region[0] <= x) & (x < region[2])
    inside_y = (region[1] <= y) & (y < region[3])
    return (inside_y[:, None] & inside_x).to(model.device)
