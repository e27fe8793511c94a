from typing import Annotated

from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import DirectionName, Positions, Range, Unset, intervention
from interp.methods.change._steering import Where, at_layer, pushed
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering.pca_direction import PAPER
from interp.model import LanguageModel
from interp.samples import Prompt


@intervention("Clamp a direction", PAPER, needs=no_blocks)
def clamp_direction(
    model: LanguageModel,
    sample: Prompt,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells its examples best")] = None,
    value: Annotated[float | None, Range(-100, 100), Unset("no clamping")] = None,
    only: bool = False,
    where: Where = "all",
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Hold the residual stream along a direction at a behaviour score, whatever it would have there.

        h <- h + (c - <h, v> / <v, v>) v,    c = low + value (high - low)

    low and high are where the negative and the positive examples of the direction lie on average, so 0 is like the
    negative ones and 1 like the positive ones.

    Args:
        direction: Which direction; the model's first unless given.
        layer: After which layer.
        value: The score to hold, 0 as in the negative examples, 1 as in the positive ones.
        only: Only take down what lies above the value, and leave what lies below (a cap).
        where: At all tokens, at those of the prompt, or from the last token of the prompt on.
        positions: At these tokens alone, from 0.

    Raises:
        Unsuitable: no such direction, or one that knows no examples.

    Assumes:
        That the behaviour is a matter of where the stream lies along the direction.

    Misleads:
        Tokens differ along any direction for other reasons as well; held at one value, all of these are lost.
    """
    if value is None:
        return None
    found, at, v = at_layer(model, direction, layer)
    low, high = found.fact("low", at), found.fact("high", at)
    if not abs(high - low) > 0:
        raise Unsuitable(f"{found.name} knows no examples to say what 0 and 1 are; push along it instead.")
    level = low + value * (high - low)

    def hold(h: Tensor) -> Tensor:
        u = v.to(h)
        missing = level - (h @ u) / u.dot(u)
        return h + (missing.clamp(max=0) if only else missing).unsqueeze(-1) * u

    return pushed(model, (at,), hold, where, positions)
