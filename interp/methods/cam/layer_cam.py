from typing import Literal

from interp.method import Paper, lens
from interp.methods.cam._channels import capture, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Jiang, Peng-Tao and Zhang, Chang-Bin and Hou, Qibin and Cheng, Ming-Ming and Wei, Yunchao",
    "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
    2021,
    "IEEE Transactions on Image Processing",
    "https://doi.org/10.1109/TIP.2021.3089943",
)


@lens("LayerCAM", PAPER, cost=lambda model, **_: (1, 1))
def layer_cam(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    site: Site | None = None,
    scaling: Literal["none", "tanh"] = "none",
) -> Heatmap:
    """Weigh every activation by its own gradient where that is positive, and add the channels up.

        L_ij = sum_k  relu(dS_c / dA_kij)  A_kij
        tanh:  L_ij <- tanh(2 L_ij / max_ab L_ab)

    Args:
        target: The class to explain.
        site: The layer to look at, the method's point being the shallow ones; the last map unless given.
        scaling: tanh lifts the weak values of shallow layers, as the paper does before it merges layers.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits per cell (no unit after tanh), before the paper's final
        ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That a place matters if raising what fires there raises the score.

    Misleads:
        Negative gradients are dropped, so the map neither adds up to the score nor shows what speaks against the class.
    """
    at = capture(model, sample, target, site)
    values = (at.gradient.relu() * at.activation).sum(0)
    if scaling == "none":
        return heatmap(model, sample, at, values, "logit per cell")
    # a map that is nowhere positive has no maximum to scale by; its size keeps its shape
    largest = values.max() if values.max() > 0 else values.abs().max()
    return heatmap(
        model, sample, at, (2 * values / largest).tanh() if largest > 0 else values, "tanh of the relative value"
    )
