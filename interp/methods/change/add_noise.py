from typing import Annotated

import torch
from torch import Tensor

from interp.hooks import Block
from interp.method import Paper, Range, Unset, intervention
from interp.model import VisionModel
from interp.samples import Image
from interp.sites import Site

PAPER = Paper(
    "Hendrycks, Dan and Dietterich, Thomas",
    "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
    2019,
    "ICLR",
    "https://arxiv.org/abs/1903.12261",
)


@intervention("Add noise", PAPER)
def add_noise(
    model: VisionModel,
    sample: Image,
    *,
    site: Annotated[Site | None, Unset("the image")] = None,
    sigma: Annotated[float, Range(0, 4)] = 0.0,
    seed: int = 0,
) -> Block | None:
    """Add Gaussian noise to the image, or to any activation.

        A <- A + sigma std(A) eps,      eps ~ N(0, 1)

    Args:
        site: Where; the input unless given.
        sigma: Strength as a multiple of the activation's own standard deviation. 0 leaves the model as it is.
        seed: Number that fixes the noise; every forward gets the same.

    Raises:
        Unsuitable: no such site.

    Assumes:
        That one draw is typical; another seed tells.

    Misleads:
        Networks not trained on noisy images may answer with the noise's texture, not with doubt.
    """
    if sigma == 0:
        return None

    def noisy(activation: Tensor) -> Tensor:
        shape, generator = activation.shape[1:], torch.Generator().manual_seed(seed)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(activation)
        # detached, as the noise is a given: gradients should not run through its strength
        spread = activation.detach().flatten(1).std(1).view(-1, *[1] * len(shape))
        return activation + sigma * spread * noise

    return model.edit({site or Site("input"): noisy})
