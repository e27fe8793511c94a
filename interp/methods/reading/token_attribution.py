from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, progress
from interp.method import Paper, Range, lens
from interp.methods.attribution import _multipliers
from interp.methods.attribution._pixels import completeness
from interp.methods.reading._prompts import chosen, last_logits
from interp.model import LanguageModel, gradient
from interp.results import TokenScores
from interp.samples import Prompt, Target
from interp.sites import Site

PAPER = Paper(
    "Atanasova, Pepa and Simonsen, Jakob Grue and Lioma, Christina and Augenstein, Isabelle",
    "A Diagnostic Study of Explainability Techniques for Text Classification",
    2020,
    "EMNLP",
    "https://arxiv.org/abs/2009.13295",
)
By = Literal["integrated gradients", "DeepLIFT", "gradient x input", "leave one out"]
Baseline = Literal["mean embedding", "zeros"]
BATCH = 16
"""How many variants of the prompt run together; it changes no result beyond rounding."""


def passes(model: LanguageModel, by: By, steps: int, **_: Any) -> tuple[float, float]:
    """Of a prompt of 16 tokens, for leaving each out."""
    return {
        "DeepLIFT": (3, 1), "integrated gradients": (steps + 2, -(-steps // BATCH)), "gradient x input": (2, 1),
        "leave one out": (17, 0),
    }[by]  # fmt: skip


@lens("Token attribution", PAPER, cost=passes)
def token_attribution(
    model: LanguageModel,
    sample: Prompt,
    *,
    target: Target = Target(),
    foil: Target = Target(),
    by: By = "integrated gradients",
    baseline: Baseline = "mean embedding",
    steps: Annotated[int, Range(1, 300)] = 32,
) -> TokenScores:
    """Share the next token's logit among the tokens of the prompt.

        DeepLIFT:              C_i = sum_d m_id (e_id - e0_d),    sum_i C_i = S(e) - S(e0)
        integrated gradients:  C_i = sum_d (e_id - e0_d) 1/n sum_k dS/de_id (e0 + (k - 1/2)/n (e - e0))
        gradient x input:      C_i = sum_d (e_id - e0_d) dS/de_id
        leave one out:         C_i = S(e) - S(e with e_i <- e0)

    S is the target's logit after the last token, less the foil's where one is given; e are the token embeddings.

    Args:
        target: The token to explain; the model's first guess unless given.
        foil: A token to compare with: why the target rather than this one.
        by: How the logit is shared. DeepLIFT and integrated gradients add up to the difference from the baseline.
        baseline: What a token that says nothing is like; the vocabulary's mean, or zeros.
        steps: For integrated gradients, points along the way.

    Returns:
        TokenScores in logits; its residual is how far the sum is from the difference.

    Raises:
        Unsuitable: no such token; a function in the model for which DeepLIFT has no rule; for DeepLIFT, zeros before
            an RMS norm.

    Assumes:
        That the baseline is what the absence of a word looks like. All tokens at the baseline together make a text
        that the model has never seen.

    Misleads:
        Tokens share one context: what is given to a word may be due to two words together. Special tokens at the start
        often get much, as attention rests there.
    """
    logits = last_logits(model, sample)
    index, other, name = chosen(model, target, foil, logits)
    ids = model.inputs(sample)
    with model.record(["input"]) as found:
        model(ids, keep=1)
    embeddings = found["input"].detach()
    if baseline == "zeros":
        start = torch.zeros_like(embeddings)
    else:
        start = mean_embedding(model).to(embeddings).expand_as(embeddings)

    def score(e: Float[Tensor, "batch position d"]) -> Float[Tensor, batch]:
        with model.edit({Site("input"): lambda _: e}):
            out = model(ids.expand(len(e), -1), keep=1)[:, -1]
        return out[:, index] - out[:, other] if other is not None else out[:, index]

    def ends() -> tuple[float, float]:
        with torch.no_grad():
            high, low = score(torch.cat([embeddings, start])).double().tolist()
        return high, low

    if by == "leave one out":
        values, residual = _leave_one_out(score, embeddings, start), None
    elif by == "gradient x input":
        leaf = embeddings.clone().requires_grad_()
        (slope,) = gradient(score(leaf).sum(), [leaf])
        values, residual = ((embeddings - start) * slope).double().sum(-1)[0], None
    elif by == "integrated gradients":
        values = _integrated(score, embeddings, start, steps)
        high, low = ends()
        residual = completeness(float(values.sum()), high - low, "tokens", "prompt")
    else:
        at = _multipliers.at_reference(lambda e: score(e)[:, None], start)
        maps, scores = _multipliers.contributions(lambda e: score(e)[:, None], embeddings, at, 0, "rescale")
        values = maps.double().sum(-1)[0]
        difference = float(scores[0].double() - at.scores[0, 0].double())
        residual = completeness(float(values.sum()), difference, "tokens", "prompt")
        if not residual.value < 0.01:
            raise Unsuitable(
                f"DeepLIFT's multipliers run out of precision between this baseline and the prompt in {model.name} "
                "(an RMS norm of zeros has no scale); choose the mean embedding, or integrated gradients."
            )
    whole = float(logits[index] - logits[other]) if other is not None else float(logits[index])
    return TokenScores(
        tuple(model.tokens(sample.text)), values.cpu().numpy(), name, "logit", whole, residual=residual
    )  # fmt: skip


def mean_embedding(model: LanguageModel) -> Float[Tensor, d]:
    """The mean over the vocabulary, as the site `input` has it (Gemma scales its embeddings)."""

    def make() -> Tensor:
        table: Any = model.network.get_submodule(model.parts.embedding)
        scale = getattr(table, "embed_scale", 1.0)
        return table.weight.double().mean(0) * float(scale)

    return model.cached(("mean embedding",), make)


def _leave_one_out(score: Callable[[Tensor], Tensor], e: Tensor, start: Tensor) -> Float[Tensor, position]:
    count = e.shape[1]
    found = []
    with torch.no_grad():
        whole = score(e).double()
        for first in progress.track(range(0, count, BATCH), "leaving out each token"):
            places = torch.arange(first, min(first + BATCH, count), device=e.device)
            without = e.repeat(len(places), 1, 1)
            rows = torch.arange(len(places), device=e.device)
            without[rows, places] = start[0, places]
            found.append(whole - score(without).double())
    return torch.cat(found)


def _integrated(score: Callable[[Tensor], Tensor], e: Tensor, start: Tensor, steps: int) -> Float[Tensor, position]:
    total = torch.zeros_like(e[0], dtype=torch.float64)
    for first in progress.track(range(0, steps, BATCH), "along the way from the baseline"):
        at = (torch.arange(first, min(first + BATCH, steps), device=e.device) + 0.5) / steps
        points = (start + at[:, None, None].to(e) * (e - start)).detach().requires_grad_()
        (slopes,) = gradient(score(points).sum(), [points])
        total += slopes.double().sum(0)
    return ((e - start)[0].double() * total / steps).sum(-1)
