"""What a weighted sum of attention weights becomes when scores are replaced, exactly: a whole row, or a single key."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def query_change(
    scores: Float[Tensor, "*batch query key"], new: Float[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch query key"]:
    """softmax(new) - softmax(scores), in float64: every query's row is replaced, each for itself."""
    return new.double().softmax(-1) - scores.double().softmax(-1)


def key_change(
    scores: Float[Tensor, "*batch query key"], new: Float[Tensor, "*batch query key"], weights: Tensor
) -> Float[Tensor, "*batch query key"]:
    """For each key j alone: what sum_i w_ti p_ti changes by at query t when only s_tj is replaced, [query, key].

        p'_tj = sigmoid(s'_tj - lse_(i /= j) s_ti),    p'_ti = p_ti (1 - p'_tj) / (1 - p_tj)  for i /= j
        sum_i w_ti (p'_ti - p_ti) = (p'_tj - p_tj) (w_tj - sum_(i /= j) w_ti p_ti / (1 - p_tj))

    O(query key) instead of O(query key^2). Only the largest score of a row can have p > 1/2, so it alone loses digits
    in 1 - p; its sums over the other keys are taken without it.
    """
    scores, new, weights = scores.double(), new.double(), weights.double()
    pattern = scores.softmax(-1)
    top = scores.argmax(-1, keepdim=True)
    without = scores.scatter(-1, top, -torch.inf)
    # a row of one visible key has nothing else to go to
    alone = without.amax(-1, keepdim=True) == -torch.inf
    without = torch.where(alone, 0.0, without)
    rest = (scores.logsumexp(-1, keepdim=True) + torch.log1p(-pattern.scatter(-1, top, 0.0))).scatter(
        -1, top, without.logsumexp(-1, keepdim=True)
    )
    mean = ((pattern * weights).sum(-1, keepdim=True) - pattern * weights) / (1 - pattern.scatter(-1, top, 0.0))
    mean = mean.scatter(-1, top, (without.softmax(-1) * weights).sum(-1, keepdim=True))
    change = (torch.sigmoid(new - rest) - pattern) * (weights - mean)
    return torch.where(alone, 0.0, change)


def key_change_dense(
    scores: Float[Tensor, "query key"], new: Float[Tensor, "query key"], weights: Tensor
) -> Float[Tensor, "query key"]:
    """The reference: one key's score after the other is replaced, and the softmax taken again."""
    scores, new, weights = scores.double(), new.double(), weights.double()
    found = torch.zeros_like(scores)
    before = (scores.softmax(-1) * weights).sum(-1)
    for key in range(scores.shape[-1]):
        other = scores.clone()
        other[..., key] = new[..., key]
        found[..., key] = (other.softmax(-1) * weights).sum(-1) - before
    return found
