from interp.method import Paper, lens
from interp.methods.attribution._rectified import no_relu, rectified_map
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Zeiler, Matthew D. and Fergus, Rob",
    "Visualizing and Understanding Convolutional Networks",
    2014,
    "ECCV",
    "https://arxiv.org/abs/1311.2901",
)


@lens("DeconvNet", PAPER, needs=no_relu, cost=lambda model, **_: (1, 1))
def deconvnet(model: VisionModel, sample: Image, *, target: Target = Target()) -> Heatmap:
    """Go back through the network with a ReLU on the backward signal in place of each ReLU's own derivative.

        y = relu(a):    g_a = g_y [g_y > 0]

    Max-pooling goes back to where its maximum was, by the switches of the forward pass.

    Args:
        target: The class to explain.

    Returns:
        Heatmap [height, width] at the model's input, without a unit.

    Raises:
        Unsuitable: no such class; the network has no ReLU, or other activations beside it.

    Assumes:
        That a unit's pattern can be drawn by running the network backwards.

    Misleads:
        As Guided Backprop: it hardly depends on the class, and draws what the first layers see. Without the mask of the
        forward pass it can light up pixels that no active unit looks at.
    """
    return rectified_map(model, sample, target, lambda g, a: g.clamp(min=0))
