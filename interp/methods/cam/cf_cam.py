from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, pad

from interp.method import Paper, Range, lens
from interp.methods.cam._channels import capture, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site
from kernels.blur import blur
from kernels.dbscan import dbscan

PAPER = Paper(
    "He, Hongjie and Pan, Xu and Yao, Yudong",
    "CF-CAM: Cluster Filter Class Activation Mapping for Reliable Gradient-Based Interpretability",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2504.00060",
)
IMPORTANT, NOISE = -2, -1
"""Groups of channels that are no cluster."""


@lens("CF-CAM", PAPER, cost=lambda model, **_: (1, 1))
def cf_cam(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    site: Site | None = None,
    filter: Literal["gaussian", "released code"] = "gaussian",
    sigma: Annotated[float, Range(0, 10)] = 1.0,
) -> Heatmap:
    """Keep strong channels, cluster the others, drop those in no cluster, and filter each cluster's mean gradient.

        I    = channels whose norm |A_k| is at or above the 75th percentile
        DBSCAN of the others by distance |A_k - A_l|:  eps = max(25th percentile of the distances, 1e-5),
                                                       min_samples = max(2, 5 % of them); others are dropped
        a_k  = mean_ij g_kij                                  for k in I                 g = dS_c / dA
        a_k  = mean_ij filter(mean_{l in cluster} g_l)_ij     for k in a cluster
        w_k  = softmax_k(a_k)       over the channels kept
        L_ij = sum_k  w_k A_kij

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.
        filter: The Gaussian of the paper's abstract, or what the released code calls bilateral: one kernel as large as
            the map, a Gaussian of 5 cells times one of 0.1 in the gradient's own value.
        sigma: Width of the Gaussian in cells of the layer's grid.

    Returns:
        Heatmap [height, width] on the layer's grid, in units of the activation, before the paper's final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That channels with alike activations mean alike things, and that weak channels unlike any other mean nothing.

    Misleads:
        The softmax makes all weights positive, and nearly equal where gradients are small, as they mostly are: then
        the map is the mean of the kept channels, whatever the class. Only a filtered map's mean counts, and a Gaussian
        hardly changes it.
    """
    at = capture(model, sample, target, site)
    groups = group(at.activation)
    weights = channel_weights(at.gradient, groups, sigma if filter == "gaussian" else None)
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0), "activation")


def group(activation: Float[Tensor, "channel height width"]) -> Int[np.ndarray, "channel"]:
    """The number of each channel's cluster, or IMPORTANT, or NOISE."""
    points = activation.flatten(1).double()
    norms = points.norm(dim=1)
    groups = np.where((norms >= norms.quantile(0.75)).cpu().numpy(), IMPORTANT, NOISE)
    rest = np.flatnonzero(groups != IMPORTANT)
    if len(rest) > 1:
        some = points[torch.from_numpy(rest)]
        distances = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        eps = max(float(np.percentile(distances[~np.eye(len(rest), dtype=bool)], 25)), 1e-5)
        groups[rest] = dbscan(distances, eps, max(2, int(0.05 * len(rest))))
    return groups


def channel_weights(
    gradient: Float[Tensor, "channel height width"], groups: Int[np.ndarray, "channel"], sigma: float | None
) -> Float[Tensor, "channel"]:
    """Softmax of the channels' mean filtered gradients; 0 for noise. `sigma` None: the released code's filter."""
    means = gradient.mean((1, 2))
    for number in range(groups.max() + 1):
        members = torch.from_numpy(np.flatnonzero(groups == number)).to(gradient.device)
        mean = gradient[members].mean(0)
        means[members] = (released_filter(mean) if sigma is None else blur(mean, sigma)).mean()
    kept = torch.from_numpy(groups != NOISE).to(gradient.device)
    return means.masked_fill(~kept, -torch.inf).softmax(0)


def released_filter(gradient: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Convolve with exp(-r^2 / 2 5^2) exp(-(g - mean g)^2 / 2 0.1^2), normalised.

    The kernel follows the gradient itself and is centred on (height / 2, width / 2); the border is zero.
    """
    height, width = gradient.shape
    y = torch.arange(height, device=gradient.device)[:, None] - height / 2
    x = torch.arange(width, device=gradient.device) - width / 2
    weight = (-(y**2 + x**2) / (2 * 5.0**2)).exp() * (-((gradient - gradient.mean()) ** 2) / (2 * 0.1**2)).exp()
    kernel = (weight / (weight.sum() + 1e-6)).to(gradient.dtype)
    top, left = (height - 1) // 2, (width - 1) // 2
    padded = pad(gradient, (left, width - 1 - left, top, height - 1 - top))
    return conv2d(padded[None, None], kernel[None, None])[0, 0]
