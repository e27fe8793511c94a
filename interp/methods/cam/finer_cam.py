from typing import Annotated

import torch

from interp.method import Paper, Range, lens
from interp.methods.cam._channels import Forward, capture, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Zhang, Ziheng and Gu, Jianyang and Chowdhury, Arpita and Mai, Zheda and Carlyn, David and Berger-Wolf, Tanya "
    "and Su, Yu and Chao, Wei-Lun",
    "Finer-CAM: Spotting the Difference Reveals Finer Details for Visual Explanation",
    2025,
    "CVPR",
    "https://arxiv.org/abs/2501.11309",
)


@lens("Finer-CAM", PAPER, cost=lambda model, **_: (1, 1))
def finer_cam(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    site: Site | None = None,
    similar: Annotated[int, Range(1, 10)] = 3,
    alpha: Annotated[float, Range(0, 2)] = 1.0,
) -> Heatmap:
    """Explain by what the class scores above similar classes, with the weights of Grad-CAM.

        F    = S_c - alpha mean_{d in similar} S_d
        w_k  = mean_ij  dF / dA_kij
        L_ij = sum_k  w_k A_kij

    Similar are the classes whose logits are nearest to that of c on this image.

    Args:
        target: The class to explain.
        site: The layer to look at; the last one that is still a map unless given.
        similar: With how many classes to compare; with all others where the model has fewer.
        alpha: Strength of the comparison; 0 gives Grad-CAM.

    Returns:
        Heatmap [height, width] on the layer's grid, in logits per cell, before the paper's final ReLU. The note names
        the classes compared with.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        As Grad-CAM: that a channel means the same wherever it fires.

    Misleads:
        It shows what tells these classes apart, not what makes the class: what they share is gone. Other classes to
        compare with give another map.
    """
    others: list[int] = []

    def compare(at: Forward) -> tuple[tuple[int, float], ...]:
        distance = (at.logits - at.logits[at.index]).abs()
        distance[at.index] = torch.inf
        others[:] = distance.argsort(stable=True)[: min(similar, len(distance) - 1)].tolist()
        return tuple((other, alpha / len(others)) for other in others)

    at = capture(model, sample, target, site, compare)
    weights = at.gradient.mean((1, 2))
    values = (weights[:, None, None] * at.activation).sum(0)
    names = ", ".join(model.labels[other] for other in others)
    return heatmap(model, sample, at, values, "logit per cell", note=f"Compared with {names}.")
