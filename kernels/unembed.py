"""What a residual stream says over the vocabulary, exactly, without ever holding all logits at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 8192
"""How many tokens of the vocabulary are looked at together."""


@dataclass(frozen=True)
class Unembedded:
    """Of the distribution over the vocabulary at each row.

    values, ids: the k largest logits and their tokens, falling. logsumexp: of all logits. entropy, kl: in nats; kl is
    that of the row's distribution from the final one, sum_v p_final (log p_final - log p).
    chosen: the logits of the tokens asked for. rank: how many tokens have a larger logit than each of these.
    """

    values: Float[Tensor, "row k"]
    ids: Int[Tensor, "row k"]
    logsumexp: Float[Tensor, row]
    entropy: Float[Tensor, row]
    kl: Float[Tensor, row]
    chosen: Float[Tensor, "row chosen"]
    rank: Int[Tensor, "row chosen"]


def logits_of(
    hidden: Float[Tensor, "row d"], weight: Float[Tensor, "token d"], bias: Tensor | None, cap: float | None
) -> Float[Tensor, "row token"]:
    """W h + b, squashed to cap tanh(./cap) where the model does so; in float32 at least."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def unembed(
    hidden: Float[Tensor, "row d"],
    weight: Float[Tensor, "token d"],
    bias: Float[Tensor, token] | None = None,
    *,
    final: Float[Tensor, "row d"],
    k: int = 5,
    chosen: tuple[int, ...] = (),
    cap: float | None = None,
    chunk: int = CHUNK,
) -> Unembedded:
    """Go through the vocabulary once, `chunk` tokens at a time.

    Sums over the vocabulary are kept relative to the largest logit so far and rescaled when a larger one comes:

        m <- max(m, z);   s <- s exp(m_old - m) + sum exp(z - m);   likewise  u: sum exp(z - m) z
        lse = m + log s;  entropy = lse - u / s;  kl = sum p_final (z_final - z) - lse_final + lse

    Args:
        final: what the last layer has at the same rows, or [position, d] where rows are whole repeats of positions
            (layers one after another): its logits are then made once for each position.
        chosen: tokens whose logit and rank are wanted.
    """
    rows, positions, vocabulary = len(hidden), len(final), len(weight)
    repeats = rows // positions
    k = min(k, vocabulary)
    # not weight @ hidden for these few alone: another shape rounds otherwise, and a token must not outrank itself
    wanted = hidden.new_zeros(rows, len(chosen), dtype=torch.float32)
    for start in sorted({token // chunk * chunk for token in chosen}):
        part = slice(start, start + chunk)
        logits = logits_of(hidden, weight[part], None if bias is None else bias[part], cap)
        for place, token in enumerate(chosen):
            if start <= token < start + chunk:
                wanted[:, place] = logits[:, token - start]
    rank = torch.zeros(rows, len(chosen), dtype=torch.long, device=weight.device)
    values = hidden.new_full((rows, 0), 0, dtype=torch.float32)
    ids = torch.zeros(rows, 0, dtype=torch.long, device=weight.device)
    low = torch.finfo(torch.float32).min
    top, total, weighted = (hidden.new_full((rows,), start, dtype=torch.float32) for start in (low, 0, 0))
    top_f, total_f = (hidden.new_full((positions,), start, dtype=torch.float32) for start in (low, 0))
    cross = hidden.new_zeros(rows, dtype=torch.float32)
    for start in range(0, vocabulary, chunk):
        part = slice(start, start + chunk)
        own_bias = None if bias is None else bias[part]
        logits = logits_of(hidden, weight[part], own_bias, cap)
        for place in range(len(chosen)):
            rank[:, place] += (logits > wanted[:, place, None]).sum(1)
        best = logits.topk(min(k, logits.shape[1]), 1)
        values, ids = torch.cat([values, best.values], 1), torch.cat([ids, best.indices + start], 1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
        values, ids = values.gather(1, order), ids.gather(1, order)

        last = logits_of(final, weight[part], own_bias, cap)
        new_f = torch.maximum(top_f, last.amax(1))
        fade_f = (top_f - new_f).exp()
        chances = (last - new_f[:, None]).exp_()
        total_f, top_f = total_f * fade_f + chances.sum(1), new_f
        ahead = (last[None] - logits.view(repeats, positions, -1)).mul_(chances).sum(2).flatten()
        cross = cross * fade_f.repeat(repeats) + ahead

        new = torch.maximum(top, best.values[:, 0])
        fade = (top - new).exp()
        sizes = (logits - new[:, None]).exp_()
        total = total * fade + sizes.sum(1)
        weighted = weighted * fade + sizes.mul_(logits).sum(1)
        top = new
    logsumexp = top + total.log()
    final_logsumexp = (top_f + total_f.log()).repeat(repeats)
    kl = cross / total_f.repeat(repeats) - final_logsumexp + logsumexp
    entropy = logsumexp - weighted / total
    return Unembedded(values, ids, logsumexp, entropy.clamp(min=0), kl.clamp(min=0), wanted, rank)


def unembed_dense(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    final: Tensor,
    k: int = 5,
    chosen: tuple[int, ...] = (),
    cap: float | None = None,
) -> Unembedded:
    """The same, with all logits at hand: the reference."""
    logits = logits_of(hidden, weight, bias, cap)
    last = logits_of(final, weight, bias, cap).repeat(len(hidden) // len(final), 1)
    best = logits.topk(min(k, len(weight)), 1)
    log_p, log_f = logits.log_softmax(1), last.log_softmax(1)
    wanted = logits[:, list(chosen)]
    return Unembedded(
        best.values, best.indices, logits.logsumexp(1), -(log_p.exp() * log_p).sum(1),
        (log_f.exp() * (log_f - log_p)).sum(1), wanted, (logits[:, None] > wanted[:, :, None]).sum(2),
    )  # fmt: skip
