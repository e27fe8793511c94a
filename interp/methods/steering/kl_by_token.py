from typing import Annotated, Any

import numpy as np

from interp import hooks
from interp.method import Range, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._meters import continued, divergence, read
from interp.methods.steering.side_effects import PAPER
from interp.model import LanguageModel
from interp.results import TokenScores
from interp.samples import Prompt


def passes(model: LanguageModel, n: int, **_: Any) -> tuple[float, float]:
    """The continuation, and it read once."""
    return n + 1, 0


@lens("KL by token", PAPER, needs=no_blocks, cost=passes)
def kl_by_token(
    model: LanguageModel,
    sample: Prompt,
    *,
    n: Annotated[int, Range(1, 200)] = 24,
    temperature: Annotated[float, Range(0, 2)] = 1.0,
    seed: int = 0,
) -> TokenScores:
    """Measure at each token of the prompt and of its continuation how far what is expected there has moved.

        KL_t = sum_v p_v log(p_v / q_v),    p, q: next token after x_1 ... x_(t-1), plain and changed

    Args:
        n: How many tokens to go on by.
        temperature: 0 takes the likeliest token, 1 draws as the model expects.
        seed: Number that fixes what is drawn.

    Returns:
        A score for each token of the prompt and of the continuation, in nats; 0 for the first, which nothing expects.
        The end of the text is the last of them, where it was reached. `score` is the mean over all but the first.

    Raises:
        Unsuitable: no room after the prompt.

    Assumes:
        That a text the changed model wrote is one on which the two can be compared.

    Misleads:
        It is high where the plain model was sure of something else, and low where both are unsure, whatever was drawn.
    """
    own = continued(model, sample, n, temperature, seed)
    assert own.logits is not None
    # where nothing is in force, two ways to compute the same would look like a change
    plain = read(model, own, (), "all")[0] if hooks.in_force() else own.logits
    values = np.concatenate([[0.0], divergence(plain[0], own.logits[0]).cpu().numpy()])
    tokens, whole = model.tokens(sample.text), ""
    said = own.tokens(0)
    for index in range(len(said)):
        longer = model.tokenizer.decode(said[: index + 1], clean_up_tokenization_spaces=False)
        longer = whole if longer.endswith("\ufffd") and index + 1 < len(said) else longer
        tokens.append(longer[len(whole) :])
        whole = longer
    if len(values) > len(tokens):
        tokens.append(model.token_text(model.tokenizer.eos_token_id))
    return TokenScores(tuple(tokens), values, "what comes next", "nats", float(values[1:].mean()))
