from collections.abc import Callable
from typing import Annotated

from torch import Tensor

from interp.hooks import Block
from interp.method import Paper, Range, intervention
from interp.methods.reading._prompts import no_blocks
from interp.model import LanguageModel
from interp.samples import Prompt

PAPER = Paper(
    "Dehghani, Mostafa and Gouws, Stephan and Vinyals, Oriol and Uszkoreit, Jakob and Kaiser, Łukasz",
    "Universal Transformers",
    2019,
    "ICLR",
    "https://arxiv.org/abs/1807.03819",
)


@intervention("Repeat a layer", PAPER, needs=no_blocks)
def repeat_layer(
    model: LanguageModel,
    sample: Prompt,
    *,
    layer: Annotated[int, Range(0, 1000)] = 0,
    times: Annotated[int, Range(1, 16)] = 1,
) -> Block | None:
    """Run a layer several times, each on what it gave before.

        x_(l+1) <- block_l(block_l(... x_l))

    Args:
        layer: Which layer, from 0.
        times: How often. 1 leaves the model as it is.

    Raises:
        Unsuitable: no such layer.

    Assumes:
        That the layer can read what it wrote, as the residual stream suggests.

    Misleads:
        The stream grows with each pass, so later layers add relatively less: part of the change is scale alone.
    """
    if times == 1:
        return None

    def repeated(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        for _ in range(times):
            x = run(x)
        return x

    return model.around({layer: repeated})
