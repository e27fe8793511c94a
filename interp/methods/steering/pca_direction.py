from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable
from interp.method import Paper, fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._contrast import Streams, Token, along, fitted
from interp.methods.steering.difference_of_means import passes, shift
from interp.model import LanguageModel
from interp.samples import Contrast

PAPER = Paper(
    "Zou, Andy and Phan, Long and Chen, Sarah and Campbell, James and Guo, Phillip and Ren, Richard and others",
    "Representation Engineering: A Top-Down Approach to AI Transparency",
    2023,
    "arXiv",
    "https://arxiv.org/abs/2310.01405",
)


@fit("Principal direction (RepE)", PAPER, needs=no_blocks, cost=passes)
def pca_direction(
    model: LanguageModel,
    data: Contrast,
    *,
    centre: Literal["pairs", "all"] = "pairs",
    token: Token = "last",
    seed: int = 0,
    name: str = "",
) -> str:
    """Take the direction along which the two sides of pairs lie farthest apart.

        rows: h_i+ - c_i and h_i- - c_i,    c_i = (h_i+ + h_i-) / 2  or  the mean of all
        u = the first right singular vector of the rows,    v = u <u, mean h+ - mean h->

    Rows of both signs keep the shift between the sides; a principal component of differences that are centred first
    would take it out, and find what varies among pairs instead. `cosine` says how far it is from the shift of means.

    Args:
        centre: What is taken off each row: the middle of its pair, or the mean of all examples.
        token: Which token of an example counts.
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction.

    Raises:
        Unsuitable: unequal numbers of examples where rows are centred by pairs, or both sides alike.

    Assumes:
        That the behaviour is what pairs differ in most.

    Misleads:
        Where something else varies more (centred by the mean of all, often the topic), it is that which is found: look
        at the cosine with the difference of means.
    """
    if centre == "pairs" and len(data.positive) != len(data.negative):
        raise Unsuitable(
            f"Pairs need as many texts on both sides, not {len(data.positive)} and {len(data.negative)}; "
            "centre by all, or give pairs."
        )
    make = by_pairs if centre == "pairs" else by_all
    return fitted(model, data, f"PCA, centred by {centre}", make, token, name, centre, seed)


def by_pairs(positive: Streams, negative: Streams) -> Float[Tensor, "layer d"]:
    """Rows centred by the middle of their pair; of folds of unequal size what is over is left out."""
    pairs = min(len(positive), len(negative))
    half = (positive[:pairs].double() - negative[:pairs].double()) / 2
    return _first(torch.cat([half, -half]), shift(positive, negative))


def by_all(positive: Streams, negative: Streams) -> Float[Tensor, "layer d"]:
    """Rows centred by the mean of all examples."""
    rows = torch.cat([positive, negative]).double()
    return _first(rows - rows.mean(0), shift(positive, negative))


def _first(rows: Streams, shift: Float[Tensor, "layer d"]) -> Float[Tensor, "layer d"]:
    units = torch.linalg.svd(rows.transpose(0, 1), full_matrices=False).Vh[:, 0]
    return along(units, shift.double()).float()
