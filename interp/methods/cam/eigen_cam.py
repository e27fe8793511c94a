import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, lens
from interp.methods.cam._channels import activations, heatmap
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Muhammad, Mohammed Bany and Yeasin, Mohammed",
    "Eigen-CAM: Class Activation Map using Principal Components",
    2020,
    "IJCNN",
    "https://arxiv.org/abs/2008.00299",
)


@lens("Eigen-CAM", PAPER, cost=lambda model, **_: (1, 0))
def eigen_cam(
    model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None, centre: bool = True
) -> Heatmap:
    """Project the activations on the direction in which they are largest: what the layer shows, whatever the class.

        A = U Sigma V^T       [position, channel], each channel's mean over the map taken off first
        L = A V_1             with the sign for which L rises with the mean activation

    Args:
        target: The class whose logit is reported; the map is the same for every class.
        site: The layer to look at; the last one that is still a map unless given.
        centre: Take off the channels' means first, as the common implementation does; without, as the paper prints it.

    Returns:
        Heatmap [height, width] on the layer's grid, in units of the activation, before the final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That what varies most in the layer is the object. The sign of a singular vector is arbitrary; the rule above
        fixes it by what usually holds, that objects excite a layer more than background.

    Misleads:
        The class takes no part: asked about a dog or a cat it gives the same map.
    """
    at = activations(model, sample, target, site)
    return heatmap(model, sample, at, principal(at.activation, centre), "activation", signed=centre)


def principal(activation: Float[Tensor, "channel height width"], centre: bool) -> Float[Tensor, "height width"]:
    """A V_1 with the sign rule."""
    matrix = activation.flatten(1).T.double()
    if centre:
        matrix = matrix - matrix.mean(0)
    first = torch.linalg.svd(matrix, full_matrices=False).Vh[0]
    values = matrix @ first
    mean = activation.double().mean(0).flatten()
    rising = (values - values.mean()) @ (mean - mean.mean())
    return (values if rising >= 0 else -values).view(activation.shape[1:])
