from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks import Block
from interp.method import Paper, Range, Region, intervention
from interp.methods._regions import Box, mask
from interp.model import VisionModel
from interp.samples import Image
from interp.sites import Site
from kernels.blur import blur

PAPER = Paper(
    "Fong, Ruth C. and Vedaldi, Andrea",
    "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
    2017,
    "ICCV",
    "https://arxiv.org/abs/1704.03296",
)


@intervention("Hide region", PAPER)
def hide_region(
    model: VisionModel,
    sample: Image,
    *,
    box: Annotated[Box, Region()] = (0.0, 0.0, 0.0, 0.0),
    by: Literal["blur", "mean", "noise"] = "blur",
    width: Annotated[float, Range(0.01, 0.5)] = 0.1,
    invert: bool = False,
    seed: int = 0,
) -> Block | None:
    """Replace a box of the image by a blur of it, by its mean colour or by noise.

        x_p = fill_p        for pixels p whose centre lies in the box (outside it, if inverted)
        fill:  blur: x * Gaussian     mean: mean_p x_p     noise: mean_p x_p + std_p x_p eps,  eps ~ N(0, 1)

    The fill is made of the image as it was given, so hiding the same box twice is hiding it once.

    Args:
        box: Left, top, right, bottom as fractions of the upright image. An empty box leaves the image as it is.
        by: What to put there. Blur keeps the colours and hides the shape; noise brings edges of its own.
        width: Width of the blur, as a fraction of the shorter side of the model's input.
        invert: Hide everything but the box.
        seed: Number that fixes the noise.

    Assumes:
        That the fill carries no evidence of its own.

    Misleads:
        No fill is neutral: the edge of a flat box, or blurred colours, are things the network can react to too. Compare
        two fills before believing one.
    """
    pixels = model.inputs(sample)
    hidden = mask(model, sample, box, *pixels.shape[-2:]) ^ invert
    if not hidden.any():
        return None
    filled = fill(pixels, by, width, seed)
    return model.edit({Site("input"): lambda x: torch.where(hidden, filled, x)})


def fill(
    pixels: Float[Tensor, "1 3 height width"], by: str, width: float, seed: int
) -> Float[Tensor, "1 3 height width"]:
    """What stands where something is hidden, for every pixel."""
    if by == "blur":
        return blur(pixels, width * min(pixels.shape[-2:]))
    mean = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    if by == "mean":
        return mean
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + pixels.std((2, 3), keepdim=True) * noise.to(pixels)
