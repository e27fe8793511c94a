from typing import Annotated, Any

import numpy as np

from interp import hooks
from interp.method import DirectionName, Paper, Range, Unset, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._meters import (
    TEXTS,
    continued,
    distinct,
    divergence,
    judge,
    perplexity,
    read,
    repetition,
)
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, TextSet

PAPER = Paper(
    "Stickland, Asa Cooper and Lyzhov, Alexander and Pfau, Jacob and Mahdi, Salsabila and Bowman, Samuel R.",
    "Steering Without Side Effects: Improving Post-Deployment Control of Language Models",
    2024,
    "NeurIPS Workshop on Safe Generative AI",
    "https://arxiv.org/abs/2406.15518",
)


def passes(model: LanguageModel, n: int, **_: Any) -> tuple[float, float]:
    """The continuation read as well, and ordinary texts; without what is kept of the unchanged model."""
    return n + 1 + TEXTS, 0


@lens("Side effects", PAPER, needs=no_blocks, cost=passes)
def side_effects(
    model: LanguageModel,
    sample: Prompt,
    *,
    n: Annotated[int, Range(1, 200)] = 24,
    temperature: Annotated[float, Range(0, 2)] = 1.0,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[
        int | None, Range(0, 512), Unset("the last, or where a direction of whole texts tells best")
    ] = None,
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
) -> Table:
    """Measure what the interventions in force do to this prompt and its continuation, and what they cost elsewhere.

        KL_t = sum_v p_v log(p_v / q_v);    perplexity = exp(-mean_t log q(x_t));    h' = changed stream
        repetition = 1 - distinct_3;    distinct_n = different runs of n tokens / runs of n tokens

    p is what the unchanged model expects as the next token, q what the changed one does, of the same text. Perplexity
    is of ordinary texts: the first half of each stands for a prompt, the second for what is written after it. The
    behaviour score is 0 as in the direction's negative examples and 1 as in its positive ones. A direction made of last
    tokens tells what is expected next: 0 and 1 are what the unchanged model expects where the last token of the prompt
    is held at these scores. One made of means over texts reads the continuation, by the unchanged model. So a push is
    not taken for its own effect.

    Args:
        n: How many tokens to go on by.
        temperature: 0 takes the likeliest token, 1 draws as the model expects.
        direction: Which direction scores the behaviour; the model's first unless given.
        layer: After which layer it is read.
        texts: Ordinary texts, of which the first 8 are read, 48 tokens of each at most.
        seed: Number that fixes what is drawn; the unchanged model's continuation is drawn by the same.

    Returns:
        Table with a row per quantity, of the plain and of the changed model: mean KL over the tokens of the prompt and
        of the continuation, and the largest; perplexity and its ratio; |h'| / |h| and |h' - h| / |h| after the last
        layer; repetition, distinct-1 and distinct-2 of the continuation; its behaviour score, if a direction is known.

    Raises:
        Unsuitable: no room after the prompt, texts of no two tokens, or a direction that gives no score.

    Assumes:
        That what is drawn once stands for what the model writes; look at several seeds before you believe a difference.

    Misleads:
        Low KL on this prompt says nothing of others, and fluent text can be wrong: no meter here reads what it says.
    """
    by = judge(model, direction, layer)
    own = continued(model, sample, n, temperature, seed)
    with hooks.alone():
        plain = continued(model, sample, n, temperature, seed)
        plain_perplexity = perplexity(model, texts)
    assert own.logits is not None and own.stream is not None
    logits, stream = own.logits, own.stream
    if hooks.in_force():  # or two ways to compute the same would look like a change
        logits, (stream,) = read(model, own, (model.layers - 1,), "all")
    kl = divergence(logits[0], own.logits[0])
    prompt = own.start - 1
    drawn = int(own.drawn.sum())
    h, h_changed = stream[0, : kl.shape[0]].double(), own.stream[0].double()
    length = h.norm(dim=1).clamp(min=1e-30)
    cost = perplexity(model, texts)
    said = [each.tokens(0) for each in (plain, own)]
    rows: dict[str, tuple[float, float]] = {
        "KL, prompt": (0.0, float(kl[:prompt].mean()) if prompt else 0.0),
        "KL, continuation": (0.0, float(kl[prompt : prompt + drawn].mean())),
        "KL, largest": (0.0, float(kl.max())),
        "perplexity": (plain_perplexity, cost),
        "perplexity ratio": (1.0, cost / plain_perplexity),
        "stream length": (1.0, float((h_changed.norm(dim=1) / length).mean())),
        "stream moved by": (0.0, float(((h_changed - h).norm(dim=1) / length).mean())),
        "repetition": (repetition(said[0]), repetition(said[1])),
        "distinct-1": (distinct(said[0], 1), distinct(said[1], 1)),
        "distinct-2": (distinct(said[0], 2), distinct(said[1], 2)),
    }
    if by is not None:
        rows["behaviour"] = (float(by.scores(model, sample, plain)[0]), float(by.scores(model, sample, own)[0]))
    return Table(tuple(rows), ("plain", "changed"), np.array(list(rows.values())), units="KL in nats")
