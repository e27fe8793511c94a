from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, progress
from interp.hooks import Block
from interp.method import DirectionName, Paper, Range, Unset, lens
from interp.methods.change._steering import Where, at_layer, pushed
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._meters import (
    TEXTS,
    judge,
    mean_divergence,
    ordinary,
    perplexities,
    random_like,
    repetition,
    written,
)
from interp.model import LanguageModel
from interp.results import Curve
from interp.samples import Prompt, TextSet

PAPER = Paper(
    "Tan, Daniel and Chanin, David and Lynch, Aengus and Paige, Brooks and Kanoulas, Dimitrios and Garriga-Alonso, "
    "Adrià and Kirk, Robert",
    "Analysing the Generalisation and Reliability of Steering Vectors",
    2024,
    "NeurIPS",
    "https://arxiv.org/abs/2407.12404",
)
BATCH = 27
"""How many continuations are written at once."""
Measure = Literal["behaviour", "perplexity", "KL", "repetition"]
UNITS = {"behaviour": "behaviour score", "perplexity": "perplexity", "KL": "KL (nats)", "repetition": "repetition"}


def passes(
    model: LanguageModel,
    direction: str,
    steps: int,
    seeds: int,
    n: int,
    measure: Measure,
    texts: TextSet | None,
    **_: Any,
) -> tuple[float, float]:
    """The direction and as many random ones as seeds, at every strength; perplexity draws nothing."""
    if measure == "perplexity":
        return steps * (1 + seeds) * (TEXTS if texts is None else min(TEXTS, len(texts.texts))), 0
    if measure == "behaviour":
        try:
            by = judge(model, direction, None)
        except Unsuitable:
            return 0, 0  # it will be refused
        if by is not None and not by.whole:
            return steps * (1 + seeds), 0
    return 2 * steps * seeds * (n + (measure != "repetition")), 0


@lens("Dose and response", PAPER, needs=no_blocks, cost=passes)
def dose_response(
    model: LanguageModel,
    sample: Prompt,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells its examples best")] = None,
    measure: Measure = "behaviour",
    largest: Annotated[float, Range(0.01, 100)] = 2.0,
    steps: Annotated[int, Range(3, 41)] = 9,
    unit: Literal["shift", "norm"] = "shift",
    where: Where = "all",
    n: Annotated[int, Range(1, 200)] = 24,
    seeds: Annotated[int, Range(1, 16)] = 3,
    temperature: Annotated[float, Range(0, 2)] = 1.0,
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
) -> Curve:
    """Push along a direction ever harder, both ways, and measure what it does, beside random directions as long.

        y(s) = mean_i m(x_i(s)),    x_i(s): continuation drawn with seed i under h <- h + s v  or  h <- h + s r_i

    |r_i| = |v|. The push comes after the interventions in force, as one more of them.

    Args:
        direction: Which direction; the model's first unless given.
        layer: After which layer.
        measure: The behaviour score as among the side effects, the perplexity of ordinary text, the mean KL of the
            continuation from the unchanged model, or the share of repeated runs of 3 tokens in it.
        largest: The strength at either end.
        steps: How many strengths; an odd number has 0 among them.
        unit: One "shift" moves negative examples onto positive ones, one "norm" is the mean length of the stream.
        where: At all tokens, at those of the prompt, or from the last token of the prompt on.
        n: How many tokens to go on by.
        seeds: How many continuations at each strength, and how many random directions, one for each.
        temperature: 0 takes the likeliest token, 1 draws as the model expects.
        texts: Ordinary texts, of which the first 8 are read.
        seed: The first of the seeds; random directions are drawn by it too.

    Returns:
        Curve over the strength: mean, lowest and highest over the seeds, of the direction and of the random ones.

    Raises:
        Unsuitable: no such direction, one that gives no score, or a strength that makes numbers overflow.

    Assumes:
        That a random direction is what steering is to be compared with: what any push of that length does.

    Misleads:
        A few seeds make a narrow band by chance. Where repetition or perplexity rise the score is that of broken text.
        A score of what is expected next is known before anything is drawn, so it has no band.
    """
    found, at, v = at_layer(model, direction, layer)
    scale = 1.0 if unit == "shift" else found.fact("norm", at) / float(v.norm())
    if not np.isfinite(scale):
        raise Unsuitable(f"The file of {found.name} does not say how long the stream is; count in shifts.")
    by = judge(model, found.key, None) if measure == "behaviour" else None
    strengths = np.linspace(-largest, largest, steps)
    begun = by is not None and not by.whole  # what the model is about to write is known before anything is drawn
    alike = 1 if measure == "perplexity" or begun else seeds
    lines = torch.cat([v.expand(alike, -1), random_like(v, seeds, seed)])  # [line, d]
    draws = [*range(alike), *range(seeds)]
    rows = [(line, strength) for line in range(len(lines)) for strength in range(steps)]
    own = ordinary(model, texts) if measure == "perplexity" else None
    size = BATCH if own is None else max(1, BATCH // len(own.ids))
    y = np.zeros((len(lines), steps))
    for some in progress.track(_parts(rows, size), "pushing", -(-len(rows) // size)):
        push = torch.stack([scale * float(strengths[strength]) * lines[line] for line, strength in some])
        if own is not None:
            with pushing(model, at, push.repeat_interleave(len(own.ids), 0), where):
                values = perplexities(model, own, len(some))
        else:
            with pushing(model, at, push, where):
                text = written(
                    model, [sample] * len(some), 1 if begun else n, temperature,
                    [seed + draws[line] for line, _ in some], "continuation" if measure == "KL" else "nothing",
                )  # fmt: skip
            if by is not None:
                values = by.scores(model, sample, text)
            elif measure == "KL":
                values = mean_divergence(model, text)
            else:
                values = torch.tensor([repetition(text.tokens(row)) for row in range(len(some))])
        for (line, strength), value in zip(some, values.tolist(), strict=True):
            y[line, strength] = value
    parts = y[:alike], y[alike:]
    series = [each(part) for part in parts for each in _summaries]
    names = [f"{name}{each}" for name in ("direction", "random") for each in ("", ", lowest", ", highest")]
    what = "shifts" if unit == "shift" else "mean lengths of the stream"
    return Curve(strengths, np.stack(series), tuple(names), f"strength ({what})", UNITS[measure])


_summaries: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda y: y.mean(0),
    lambda y: y.min(0),
    lambda y: y.max(0),
)


def pushing(model: LanguageModel, layer: int, by: Float[Tensor, "row d"], where: Where) -> Block:
    """A block in which each row of a batch is pushed by its own vector."""
    return pushed(model, (layer,), lambda h: h + by.to(h).unsqueeze(1), where, ())


def _parts(rows: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
