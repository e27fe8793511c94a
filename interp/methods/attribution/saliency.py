import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, lens
from interp.methods.attribution._pixels import gradient_at, pixel_map, seen
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Simonyan, Karen and Vedaldi, Andrea and Zisserman, Andrew",
    "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
    2014,
    "ICLR Workshop",
    "https://arxiv.org/abs/1312.6034",
)


@lens("Gradient", PAPER, cost=lambda model, **_: (2, 1))
def saliency(model: VisionModel, sample: Image, *, target: Target = Target(), magnitude: bool = False) -> Heatmap:
    """Ask of each pixel how fast the class score changes with it.

        g_kij = dS_c / dx_kij
        L_ij  = sum_k g_kij              magnitude:  L_ij = max_k |g_kij|

    k runs over the colour channels of the normalised image. The signed sum is the change of the score when a pixel gets
    brighter in all normalised channels at once; the paper shows the magnitude.

    Args:
        target: The class to explain.
        magnitude: Show the largest |gradient| over the colour channels, as the paper does, instead of the signed sum.

    Returns:
        Heatmap [height, width], one value per pixel of the input, in logits per unit of the normalised input.

    Raises:
        Unsuitable: no such class.

    Assumes:
        That the score is close to linear around the image: the gradient speaks of infinitely small changes.

    Misleads:
        A network sure of a class no longer reacts to small changes of what made it sure, so the gradient can be small
        exactly there. The signed sum cancels where the channels disagree. Fine noise is the network's, not the photo's.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    found = image_gradient(model, sample, pixels, index)
    values = found.abs().amax(0) if magnitude else found
    score = float(logits[0, index])
    return pixel_map(model, sample, values, index, score, "logit per unit of input", signed=not magnitude)


def image_gradient(
    model: VisionModel, sample: Image, pixels: Float[Tensor, "1 3 height width"], index: int
) -> Float[Tensor, "3 height width"]:
    """d S_c / d x at the image itself, or what was captured before under the same interventions."""

    def backward() -> torch.Tensor:
        return gradient_at(model, pixels, index)[0][0]

    return model.cached(("gradient at the pixels", sample.sha256, index), backward)
