"""What pixel attributions share: the pixels the model sees, references, forwards at other pixels, the map they make."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, progress
from interp.model import VisionModel, gradient
from interp.results import Heatmap, Residual
from interp.samples import Image, ImageSet
from interp.sites import Site
from kernels.blur import blur

INPUT = Site("input")
Reference = Literal["blur", "zeros", "black", "white", "image mean", "uniform"]
"""blur: the picture without its details; zeros: the colour that normalises to zero, the mean of the training data where
the model was trained with that mean; image mean: its own mean colour; uniform: independent random colours."""
BLUR = 0.1
"""Width of the blurred reference, as a fraction of the shorter side."""


def seen(model: VisionModel, sample: Image) -> tuple[Float[Tensor, "1 3 height width"], Float[Tensor, "1 class"]]:
    """The pixels that reach the network, normalised and as the interventions in force leave them, and its logits."""

    def look() -> tuple[Tensor, Tensor]:
        with model.record([INPUT]) as recorded:
            logits = model(sample)
        return recorded[INPUT].clone(), logits.detach()

    return model.cached(("seen", sample.sha256), look)


def logits_at(model: VisionModel, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch class"]:
    """The logits of other pixels, put in place of what the interventions at the input made."""
    with model.edit({INPUT: lambda _: pixels}):
        return model(pixels.detach())


def gradient_at(
    model: VisionModel, pixels: Float[Tensor, "batch 3 height width"], index: int
) -> tuple[Float[Tensor, "batch 3 height width"], Float[Tensor, batch]]:
    """d S_c / d x at each of the pictures, and S_c."""
    leaf = pixels.detach().requires_grad_()
    scores = logits_at(model, leaf)[:, index]
    progress.spent(backwards=len(pixels) - 1)  # one is counted by `gradient`
    return gradient(scores.sum(), [leaf])[0], scores.detach()


def references(
    model: VisionModel,
    pixels: Float[Tensor, "1 3 height width"],
    reference: Reference,
    images: ImageSet | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Float[Tensor, "reference 3 height width"]:
    """The pictures to compare with, normalised: `images` where there are some, else what `reference` names.

    Raises:
        Unsuitable: no images in the set, or the model makes inputs of another size of them.
    """
    if images is not None:
        if not images.images:
            raise Unsuitable("The set of reference images is empty; choose at least one.")
        found = [model.inputs(each) for each in images.images]
        for each, image in zip(found, images.images, strict=True):
            if each.shape != pixels.shape:
                raise Unsuitable(
                    f"The reference {image} becomes {each.shape[-1]} x {each.shape[-2]} px for {model.name}, the image "
                    f"{pixels.shape[-1]} x {pixels.shape[-2]}; take a reference of the same shape."
                )
        return torch.cat(found)
    if reference == "blur":
        return blur(pixels, BLUR * min(pixels.shape[-2:]))
    if reference == "zeros":
        return torch.zeros_like(pixels)
    if reference == "image mean":
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels).clone()
    mean, std = (each.to(pixels) for each in (model.mean, model.std))
    if reference == "uniform":
        shape = (draws, *pixels.shape[1:])
        colours = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(pixels)
    else:
        colours = torch.full_like(pixels, float(reference == "white"))
    return (colours - mean) / std


def completeness(total: float, difference: float, parts: str = "pixels", whole: str = "image") -> Residual:
    """How far the sum of all parts is from the difference it has to explain, relative to that difference."""
    gap = abs(total - difference)
    relative = gap / abs(difference) if difference else float(gap > 0)
    return Residual(
        relative,
        f"|sum of the {parts} - difference| / |difference|: they add up to {total:.4g} of {difference:.4g} logits "
        f"between {whole} and reference",
    )


def pixel_map(
    model: VisionModel,
    sample: Image,
    values: Float[Tensor, "3 height width"] | Float[Tensor, "height width"],
    index: int,
    score: float,
    units: str,
    **facts: Any,
) -> Heatmap:
    """The result of a pixel attribution: signed, unscaled, one value for each pixel of the model's input."""
    numbers = values.detach().double().cpu()
    if numbers.dim() == 3:
        numbers = numbers.sum(0)
    height, width = model.inputs(sample).shape[-2:]
    if not bool(torch.isfinite(numbers).all()):
        note = "This map is not finite."
    elif not bool(numbers.any()):
        note = "This map is zero everywhere: the score does not depend on the pixels here."
    else:
        note = ""
    facts["note"] = " ".join(filter(None, (facts.get("note"), note)))
    return Heatmap(
        numbers.numpy(), (height, width), model.box(sample), model.labels[index], score, str(INPUT), units, **facts
    )
