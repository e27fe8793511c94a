import torch

from interp.method import Paper, lens
from interp.methods.cam._channels import capture, conservation, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Fu, Ruigang and Hu, Qingyong and Dong, Xiaohu and Guo, Yulan and Gao, Yinghui and Li, Biao",
    "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
    2020,
    "BMVC",
    "https://arxiv.org/abs/2008.02312",
)


@lens("XGrad-CAM", PAPER, cost=lambda model, **_: (1, 1))
def xgrad_cam(model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None) -> Heatmap:
    """Weigh each channel by its gradient, averaged over the map with the activation as weight.

        w_k  = sum_ij  A_kij / (sum_ab A_kab)  dS_c / dA_kij
        L_ij = sum_k  w_k A_kij                so that   sum_ij L_ij = sum_kij A_kij dS_c / dA_kij

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits per cell, before the paper's final ReLU. The residual
        says how far its sum is from the class logit.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        Piecewise linear layers behind the site for conservation: then the sum is the logit but for the biases' part.

    Misleads:
        Behind anything but a ReLU a channel's sum can be near zero, and its weight huge; a channel whose sum is zero to
        rounding is left out.
    """
    at = capture(model, sample, target, site)
    total = at.activation.sum((1, 2))
    # relative to the channel's own size: below this its sum is rounding, above it any value is a value
    rounding = torch.finfo(total.dtype).eps * at.activation.abs().sum((1, 2))
    good = total.abs() > rounding
    weights = torch.where(good, (at.gradient * at.activation).sum((1, 2)) / torch.where(good, total, 1), 0)
    values = (weights[:, None, None] * at.activation).sum(0)
    return heatmap(model, sample, at, values, "logit per cell", residual=conservation(values, at))
