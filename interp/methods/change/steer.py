from typing import Annotated, Literal

from interp.hooks import Block
from interp.method import DirectionName, Positions, Range, Unset, intervention
from interp.methods.change._steering import Where, added, at_layer, pushed, scale_of
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering.difference_of_means import PAPER
from interp.model import LanguageModel
from interp.samples import Prompt


@intervention("Steer", PAPER, needs=no_blocks)
def steer(
    model: LanguageModel,
    sample: Prompt,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells its examples best")] = None,
    strength: Annotated[float, Range(-100, 100)] = 0.0,
    unit: Literal["shift", "norm"] = "shift",
    where: Where = "all",
    positions: Annotated[tuple[int, ...], Positions()] = (),
    keep_norm: bool = False,
) -> Block | None:
    """Add a direction to the residual stream after a layer.

        h <- h + s v,    s = strength  or  strength E|h| / |v|;    keep_norm: h <- h |h_before| / |h|

    Args:
        direction: Which direction; the model's first unless given.
        layer: After which layer.
        strength: How much; 0 leaves the model as it is, below 0 pushes the other way.
        unit: One "shift" moves the mean of the negative examples onto that of the positive ones, along the direction;
            one "norm" is the mean length of the stream there, which compares layers and directions.
        where: At all tokens, at those of the prompt, or from the last token of the prompt on, where text is generated.
        positions: At these tokens alone, from 0.
        keep_norm: Whether each token's stream keeps its length.

    Raises:
        Unsuitable: no such direction, or it is not known after that layer.

    Assumes:
        That later layers read the direction alike, however far the stream lies along it.

    Misleads:
        Far from what the model has seen anything breaks down; compare with a random direction of the same length.
    """
    if strength == 0:
        return None
    found, at, v = at_layer(model, direction, layer)
    scale = scale_of(found, at, v, strength, unit)

    return pushed(model, (at,), lambda h: added(h, scale * v, keep_norm), where, positions)
