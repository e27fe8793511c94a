from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, Range, lens
from interp.methods.attribution._pixels import gradient_at, pixel_map, seen
from interp.methods.attribution.saliency import image_gradient
from interp.model import VisionModel
from interp.progress import track
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Smilkov, Daniel and Thorat, Nikhil and Kim, Been and Viégas, Fernanda and Wattenberg, Martin",
    "SmoothGrad: Removing Noise by Adding Noise",
    2017,
    "ICML Workshop on Visualization for Deep Learning",
    "https://arxiv.org/abs/1706.03825",
)
BATCH = 4
"""Noisy copies per forward and backward."""


@lens("SmoothGrad", PAPER, cost=lambda model, samples, sigma, **_: (samples + 1, samples) if sigma > 0 else (2, 1))
def smooth_grad(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    samples: Annotated[int, Range(1, 200)] = 25,
    sigma: Annotated[float, Range(0, 1)] = 0.15,
    times_input: bool = False,
    seed: int = 0,
) -> Heatmap:
    """Average the gradient over noisy copies of the image.

        x_s   = x + sigma (max x - min x) eps_s,    eps_s ~ N(0, 1),    s = 1 ... n
        g_kij = mean_s  dS_c(x_s) / dx_kij
        L_ij  = sum_k g_kij              times_input:  L_ij = sum_k x_kij g_kij

    sigma = 0 is the plain gradient. The paper shows magnitudes; here the sign is kept.

    Args:
        target: The class to explain.
        samples: How many noisy copies, n.
        sigma: Standard deviation of the noise, as a fraction of the range from the smallest to the largest pixel value.
            The paper recommends 0.1 to 0.2.
        times_input: Multiply the averaged gradient by the normalised image, which the paper discusses but leaves out.
        seed: Number that fixes the noise.

    Returns:
        Heatmap [height, width], one value per pixel of the input, in logits per unit of the normalised input; with
        times_input in logits.

    Raises:
        Unsuitable: no such class.

    Assumes:
        That the network treats the noisy copies like the image; with large sigma it sees something else.

    Misleads:
        Smoother is not more faithful: this is, up to the draw, the gradient of the score blurred over all images near
        by, and a neat outline can come from that alone.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    if sigma == 0:  # all copies are the image
        found = image_gradient(model, sample, pixels, index)
    else:
        key = ("mean gradient", sample.sha256, index, samples, sigma, seed)
        found = model.cached(key, lambda: mean_gradient(model, pixels, index, samples, sigma, seed))
    score, units = float(logits[0, index]), "logit per pixel" if times_input else "logit per unit of input"
    return pixel_map(model, sample, pixels[0] * found if times_input else found, index, score, units)


def mean_gradient(
    model: VisionModel, pixels: Float[Tensor, "1 3 height width"], index: int, samples: int, sigma: float, seed: int
) -> Float[Tensor, "3 height width"]:
    """The mean of the gradients at the noisy copies, added up in double precision."""
    generator = torch.Generator().manual_seed(seed)
    scale = sigma * float(pixels.max() - pixels.min())
    # one draw per copy and in order, so that the noise does not depend on the batches
    noise = (scale * torch.randn(pixels.shape[1:], generator=generator, dtype=torch.float64) for _ in range(samples))
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64, device=pixels.device)
    for start in track(range(0, samples, BATCH), "Noisy copies"):
        batch = torch.stack([next(noise) for _ in range(min(BATCH, samples - start))])
        total += gradient_at(model, pixels + batch.to(pixels), index)[0].double().sum(0)
    return total / samples
