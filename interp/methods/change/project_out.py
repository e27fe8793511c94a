from typing import Annotated

from torch import Tensor

from interp.hooks import Block
from interp.method import DirectionName, Paper, Positions, Range, Unset, intervention
from interp.methods.change._steering import Where, at_layer, pushed
from interp.methods.reading._prompts import no_blocks
from interp.model import LanguageModel
from interp.samples import Prompt

PAPER = Paper(
    "Arditi, Andy and Obeso, Oscar and Syed, Aaquib and Paleka, Daniel and Panickssery, Nina and Gurnee, Wes and "
    "Nanda, Neel",
    "Refusal in Language Models Is Mediated by a Single Direction",
    2024,
    "NeurIPS",
    "https://arxiv.org/abs/2406.11717",
)


@intervention("Project out a direction", PAPER, needs=no_blocks)
def project_out(
    model: LanguageModel,
    sample: Prompt,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells its examples best")] = None,
    share: Annotated[float, Range(0, 2)] = 0.0,
    every: bool = False,
    where: Where = "all",
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Take the part of the residual stream that lies along a direction away, after one layer or after every one.

        h <- h - share <h, u> u,    u = v / |v|;    after every layer: u of the one layer

    Args:
        direction: Which direction; the model's first unless given.
        layer: After which layer; also whose vector it is where it is taken away everywhere.
        share: How much of that part; 0 leaves the model as it is, 1 removes it, 2 turns it round.
        every: After every layer, so that no later one can write it again.
        where: At all tokens, at those of the prompt, or from the last token of the prompt on.
        positions: At these tokens alone, from 0.

    Raises:
        Unsuitable: no such direction, or it is not known after that layer.

    Assumes:
        That what the direction carries is carried by it alone.

    Misleads:
        The mean of the stream along the direction goes too, and it need not be zero: clamping keeps it.
    """
    if share == 0:
        return None
    _, at, v = at_layer(model, direction, layer)
    unit = v / v.norm()

    def remove(h: Tensor) -> Tensor:
        u = unit.to(h)
        return h - share * (h @ u).unsqueeze(-1) * u

    return pushed(model, range(model.layers) if every else (at,), remove, where, positions)
