from interp.method import Paper, lens
from interp.methods.cam._channels import capture, conservation, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Draelos, Rachel Lea and Carin, Lawrence",
    "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
    2020,
    "arXiv",
    "https://arxiv.org/abs/2011.08891",
)
BLIND = (
    "The channels cancel in every cell: what follows this site is a layer norm, which does "
    "not see how long a token is. Look at the output of that norm instead."
)


@lens("HiResCAM", PAPER, cost=lambda model, **_: (1, 1))
def hires_cam(model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None) -> Heatmap:
    """Multiply every activation by its own gradient, and add the channels up.

        L_ij = sum_k  dS_c / dA_kij  A_kij

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits per cell, before the final ReLU. The residual says
        how far its sum is from the class logit.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That the layers behind the site are linear, or nearly so: then a cell's value is what the logit loses when that
        cell is set to zero.

    Misleads:
        Where they are not, gradient times activation is a straight line drawn from here to zero, and zero is far. Right
        before a layer norm (the residual stream of ViT, the last stage of Swin) the line is level: the map is zero.
    """
    at = capture(model, sample, target, site)
    products = at.gradient * at.activation
    values = products.sum(0)
    largest = products.abs().sum(0).max()
    # the norm's epsilon leaves a little; by chance, all cells of a map never cancel this far
    note = BLIND if largest > 0 and values.abs().max() < 1e-3 * largest else ""
    return heatmap(model, sample, at, values, "logit per cell", residual=conservation(values, at), note=note)
