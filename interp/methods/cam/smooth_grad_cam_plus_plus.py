from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable
from interp.method import Channels, Paper, Range, Region, lens
from interp.methods._regions import Box, mask
from interp.methods.cam._channels import Forward, activations, heatmap
from interp.model import VisionModel, gradient
from interp.progress import spent, track
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Omeiza, Daniel and Speakman, Skyler and Cintas, Celia and Weldemariam, Komminist",
    "Smooth Grad-CAM++: An Enhanced Inference Level Visualization Technique for Deep Convolutional Neural Network "
    "Models",
    2019,
    "arXiv",
    "https://arxiv.org/abs/1908.01224",
)
BATCH = 4
"""Noisy copies per forward; larger batches were not faster per copy."""


@lens("Smooth Grad-CAM++", PAPER, cost=lambda model, n, **_: (n + 1, n))
def smooth_grad_cam_plus_plus(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    site: Site | None = None,
    channels: Annotated[tuple[int, ...], Channels()] = (),
    neurons: Annotated[Box, Region()] = (0.0, 0.0, 1.0, 1.0),
    n: Annotated[int, Range(1, 64)] = 8,
    sigma: Annotated[float, Range(0, 2)] = 0.3,
    seed: int = 0,
) -> Heatmap:
    """Weigh channels as Grad-CAM++ does, with derivatives averaged over noisy copies of the image.

        x_s       = x + sigma eps_s,   eps_s ~ N(0, 1),   s = 1 ... n
        D1, D2, D3 = mean_s g_s,  mean_s g_s^2,  mean_s g_s^3           g_s = dS_c(x_s) / dA
        alpha_kij = D2_kij / (2 D2_kij + sum_ab A_kab D3_kij)           (0 where the denominator is)
        w_k       = sum_ij  alpha_kij relu(D1_kij)
        L_ij      = sum_k  w_k A_kij

    The paper prints D1 in alpha's numerator, which does not reduce to Grad-CAM++; D2 does, for n = 1 and sigma = 0.
    A is that of the image without noise. i, j and k run over the chosen neurons and channels.

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.
        channels: The channels to use, by number from 0; all if none are given.
        neurons: The box whose neurons are used, left, top, right, bottom as fractions of the image; the rest is 0.
        n: How many noisy copies.
        sigma: Standard deviation of the noise, in the model's normalised pixels (about 1 is the spread of a photo).
        seed: Number that fixes the noise.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits, before the paper's final ReLU.

    Raises:
        Unsuitable: no such class, layer or channel, or a box without any cell of the map.

    Assumes:
        That the network treats the noisy copies like the image; with large sigma it sees something else.

    Misleads:
        Smoother is not more faithful: noise blurs the derivative as well as its faults.
    """
    at = activations(model, sample, target, site)
    if channels and channels[-1] >= len(at.activation):
        raise Unsuitable(f"{at.site} has channels 0 to {len(at.activation) - 1}, not {channels[-1]}.")
    chosen = mask(model, sample, neurons, *at.activation.shape[1:])
    if not chosen.any():
        raise Unsuitable(f"No cell of {at.site} has its centre in this box; draw a larger one.")

    key = ("moments", sample.sha256, at.site, at.index, n, sigma, seed)
    d1, d2, d3 = model.cached(key, lambda: moments(model, sample, at, n, sigma, seed))
    total = at.activation.double().sum((1, 2), keepdim=True)
    denominator = 2 * d2 + total * d3
    # against 2 D2 because both have the unit of a squared gradient: an absolute bound would depend on its scale
    good = denominator.abs() > 1e-12 * 2 * d2
    alpha = torch.where(good, d2 / torch.where(good, denominator, 1), 0)
    weights = (alpha * d1.relu() * chosen).sum((1, 2))
    if channels:
        weights = weights * torch.zeros_like(weights).index_fill(0, torch.tensor(channels, device=weights.device), 1)
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0) * chosen, "logit")


def moments(
    model: VisionModel, sample: Image, at: Forward, n: int, sigma: float, seed: int
) -> tuple[Float[Tensor, "channel height width"], ...]:
    """Means of g, g^2 and g^3 over the noisy copies, in double precision: g^3 is small."""
    shape = model.inputs(sample).shape[1:]
    generator = torch.Generator().manual_seed(seed)
    # one draw per copy and in order, so that the noise does not depend on the batches
    noise = (sigma * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(n))
    sums = torch.zeros(3, *at.activation.shape, dtype=torch.float64, device=model.device)
    for start in track(range(0, n, BATCH), "Noisy copies"):
        batch = torch.stack([next(noise) for _ in range(min(BATCH, n - start))])
        g = noisy_gradient(model, sample, at, batch.to(model.device, model.dtype)).double()
        sums += torch.stack([(g**power).sum(0) for power in (1, 2, 3)])
    return tuple(sums / n)


def noisy_gradient(
    model: VisionModel, sample: Image, at: Forward, noise: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channel height width"]:
    """The gradient at the site for each copy; the noise is added after the interventions in force."""
    with model.edit({Site("input"): lambda x: x + noise}), model.record([at.site], grad=True) as recorded:
        logits = model(sample)
    spent(backwards=len(noise) - 1)  # counted in examples, like forwards
    return model.grid(at.site)(gradient(logits[:, at.index].sum(), [recorded[at.site]])[0])
