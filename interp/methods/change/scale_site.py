from typing import Annotated

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Paper, Positions, Range, Unset, intervention
from interp.methods.change._places import at_positions
from interp.methods.reading._prompts import no_blocks
from interp.model import LanguageModel
from interp.samples import Prompt
from interp.sites import Site

PAPER = Paper(
    "Merullo, Jack and Eickhoff, Carsten and Pavlick, Ellie",
    "Characterizing Mechanisms for Factual Recall in Language Models",
    2023,
    "EMNLP",
    "https://arxiv.org/abs/2310.15910",
)


@intervention("Scale", PAPER, needs=no_blocks)
def scale_site(
    model: LanguageModel,
    sample: Prompt,
    *,
    site: Annotated[Site | None, Unset("what leaves the last layer")] = None,
    by: Annotated[float, Range(-4, 4)] = 1.0,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Multiply an activation: turn a head, an MLP or a layer up or down.

        A <- s A,    s = 1: unchanged

    Args:
        site: Where: attn_out.3, mlp_out.3, or z.3.5 for one head.
        by: The factor. 1 leaves the model as it is, 0 removes, -1 turns the sign round.
        positions: At which tokens, from 0; everywhere unless given.

    Raises:
        Unsuitable: no such site.

    Assumes:
        That what the part says lies in its direction, and how loudly in its length.

    Misleads:
        Scaling the whole residual stream changes nothing but what is added later: norms take the scale out.
    """
    if by == 1:
        return None
    where = model.resolve(site or Site("resid_post", model.layers - 1))
    if positions and where.kind == "pattern":
        raise Unsuitable("A pattern has queries and keys, not tokens; scale it at all of them.")
    return model.edit({where: at_positions(positions, lambda activation: activation * by)})
