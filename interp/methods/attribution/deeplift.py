from typing import Annotated, Any

from interp import Unsuitable, progress
from interp.method import Paper, Range, Unset, lens
from interp.methods.attribution import _multipliers
from interp.methods.attribution._multipliers import Rule
from interp.methods.attribution._pixels import Reference, completeness, logits_at, pixel_map, references, seen
from interp.model import VisionModel
from interp.results import Heatmap
from interp.samples import Image, ImageSet, Target

PAPER = Paper(
    "Shrikumar, Avanti and Greenside, Peyton and Kundaje, Anshul",
    "Learning Important Features Through Propagating Activation Differences",
    2017,
    "ICML",
    "https://arxiv.org/abs/1704.02685",
)


def passes(model: VisionModel, reference: str, images: ImageSet | None, draws: int, **_: Any) -> tuple[float, float]:
    """A forward for every reference and one for the image beside each, and a backward each."""
    count = len(images.images) if images else draws if reference == "uniform" else 1
    return 2 * count + 1, count


@lens("DeepLIFT", PAPER, cost=passes)
def deeplift(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    reference: Reference = "blur",
    rule: Rule = "rescale",
    images: Annotated[ImageSet | None, Unset("the reference above")] = None,
    draws: Annotated[int, Range(1, 30)] = 4,
    seed: int = 0,
) -> Heatmap:
    """Share the difference of the class logit from a reference among the pixels, by finite differences of each layer.

        C_i = m_i (x_i - x0_i),    sum_i C_i = S_c(x) - S_c(x0)
        linear:        m = w
        rescale:       m = (f(a) - f(a0)) / (a - a0)
        reveal cancel: m+ = [f(a0 + a+) - f(a0) + f(a) - f(a0 + a-)] / (2 a+),   m- likewise,   a - a0 = a+ + a-
        product ab:    m_a = (b + b0) / 2,   m_b = (a + a0) / 2

    Multipliers follow the chain rule. Every function of the network has its rule, wherever it is called: as a module,
    as a function, as an operator, once or often. The rules for products, and with them for softmax, normalisation and
    attention, and for max-pooling (the winner at the image takes a rise, the winner at the reference a fall) extend the
    papers, which know of none of these; a function without a rule is refused by name. Several references are averaged
    (DeepSHAP). The genomics default is reveal cancel behind dense layers, rescale elsewhere.

    Args:
        target: The class to explain.
        reference: What the image is compared with. zeros is the colour that normalises to zero, often the training
            data's mean.
        rule: rescale keeps one multiplier for each unit; reveal cancel keeps what speaks for and against apart, so that
            evidence that another input cancels still shows.
        images: Images to compare with instead, averaged.
        draws: How many random pictures the uniform reference is averaged over.
        seed: Number that fixes them.

    Returns:
        Heatmap [height, width] at the model's input, in logits per pixel; its residual is how far the sum is from the
        difference.

    Raises:
        Unsuitable: no such class; an operation without a rule; a reference of another size; a network too deep for
            reveal cancel.

    Assumes:
        That the reference is what the absence of evidence looks like. Another reference asks another question, and gets
        another map.

    Misleads:
        Pixels that equal the reference get nothing, whatever they show: black parts against a black reference.
        Completeness says that the sum is right, not that each part is.
    """
    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    own = reference in ("blur", "image mean")  # made of the image itself
    key = tuple(each.sha256 for each in images.images) if images else (reference, sample.sha256 if own else "")

    def forward(x: Any) -> Any:
        return logits_at(model, x)

    def look() -> _multipliers.Reference:
        return _multipliers.at_reference(forward, references(model, pixels, reference, images, draws, seed))

    at = model.cached(("deeplift", key, tuple(pixels.shape), draws, seed), look)
    maps, scores = _multipliers.contributions(forward, pixels, at, index, rule)
    progress.spent(backwards=len(maps) - 1)
    difference = float((scores.double() - at.scores[:, index].double()).mean())
    values = maps.double().mean(0)
    gap = completeness(float(values.sum()), difference)
    if rule != "rescale" and gap.value > 0.01:
        raise Unsuitable(
            f"The positive and negative parts that {rule} keeps outgrow their difference in {model.name}, "
            "and rounding takes the rest; choose rescale."
        )
    return pixel_map(
        model, sample, values, index, float(scores[0]), "logit per pixel",
        residual=gap,
    )  # fmt: skip
