from typing import Annotated

import numpy as np

from interp import directions
from interp.method import DirectionName, Paper, lens
from interp.methods.reading._prompts import no_blocks, streams
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt

PAPER = Paper(
    "Braun, Joschka and Eickhoff, Carsten and Krueger, David and Bahrainian, Seyed Ali and Krasheninnikov, Dmitrii",
    "Understanding (Un)Reliability of Steering Vectors in Language Models",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2505.22637",
)


@lens("Quality of a direction", PAPER, needs=no_blocks, cost=lambda model, **_: (1, 0))
def direction_quality(
    model: LanguageModel, sample: Prompt, *, direction: Annotated[str, DirectionName()] = ""
) -> Table:
    """Show how well a direction tells its examples apart after each layer, and where this prompt lies along it.

        score_l = (<h_l, v_l> / <v_l, v_l> - low_l) / (high_l - low_l)

    low and high are where its negative and its positive examples lie on average.

    Args:
        direction: Which direction; the model's first unless given.

    Returns:
        Table with a row per layer: accuracy on held-out examples, cosine with the difference of means, agreement (mean
        cosine of single pairs with it), its length over that of the stream, and the score of this prompt's last token
        and the mean of its tokens. NaN where its file does not say.

    Raises:
        Unsuitable: no such direction.

    Assumes:
        That held-out examples are drawn like those it was made of; on other texts it may tell less.

    Misleads:
        A direction that tells examples apart need not be what the model acts on: steer along it and see.
    """
    found = directions.load(direction, model)
    resid, _ = streams(model, sample)
    rows = []
    for layer, v in zip(found.layers, found.vectors, strict=True):
        h = resid[layer + 1].double()
        low, high = found.fact("low", layer), found.fact("high", layer)
        known = abs(high - low) > 0
        score = found.score(h, layer) if known else h.new_full((len(h),), float("nan"))
        rows.append(
            [
                *(found.fact(name, layer) for name in ("accuracy", "cosine", "agreement")),
                float(v.norm()) / found.fact("norm", layer), float(score[-1]), float(score.mean()),
            ]
        )  # fmt: skip
    columns = ("accuracy", "cosine", "agreement", "length / stream", "score, last token", "score, mean")
    return Table(tuple(f"layer {layer}" for layer in found.layers), columns, np.array(rows, np.float64))
