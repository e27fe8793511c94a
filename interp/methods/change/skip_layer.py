from typing import Annotated

from interp.hooks import Block
from interp.method import Paper, Range, intervention
from interp.methods.reading._prompts import no_blocks
from interp.model import LanguageModel
from interp.samples import Prompt

PAPER = Paper(
    "Lad, Vedang and Lee, Jin Hwa and Gurnee, Wes and Tegmark, Max",
    "The Remarkable Robustness of LLMs: Stages of Inference?",
    2024,
    "arXiv",
    "https://arxiv.org/abs/2406.19384",
)


@intervention("Skip layers", PAPER, needs=no_blocks)
def skip_layer(
    model: LanguageModel,
    sample: Prompt,
    *,
    layer: Annotated[int, Range(0, 1000)] = 0,
    count: Annotated[int, Range(0, 1000)] = 0,
) -> Block | None:
    """Leave out layers: what entered the first of them enters the one behind the last.

        x_(l+n) <- x_l

    Args:
        layer: The first that is left out, from 0.
        count: How many. 0 leaves the model as it is.

    Raises:
        Unsuitable: the model has fewer layers.

    Assumes:
        That neighbouring layers read and write in the same coordinates, as the residual stream suggests.

    Misleads:
        The first and the last layers change coordinates; without them little works, whatever they compute.
    """
    return model.around({each: lambda run, x: x for each in range(layer, layer + count)}) if count else None
