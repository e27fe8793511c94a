from torch import nn

from interp.method import Paper, lens
from interp.methods.cam._channels import activations, heatmap
from interp.model import VisionModel
from interp.results import Heatmap, Residual
from interp.samples import Image, Target

PAPER = Paper(
    "Zhou, Bolei and Khosla, Aditya and Lapedriza, Agata and Oliva, Aude and Torralba, Antonio",
    "Learning Deep Features for Discriminative Localization",
    2016,
    "CVPR",
    "https://arxiv.org/abs/1512.04150",
)
POOLED = ("resnet", "regnet", "efficientnet", "mobilenet_v2")
"""Families whose head is average pooling followed by one linear layer, and nothing else."""


def needs(model: VisionModel) -> str | None:
    """The reason why there is no CAM of this model, or None."""
    if model.family in POOLED:
        return None
    return (
        f"CAM is defined for networks that end in average pooling and one linear layer; {model.name} ({model.family}) "
        "has more behind its last map. Grad-CAM serves it."
    )


@lens("CAM", PAPER, needs=needs, cost=lambda model, **_: (1, 0))
def cam(model: VisionModel, sample: Image, *, target: Target = Target()) -> Heatmap:
    """Weigh each channel of the last layer by its weight in the classifier, and add the channels up.

        L_ij = sum_k  W_ck A_kij            so that   S_c = mean_ij L_ij + b_c

    Args:
        target: The class to explain.

    Returns:
        Heatmap [height, width] on the grid of the last stage, in logits: its mean is the class logit without the bias.

    Raises:
        Unsuitable: no such class, or a network that does not end in average pooling and one linear layer.

    Assumes:
        Nothing beyond that architecture: where it applies, the map is the class logit itself, place by place.

    Misleads:
        Each cell has seen far more of the image than it covers, so what made it fire may lie beside it.
    """
    at = activations(model, sample, target, None)
    classifier = [name for name, module in model.network.named_modules() if isinstance(module, nn.Linear)][-1]
    weights = model.weight(f"{classifier}.weight")[at.index]
    bias = float(model.weight(f"{classifier}.bias")[at.index])
    values = (weights[:, None, None] * at.activation).sum(0)
    residual = Residual(
        float(values.double().mean()) + bias - at.score,
        "mean of the map plus the bias minus the class logit, in logits: zero but for rounding, unless an intervention "
        "changes what lies behind the last stage",
    )
    return heatmap(model, sample, at, values, "logit", residual=residual)
