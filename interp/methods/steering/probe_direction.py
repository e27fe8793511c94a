from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, Range, fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._contrast import Streams, Token, along, fitted
from interp.methods.steering.difference_of_means import passes, shift
from interp.model import LanguageModel
from interp.samples import Contrast

PAPER = Paper(
    "Alain, Guillaume and Bengio, Yoshua",
    "Understanding intermediate layers using linear classifier probes",
    2017,
    "ICLR Workshop",
    "https://arxiv.org/abs/1610.01644",
)
STEPS = 50


@fit("Linear probe", PAPER, needs=no_blocks, cost=passes)
def probe_direction(
    model: LanguageModel,
    data: Contrast,
    *,
    kind: Literal["logistic", "ridge"] = "logistic",
    penalty: Annotated[float, Range(1e-6, 1e6)] = 1.0,
    token: Token = "last",
    seed: int = 0,
    name: str = "",
) -> str:
    """Take the weights of a linear classifier that tells the two sides apart.

        ridge       w = argmin |X w - y|^2 + penalty |w|^2
        logistic    w = argmin sum log(1 + e^(-y <x, w>)) + penalty |w|^2 / 2
        v = w <w, mean h+ - mean h-> / |w|^2,    y = +1, -1;    x: h about the middle of the means, over its mean length

    Args:
        kind: Logistic regression, or ridge regression on +1 and -1 (a concept vector).
        penalty: Weight of the squared length of w.
        token: Which token of an example counts.
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction.

    Raises:
        Unsuitable: an empty side, or both sides alike.

    Assumes:
        Examples enough: with fewer than the stream is wide the penalty decides much.

    Misleads:
        What tells best is not what the model uses: a probe may lean on a direction that does nothing when it is pushed.
    """
    make = (lambda p, n: logistic(p, n, penalty)) if kind == "logistic" else (lambda p, n: ridge(p, n, penalty))
    return fitted(model, data, f"{kind} probe", make, token, name, (kind, penalty), seed)


def rows(positive: Streams, negative: Streams) -> tuple[Float[Tensor, "layer example d"], Float[Tensor, example]]:
    """Examples about the middle of the two means, in units of their mean length, and +1 or -1."""
    x = torch.cat([positive, negative]).double().transpose(0, 1)
    middle = (positive.double().mean(0) + negative.double().mean(0)) / 2
    x = x - middle[:, None]
    y = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double().to(x.device)
    return x / x.norm(dim=2).mean(1)[:, None, None].clamp(min=1e-30), y


def ridge(positive: Streams, negative: Streams, penalty: float) -> Float[Tensor, "layer d"]:
    """Ridge regression in closed form, by examples where they are fewer than directions."""
    x, y = rows(positive, negative)
    kernel = x @ x.transpose(1, 2) + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    w = (x.transpose(1, 2) @ torch.linalg.solve(kernel, y.expand(len(x), -1)[..., None]))[..., 0]
    return along(w, shift(positive, negative).double()).float()


def logistic(positive: Streams, negative: Streams, penalty: float) -> Float[Tensor, "layer d"]:
    """Logistic regression by Newton's method with halved steps, in the span of the examples: w = X^T a."""
    x, y = rows(positive, negative)
    gram = x @ x.transpose(1, 2)
    a = x.new_zeros(x.shape[:2])

    def loss(a: Tensor) -> Tensor:
        z = (gram @ a[..., None])[..., 0]
        return torch.nn.functional.softplus(-y * z).sum(1) + penalty / 2 * (a * z).sum(1)

    now = loss(a)
    for _ in range(STEPS):
        z = (gram @ a[..., None])[..., 0]
        p = torch.sigmoid(-y * z)
        weight = (p * (1 - p)).clamp(min=1e-12)
        # a + step solves (W K + penalty) a' = W z + y p, the Newton step in the span
        matrix = weight[..., None] * gram + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        step = torch.linalg.solve(matrix, (weight * z + y * p)[..., None])[..., 0] - a
        size = x.new_ones(len(x), 1)
        for _ in range(30):
            tried = loss(a + size * step)
            worse = tried > now + 1e-12
            if not worse.any():
                break
            size = torch.where(worse[:, None], size / 2, size)
        a, before, now = a + size * step, now, loss(a + size * step)
        if bool((before - now <= 1e-12 * before.abs()).all()):
            break
    w = (x.transpose(1, 2) @ a[..., None])[..., 0]
    return along(w, shift(positive, negative).double()).float()
