from typing import Annotated, Any

import numpy as np

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.reading._prompts import looked
from interp.model import LanguageModel
from interp.results import Residual, TokenGrid
from interp.samples import Prompt
from interp.sites import Site

PAPER = Paper(
    "Vig, Jesse",
    "A Multiscale Visualization of Attention in the Transformer Model",
    2019,
    "ACL",
    "https://arxiv.org/abs/1906.05714",
)


CELLS = 2**24
"""The largest number of weights that is shown: 128 MB of them."""


def no_pattern(model: Any) -> str | None:
    """The reason why a model's attention can't be seen, or None."""
    return model.refuses(Site("pattern", 0))


@lens("Attention patterns", PAPER, needs=no_pattern, cost=lambda model, **_: (1, 0))
def attention_pattern(
    model: LanguageModel,
    sample: Prompt,
    *,
    layer: Annotated[int, Range(0, 1000)] = 0,
) -> TokenGrid:
    """See where each head of a layer looks from each token.

        A_h = softmax(q_h k_h' / sqrt(d_head) + mask)

    As the model computes it: after rotary positions, the heads' norms, soft caps and sliding windows.

    Args:
        layer: Which layer, from 0.

    Returns:
        TokenGrid, a sheet per head, a row per query (who looks) and a column per key (what is looked at); rows sum to
        one. Its residual is how far they are from that.

    Raises:
        Unsuitable: no such layer; a prompt so long that its patterns would fill the memory.

    Assumes:
        Nothing: these are the weights of the sum that the head computes.

    Misleads:
        A weight says how much is read, not what: a token of large weight may carry a value near zero. Many heads rest
        on the first token when they have nothing to do.
    """
    if layer >= model.layers:
        raise Unsuitable(f"{model.name} has layers 0 to {model.layers - 1}, not {layer}.")
    count = model.inputs(sample).shape[1]
    if model.parts.heads * count**2 > CELLS:
        most = int((CELLS / model.parts.heads) ** 0.5)
        raise Unsuitable(f"The prompt has {count} tokens; the patterns of {model.name} can be seen up to {most}.")
    (passes,), _ = looked(model, sample, [Site("pattern", layer)])
    if not passes:
        raise Unsuitable(f"Layer {layer} is skipped, so no one looks anywhere in it; choose another.")
    values = passes[-1].double().cpu().numpy()
    tokens = tuple(model.tokens(sample.text))
    gap = float(np.abs(values.sum(-1) - 1).max())
    return TokenGrid(
        tokens, tokens, values, tuple(f"head {head}" for head in range(len(values))),
        residual=Residual(gap, "how far a row's sum is from one"),
    )  # fmt: skip
