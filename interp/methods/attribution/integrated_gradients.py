import math
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, Range, Unset, lens
from interp.methods.attribution._pixels import Reference, completeness, logits_at, pixel_map, references, seen
from interp.model import VisionModel
from interp.progress import spent, track
from interp.results import Heatmap
from interp.samples import Image, ImageSet, Target

PAPER = Paper(
    "Sundararajan, Mukund and Taly, Ankur and Yan, Qiqi",
    "Axiomatic Attribution for Deep Networks",
    2017,
    "ICML",
    "https://arxiv.org/abs/1703.01365",
)
BATCH = 4
"""Points of the path per forward and backward."""


def _cost(
    model: VisionModel, steps: int, reference: Reference, images: ImageSet | None, draws: int, **_: Any
) -> tuple[float, float]:
    starts = len(images.images) if images is not None else draws if reference == "uniform" else 1
    return starts * (steps + 1) + 1, starts * steps


@lens("Integrated Gradients", PAPER, cost=_cost)
def integrated_gradients(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    reference: Reference = "zeros",
    images: Annotated[ImageSet | None, Unset("the reference above")] = None,
    steps: Annotated[int, Range(1, 300)] = 32,
    draws: Annotated[int, Range(1, 20)] = 1,
    seed: int = 0,
) -> Heatmap:
    """Add up the gradient along the straight path from a reference to the image.

        L_ij = sum_k  (x_kij - x0_kij)  integral_0^1  dS_c(x0 + alpha (x - x0)) / dx_kij  d alpha
        sum_ij L_ij = S_c(x) - S_c(x0)                                            (completeness)

    Captum's Gauss-Legendre rule stands for the integral; its error is the residual. Over several references the map,
    and S_c(x0), is the mean. With the reference "zeros" x0 = 0; the paper takes a black image.

    Args:
        target: The class to explain.
        reference: The picture x0 where the path starts; zeros is the colour that normalises to zero.
        images: Pictures to start from instead of the reference, one path each.
        steps: Points on each path.
        draws: How many pictures to draw for the reference "uniform"; the others are one picture.
        seed: Number that fixes the colours of the reference "uniform".

    Returns:
        Heatmap [height, width], one value per pixel of the input, in logits.

    Raises:
        Unsuitable: no such class, or reference images that the model sees at another size.

    Assumes:
        That the reference means "nothing there" to the network, and that the blends on the path are images to it.

    Misleads:
        The map explains the difference to the reference: what has the reference's colour gets 0, whatever it shows. Try
        another reference before believing an empty place. A large residual means too few steps, not a wrong network.
    """
    from captum.attr import IntegratedGradients  # a second of loading that only this method needs

    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    score = float(logits[0, index])
    starts = references(model, pixels, reference, images, draws, seed)
    ticks = track(range(len(starts) * math.ceil(steps / BATCH)), "Points on the path")

    def scores(points: Tensor) -> Tensor:
        next(ticks)
        found = logits_at(model, points)[:, index]
        spent(backwards=len(points))  # captum calls torch.autograd.grad itself
        return found

    explain = IntegratedGradients(scores)
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    for start in starts.split(1):
        total += explain.attribute(pixels, start, n_steps=steps, internal_batch_size=BATCH)[0].double()
    next(ticks, None)
    values = total / len(starts)
    difference = score - float(scores_at(model, starts, index).mean())
    residual = completeness(float(values.sum()), difference)
    return pixel_map(model, sample, values, index, score, "logit per pixel", residual=residual)


def scores_at(
    model: VisionModel, pictures: Float[Tensor, "picture 3 height width"], index: int
) -> Float[Tensor, "picture"]:
    """S_c of each picture, in double precision."""
    return torch.cat([logits_at(model, batch)[:, index].double() for batch in pictures.split(BATCH)])
