import math
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from interp.method import Paper, Range, lens
from interp.methods.attribution._pixels import Reference, logits_at, pixel_map, references, seen
from interp.model import VisionModel
from interp.progress import check, track
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Petsiuk, Vitali and Das, Abir and Saenko, Kate",
    "RISE: Randomized Input Sampling for Explanation of Black-box Models",
    2018,
    "BMVC",
    "https://arxiv.org/abs/1806.07421",
)
BATCH = 8
"""Masked images per forward."""


@lens("RISE", PAPER, cost=lambda model, masks, **_: (masks + 1, 0))
def rise(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    masks: Annotated[int, Range(10, 8000)] = 400,
    cells: Annotated[int, Range(2, 30)] = 7,
    keep: Annotated[float, Range(0.05, 0.95)] = 0.5,
    coverage: Literal["expected", "actual"] = "expected",
    by: Reference = "zeros",
    seed: int = 0,
) -> Heatmap:
    """Show the network random parts of the image and average the masks, weighted by the class probability they leave.

        x_i       = M_i x + (1 - M_i) r
        expected:  L_p = sum_i f_c(x_i) M_ip / (n keep)
        actual:    L_p = sum_i f_c(x_i) M_ip / sum_i M_ip

    f_c is the class probability. M_i is a grid of cells, each kept with probability `keep`, enlarged bilinearly by one
    cell more than the image needs and cut out at a random shift. Both sums tend to the mean of f_c over the masks that
    show p. The paper divides by the expected coverage, with r = 0 and 4000 to 8000 masks.

    Args:
        target: The class to explain.
        masks: How many masks, n. The noise of the map falls as 1 / sqrt(n).
        cells: Cells along each side of the grid.
        keep: Probability of a cell to be shown.
        coverage: What to divide by: how much of a pixel the masks are expected to show, as in the paper, or how much
            they did show, which leaves less noise.
        by: What the hidden parts show; zeros is the colour that normalises to zero.
        seed: Number that fixes the masks.

    Returns:
        Heatmap [height, width], one value per pixel of the input: the expected class probability when it is shown.

    Raises:
        Unsuitable: no such class.

    Assumes:
        That the network judges half-hidden images as it would real ones, and that the class survives in some of them.

    Misleads:
        Only differences between places mean something: the level is the probability under a random mask. With few masks
        the map shows how often each place happened to be shown: on two photos, the maps of two seeds of 400 masks
        correlated by 0.4 and 0.5, with the actual coverage by 0.9. Try another seed.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    size = (pixels.shape[-2], pixels.shape[-1])

    def look() -> Float[Tensor, "mask class"]:
        # a seed of its own, or the colours would be the very numbers that the masks are drawn from
        fill = references(model, pixels, by, seed=int(torch.randint(2**62, (), generator=_generator(seed))))
        drawn, found = random_masks(masks, size, cells, keep, seed), []
        for _ in track(range(0, masks, BATCH), "Masked images"):
            part = torch.stack(list(islice(drawn, BATCH)))[:, None].to(pixels)
            masked = part * pixels + (1 - part) * fill
            # how convolutions are fastest on a CPU: 0.83 of the time at this batch size
            found.append(logits_at(model, masked.contiguous(memory_format=torch.channels_last)).double().softmax(1))
        return torch.cat(found)

    key = ("probabilities under masks", sample.sha256, masks, cells, keep, by, seed)
    probabilities = model.cached(key, look)[:, index].cpu()
    total, shown = torch.zeros(2, *size, dtype=torch.float64)
    for probability, mask in zip(probabilities, random_masks(masks, size, cells, keep, seed), strict=True):
        check()
        total += probability * mask
        shown += mask
    never = bool((shown == 0).any())
    values = total / (masks * keep if coverage == "expected" else torch.where(shown > 0, shown, 1))
    note = "Some pixels were shown by no mask and have the value 0; take more masks." if never else ""
    score = float(logits[0, index])
    return pixel_map(model, sample, values, index, score, "probability", signed=False, note=note)


def random_masks(
    number: int, size: tuple[int, int], cells: int, keep: float, seed: int
) -> Iterator[Float[Tensor, "height width"]]:
    """The masks one after another; the first n are the same whatever the number."""
    generator = _generator(seed)
    cell = [math.ceil(side / cells) for side in size]
    enlarged = [(cells + 1) * each for each in cell]
    for _ in range(number):
        grid = torch.rand(1, 1, cells, cells, generator=generator, dtype=torch.float64) < keep
        top, left = (int(torch.randint(each, (), generator=generator)) for each in cell)
        whole = interpolate(grid.double(), enlarged, mode="bilinear", align_corners=False)[0, 0]
        yield whole[top : top + size[0], left : left + size[1]]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
