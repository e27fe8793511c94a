from interp.method import Paper, lens
from interp.methods.attribution._pixels import Reference, completeness, logits_at, pixel_map, references, seen
from interp.methods.attribution.saliency import image_gradient
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, Target

PAPER = Paper(
    "Shrikumar, Avanti and Greenside, Peyton and Shcherbina, Anna and Kundaje, Anshul",
    "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
    2016,
    "arXiv",
    "https://arxiv.org/abs/1605.01713",
)


@lens("Gradient x input", PAPER, cost=lambda model, **_: (3, 1))
def input_x_gradient(
    model: VisionModel, sample: Image, *, target: Target = Target(), reference: Reference = "zeros", seed: int = 0
) -> Heatmap:
    """Multiply the gradient by how far each pixel is from a reference: the score's first-order change between them.

        L_ij = sum_k  (x_kij - x0_kij) dS_c(x) / dx_kij

    For a score that is linear in the pixels the map adds up to S_c(x) - S_c(x0). The residual tells how far this one is
    from that. With the reference "zeros" x0 = 0, as in the paper.

    Args:
        target: The class to explain.
        reference: The picture x0 to compare with; zeros is the colour that normalises to zero.
        seed: Number that fixes the colours of the reference "uniform".

    Returns:
        Heatmap [height, width], one value per pixel of the input, in logits.

    Raises:
        Unsuitable: no such class.

    Assumes:
        That the score is linear from the reference to the image; the residual says how wrong that is.

    Misleads:
        A pixel that equals the reference gets 0 however much the network relies on it. Bright and dark places stand out
        by their own strength, so the map looks like the photo where the gradient is only noise.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    score = float(logits[0, index])
    start = references(model, pixels, reference, seed=seed)
    values = (pixels - start)[0] * image_gradient(model, sample, pixels, index)
    residual = completeness(float(values.double().sum()), score - float(logits_at(model, start)[0, index]))
    return pixel_map(model, sample, values, index, score, "logit per pixel", residual=residual)
