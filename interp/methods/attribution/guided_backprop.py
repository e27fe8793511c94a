from interp.method import Paper, lens
from interp.methods.attribution._rectified import no_relu, rectified_map
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Springenberg, Jost Tobias and Dosovitskiy, Alexey and Brox, Thomas and Riedmiller, Martin",
    "Striving for Simplicity: The All Convolutional Net",
    2015,
    "ICLR Workshops",
    "https://arxiv.org/abs/1412.6806",
)


@lens("Guided Backprop", PAPER, needs=no_relu, cost=lambda model, **_: (1, 1))
def guided_backprop(model: VisionModel, sample: Image, *, target: Target = Target()) -> Heatmap:
    """Go back through the network as a gradient does, but through each ReLU only where input and gradient are positive.

        y = relu(a):    g_a = g_y [a > 0] [g_y > 0]

    Args:
        target: The class to explain.

    Returns:
        Heatmap [height, width] at the model's input, without a unit.

    Raises:
        Unsuitable: no such class; the network has no ReLU, or other activations beside it.

    Assumes:
        That only what excites matters.

    Misleads:
        It hardly changes with the class, or when the upper layers are randomised (Adebayo et al. 2018; Nie et al.
        2018): it restores edges of the image, sharp and convincing, and says little of the decision.
    """
    return rectified_map(model, sample, target, lambda g, a: g.clamp(min=0) * (a > 0))
