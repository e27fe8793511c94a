from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import directions, progress, store
from interp.directions import Direction
from interp.method import Paper, Range, Unset, fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._answers import Answered, answered, kept
from interp.methods.steering._contrast import judged, streams
from interp.model import LanguageModel, gradient
from interp.samples import Contrast
from interp.sites import Site

PAPER = Paper(
    "Wu, Zhengxuan and Arora, Aryaman and Wang, Zheng and Geiger, Atticus and Jurafsky, Dan and Manning, "
    "Christopher D. and Potts, Christopher",
    "ReFT: Representation Finetuning for Language Models",
    2024,
    "NeurIPS",
    "https://arxiv.org/abs/2404.03592",
)
BATCH = 8
HELD = 5
"""Every fifth pair is held out."""


def passes(model: LanguageModel, sample: Any = None, steps: int = 100, **_: Any) -> tuple[float, float]:
    """Every text once for its stream, twice a fifth of them to judge, and a batch of both answers a step."""
    pairs = len(sample.positive) if isinstance(sample, Contrast) else 50
    return 2 * pairs + 4 * pairs / HELD + steps * 2 * min(BATCH, pairs), steps


@fit("Trained direction (ReFT, rank 1)", PAPER, needs=no_blocks, cost=passes)
def reft_direction(
    model: LanguageModel,
    data: Contrast,
    *,
    layer: Annotated[int | None, Range(0, 512), Unset("the middle one")] = None,
    steps: Annotated[int, Range(1, 5000)] = 100,
    rate: Annotated[float, Range(1e-5, 10)] = 0.05,
    penalty: Annotated[float, Range(0, 1000)] = 0.1,
    seed: int = 0,
    name: str = "",
) -> str:
    """Train a vector that, added to the stream after a layer, makes the positive answers likelier than the negative.

        m_i(v) = log p(y_i+ | x_i; h + v) - log p(y_i- | x_i; h + v)
        v = argmin mean_i log(1 + e^(-m_i(v))) + penalty |v|^2 / (E|h|)^2,    by Adam, from 0

    LoReFT of rank one is h + R^T (W h + b - R h). With W = R nothing of h is put aside, R^T b is a vector, and what is
    learned can be pushed, scaled and taken along like any other direction. Pairs are one prompt with two answers, v is
    added at all tokens, and every fifth pair is held out.

    Args:
        layer: After which layer.
        steps: How many steps of learning, of eight pairs each.
        rate: Adam's learning rate, in the stream's mean length over the root of its width.
        penalty: Weight of the squared length.
        seed: Number that fixes which pairs are held out, and the order of the others.
        name: What the direction is called.

    Returns:
        The key of the direction.

    Raises:
        Unsuitable: pairs that are not one prompt with two answers; a layer the model has not.

    Assumes:
        That one vector, the same at all tokens, does it.

    Misleads:
        It is made to move these answers, so it may do so by a way the model never takes; its cosine with the
        difference of means is often low. A longer answer is less likely to begin with, so give answers of about one
        length.
    """
    pairs = answered(model, data)
    at = model.layers // 2 if layer is None else layer
    model.resolve(Site("resid_post", at))
    settings = (at, steps, rate, penalty, seed, *([name] if name else []))
    key = store.key_of("direction", directions.VERSION, "ReFT", model.digest, data.positive, data.negative, settings)

    def make() -> Direction:
        sides = [streams(model, side, "last")[:, at : at + 1] for side in (data.positive, data.negative)]
        length = float(torch.cat(sides).norm(dim=2).mean())
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(pairs), generator=generator).tolist()
        held, rest = order[: len(pairs) // HELD], order[len(pairs) // HELD :]
        unit = length / sides[0].shape[2] ** 0.5
        v = torch.zeros(sides[0].shape[2], device=model.device)
        moment, square, losses = torch.zeros_like(v), torch.zeros_like(v), []
        for step in progress.track(range(1, steps + 1), "training a direction"):
            some = [pairs[rest[each]] for each in torch.randperm(len(rest), generator=generator)[:BATCH].tolist()]
            leaf = v.clone().requires_grad_()
            margin = margins(model, some, at, leaf * unit)
            loss = torch.nn.functional.softplus(-margin).mean() + penalty * (leaf * unit / length).square().sum()
            (slope,) = gradient(loss, [leaf])
            losses.append(float(loss.detach()))
            moment, square = 0.9 * moment + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            v = v - rate * (moment / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        vector = (v * unit)[None].float()
        facts = judged(sides[0], sides[1], lambda *_: vector, vector, seed)
        # v was made of the others, so the held-out ones alone tell what it is worth
        facts["accuracy"] = np.full(1, np.nan)
        if len(held) > 1:
            facts["accuracy"] = judged(sides[0][held], sides[1][held], lambda *_: vector, vector, seed)["accuracy"]
        with torch.no_grad():
            before, after = (
                float(torch.cat([margins(model, [pairs[each]], at, w) for each in held]).mean()) if held else None
                for w in (vector[0] * 0, vector[0])
            )
        about = {"positive": len(pairs), "negative": len(pairs), "seed": seed, "token": "last", "held_out": len(held),
                 "examples": [data.positive[0][:200], data.negative[0][:200]],
                 "margin": {"before": before, "after": after},
                 "loss": {"first": losses[0], "last": losses[-1]}}  # fmt: skip
        return Direction(name or f"trained on {len(pairs)} pairs", "trained (ReFT, rank 1)", model.name, model.digest,
                         (at,), vector.cpu(), facts, about)  # fmt: skip

    return kept(key, make)


def margins(model: LanguageModel, pairs: list[Answered], layer: int, v: Float[Tensor, d]) -> Float[Tensor, pair]:
    """log p(y+ | x) - log p(y- | x) of whole answers, with v added after a layer at all tokens."""
    rows = [(ids, pair.shared) for pair in pairs for ids in (pair.positive, pair.negative)]
    longest = max(len(ids) for ids, _ in rows)
    padded = torch.stack([torch.cat([ids.new_full((longest - len(ids),), -1), ids]) for ids, _ in rows])
    answers = torch.tensor([len(ids) - shared for ids, shared in rows], device=padded.device)
    keep = int(answers.max())
    with model.edit({Site("resid_post", layer): lambda h: h + v.to(h)}):
        logits = model(padded, keep=keep + 1)[:, :-1].float()
    ends = padded[:, -keep:]
    each = logits.log_softmax(-1).gather(2, ends.clamp(min=0)[..., None])[..., 0]
    inside = torch.arange(keep, device=padded.device) >= keep - answers[:, None]
    whole = torch.where(inside, each, torch.zeros_like(each)).sum(1)
    return whole[0::2] - whole[1::2]
