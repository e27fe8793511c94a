from interp.method import Paper, lens
from interp.methods.cam._channels import capture, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Selvaraju, Ramprasaath R. and Cogswell, Michael and Das, Abhishek and Vedantam, Ramakrishna and Parikh, Devi "
    "and Batra, Dhruv",
    "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    2017,
    "ICCV",
    "https://arxiv.org/abs/1610.02391",
)


@lens("Grad-CAM", PAPER, cost=lambda model, **_: (1, 1))
def grad_cam(model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None) -> Heatmap:
    """Weigh each channel by the mean gradient of the class logit over the map, and add the channels up.

        w_k = mean_ij  dS_c / dA_kij
        L_ij = sum_k  w_k A_kij

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits per cell, before the paper's final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That a channel means the same wherever it fires: one weight stands for the whole map. Exact for networks that
        end in average pooling and one linear layer; elsewhere the map does not add up to the logit.

    Misleads:
        At earlier layers, where the gradient differs from place to place, its mean can highlight places that the class
        score does not depend on; HiResCAM at the same layer shows whether that happened.
    """
    at = capture(model, sample, target, site)
    weights = at.gradient.mean((1, 2))
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0), "logit per cell")
