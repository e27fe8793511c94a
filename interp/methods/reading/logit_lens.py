from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from interp.method import Paper, Range, lens
from interp.methods.reading._prompts import RESIDUALS, layer_names, no_blocks, streams
from interp.model import LanguageModel
from interp.results import Residual, TokenGrid
from interp.samples import Prompt, Target
from kernels.unembed import unembed

PAPER = Paper(
    "nostalgebraist",
    "interpreting GPT: the logit lens",
    2020,
    "LessWrong",
    "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
)
CHANCE, ENTROPY, KL = "probability of the likeliest", "entropy (nat)", "KL from the output (nat)"


@lens("Logit lens", PAPER, needs=no_blocks, cost=lambda model, **_: (1, 0))
def logit_lens(
    model: LanguageModel,
    sample: Prompt,
    *,
    target: Target = Target(),
    top: Annotated[int, Range(1, 50)] = 5,
) -> TokenGrid:
    """Read the residual stream after every layer as if it were the last, to see what the model would say there.

        p_l = softmax(W_U norm(x_l) + b)
        KL_l = sum_v p_Lv (log p_Lv - log p_lv),    H_l = - sum_v p_lv log p_lv

    W_U, b and norm are the model's own unembedding and final norm. Sums over the vocabulary are exact, and are made
    without holding all logits at once.

    Args:
        target: A token whose probability and rank to follow; the model's first guess after the prompt unless given.
        top: How many of the likeliest tokens to keep for each cell.

    Returns:
        TokenGrid, a row per layer and a column per token: probability of the likeliest token, entropy, KL from the
        model's output, probability and rank (0 is first) of the target. Its residual is how far the last row is from
        what the model says.

    Raises:
        Unsuitable: the target is no single token.

    Assumes:
        That a layer writes in the coordinates that the unembedding reads. Nothing makes early layers do so; the tuned
        lens learns the change of coordinates.

    Misleads:
        In some models early layers look confident of nonsense, or repeat the input, without the network using either.
    """
    return read_out(model, sample, target, top, lambda layer, resid: resid)


def read_out(
    model: LanguageModel, sample: Prompt, target: Target, top: int, translate: Callable[[int, Tensor], Tensor]
) -> TokenGrid:
    """The grid of what each layer's residual stream says after `translate(layer, stream)`; layer -1: before the first.

    The last layer is never translated.
    """
    resid, given = streams(model, sample)
    with torch.no_grad():
        resid = [translate(layer - 1, each) for layer, each in enumerate(resid[:-1])] + resid[-1:]
        hidden = model.final(torch.stack(resid)).flatten(0, 1)
        final = hidden[-len(resid[-1]) :]
        weight, bias, cap = model.unembedding
        own = unembed(final[-1:], weight, bias, final=final[-1:], k=1, cap=cap)
        index = model.token_index(target) if target.name is not None else int(own.ids)
        found = unembed(hidden, weight, bias, final=final, k=top, chosen=(index,), cap=cap)
        # the model's own first probability against the last row's
        gap = (
            (given.float().log_softmax(0)[own.ids[0]].exp() - (own.values - own.logsumexp[:, None])[0].exp())
            .abs()
            .max()
        )
    shape = (len(resid), -1)
    chances = (found.values - found.logsumexp[:, None]).exp()
    target_chance = (found.chosen[:, 0] - found.logsumexp).exp()
    sheets = (chances[:, 0], found.entropy, found.kl, target_chance, found.rank[:, 0])
    word = model.token_text(index)
    names: dict[int, str] = {}
    texts = [names.setdefault(each, model.token_text(each)) for each in found.ids.flatten().tolist()]
    width, columns = found.ids.shape[1], len(final)
    cells = [tuple(texts[at : at + width]) for at in range(0, len(texts), width)]
    return TokenGrid(
        (RESIDUALS, *layer_names(model)),
        tuple(model.tokens(sample.text)),
        np.stack([each.double().cpu().numpy().reshape(shape) for each in sheets]),
        (CHANCE, ENTROPY, KL, f"probability of {word!r}", f"rank of {word!r}"),
        tuple(tuple(cells[row * columns : (row + 1) * columns]) for row in range(len(resid))),
        chances.double().cpu().numpy().reshape(len(resid), columns, width),
        residual=Residual(float(gap), "how far the last row's first probability is from the model's own"),
    )
