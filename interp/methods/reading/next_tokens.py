from typing import Annotated

import numpy as np

from interp.method import Paper, Range, Unset, lens
from interp.methods.reading._prompts import last_logits, position_of
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt

PAPER = Paper(
    "Bengio, Yoshua and Ducharme, Réjean and Vincent, Pascal and Jauvin, Christian",
    "A Neural Probabilistic Language Model",
    2003,
    "JMLR",
    "https://www.jmlr.org/papers/v3/bengio03a.html",
)


@lens("Next tokens", PAPER, cost=lambda model, **_: (1, 0))
def next_tokens(
    model: LanguageModel,
    sample: Prompt,
    *,
    position: Annotated[int | None, Unset("the last token")] = None,
    top: Annotated[int, Range(1, 100)] = 10,
) -> Table:
    """Read which tokens the model expects next.

        p_v = exp(z_v) / sum_v' exp(z_v')

    Args:
        position: After which token, counted from 0.
        top: How many of the likeliest tokens to list.

    Returns:
        Table with a row per token, the likeliest first: probability, logit, and the token's number.

    Raises:
        Unsuitable: the prompt is shorter.

    Assumes:
        That the model was trained to continue texts like this one.

    Misleads:
        The probability is shared among all ways to go on; a low one need not mean that the model does not know.
    """
    length = model.inputs(sample).shape[1]
    at = position_of(length, position)
    logits = last_logits(model, sample, None if at == length - 1 else at).double()
    best = logits.topk(min(top, len(logits)))
    chances = logits.softmax(0)[best.indices]
    values = np.stack([each.double().cpu().numpy() for each in (chances, best.values, best.indices)], 1)
    rows = tuple(model.token_text(index) for index in best.indices.tolist())
    return Table(rows, ("probability", "logit", "token"), values)
