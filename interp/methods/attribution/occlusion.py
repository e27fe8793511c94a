from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.attribution._pixels import Reference, logits_at, pixel_map, references, seen
from interp.model import VisionModel
from interp.progress import track
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Zeiler, Matthew D. and Fergus, Rob",
    "Visualizing and Understanding Convolutional Networks",
    2014,
    "ECCV",
    "https://arxiv.org/abs/1311.2901",
)
BATCH = 8
"""Pictures with a hidden window per forward."""


def edges(length: int, window: int, stride: int) -> list[int]:
    """Where the windows along a side start: every `stride`, and one that ends at the border."""
    last = length - min(window, length)
    return [*range(0, last, stride), last]


def _cost(model: VisionModel, window: int, stride: int, **_: Any) -> tuple[float, float]:
    height, width = model.input_size
    return len(edges(height, window, stride)) * len(edges(width, window, stride)) + 1, 0


@lens("Occlusion", PAPER, cost=_cost)
def occlusion(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    window: Annotated[int, Range(4, 128)] = 32,
    stride: Annotated[int, Range(1, 64)] = 16,
    by: Reference = "zeros",
    seed: int = 0,
) -> Heatmap:
    """Hide a window of the image, look how far the class score falls, and slide the window on.

        d_w  = S_c(x) - S_c(x with x_p = r_p for p in w)
        L_p  = mean of d_w over the windows w that contain p

    The windows lie on a grid, its last ones moved inwards to end at the border. The paper maps the probability and a
    gray square; here it is the logit and the reference r.

    Args:
        target: The class to explain.
        window: Height and width of the window in pixels of the model's input; at most those of the input.
        stride: How far the window moves, in pixels. Halving it makes four times the work.
        by: What a hidden window shows; zeros is the colour that normalises to zero.
        seed: Number that fixes the colours of "uniform".

    Returns:
        Heatmap [height, width], one value per pixel of the input: the logit drop when the pixel's surroundings are
        hidden. Negative where hiding helps the class.

    Raises:
        Unsuitable: no such class, or a stride wider than the window.

    Assumes:
        That what is put there carries no evidence of its own, and that the evidence is as small as the window.

    Misleads:
        What is shown twice in a photo matters at neither place, since the other remains. The edges of the window are
        something new to react to. The map is as coarse as the window, however smooth it looks.
    """
    if stride > window:
        raise Unsuitable(
            f"A stride of {stride} px leaves pixels between windows of {window} px that are never hidden; "
            f"take a stride of at most {window}."
        )
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    height, width = pixels.shape[-2:]
    tall, wide = min(window, height), min(window, width)
    corners = [(top, left) for top in edges(height, window, stride) for left in edges(width, window, stride)]

    def look() -> Float[Tensor, "window class"]:
        fill, found = references(model, pixels, by, seed=seed)[0], []
        for start in track(range(0, len(corners), BATCH), "Hidden windows"):
            batch = corners[start : start + BATCH]
            pictures = pixels.repeat(len(batch), 1, 1, 1)
            for picture, (top, left) in zip(pictures, batch, strict=True):
                inside = slice(top, top + tall), slice(left, left + wide)
                picture[:, *inside] = fill[:, *inside]
            # how convolutions are fastest on a CPU: 0.83 of the time at this batch size
            found.append(logits_at(model, pictures.contiguous(memory_format=torch.channels_last)))
        return torch.cat(found)

    hidden = model.cached(("hidden windows", sample.sha256, window, stride, by, seed), look)
    drops = (logits[0, index] - hidden[:, index]).double().cpu()
    total, count = torch.zeros(2, height, width, dtype=torch.float64)
    for drop, (top, left) in zip(drops, corners, strict=True):
        total[top : top + tall, left : left + wide] += drop
        count[top : top + tall, left : left + wide] += 1
    return pixel_map(model, sample, total / count, index, float(logits[0, index]), "logit drop when hidden")
