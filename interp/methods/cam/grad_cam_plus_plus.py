import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, lens
from interp.methods.cam._channels import capture, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Chattopadhay, Aditya and Sarkar, Anirban and Howlader, Prantik and Balasubramanian, Vineeth N",
    "Grad-CAM++: Generalized Gradient-Based Visual Explanations for Deep Convolutional Networks",
    2018,
    "WACV",
    "https://arxiv.org/abs/1710.11063",
)


def alpha(
    total: Float[Tensor, "channel 1 1"], gradient: Float[Tensor, "channel height width"]
) -> Float[Tensor, "channel height width"]:
    """1 / (2 + total * gradient): eq. 19 with g^2 cancelled, so that no constant has to keep it from 0 / 0.

    The denominator has no unit, so the guard against zero means the same for every network. It may be negative where
    the channel's sum is, and keeps its sign, as in the paper's formula.
    """
    denominator = 2 + total * gradient
    good = (gradient != 0) & (denominator.abs() > 1e-12)
    return torch.where(good, 1 / torch.where(good, denominator, 1), 0)


@lens("Grad-CAM++", PAPER, cost=lambda model, **_: (1, 1))
def grad_cam_plus_plus(
    model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None
) -> Heatmap:
    """Weigh each channel by its positive gradients, each with the share that makes the channel explain the score.

        alpha_kij = g_kij^2 / (2 g_kij^2 + sum_ab A_kab g_kij^3)  =  1 / (2 + sum_ab A_kab g_kij)     (0 where g = 0)
        w_k       = sum_ij  alpha_kij relu(g_kij)                 g = dS_c / dA
        L_ij      = sum_k  w_k A_kij

    The paper's score is exp(S_c), whose factor exp(S_c) is the same for every channel of an image and is left out.

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits, before the paper's final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        Activations that are nowhere negative, as behind a ReLU: then alpha lies between 0 and 1/2. Elsewhere (ViT,
        ConvNeXt, Swin) alpha can be large or negative where 2 + sum A g is near zero.

    Misleads:
        Negative gradients are dropped, so evidence against the class does not show. Where sum A g is small against 2,
        alpha is 1/2 everywhere and the map is that of the positive gradients alone.
    """
    at = capture(model, sample, target, site)
    total = at.activation.sum((1, 2), keepdim=True)
    weights = (alpha(total, at.gradient) * at.gradient.relu()).sum((1, 2))
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0), "logit")
