from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import directions, progress, store
from interp.directions import Direction
from interp.method import Paper, Range, fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.reading.token_attribution import BATCH, Baseline, _integrated, mean_embedding
from interp.methods.steering._answers import Answered, answered, kept
from interp.methods.steering._contrast import FOLDS, along, judged
from interp.model import LanguageModel
from interp.samples import Contrast
from interp.sites import Site

PAPER = Paper(
    "Nguyen, Duy and Prasad, Archiki and Stengel-Eskin, Elias and Bansal, Mohit",
    "GrAInS: Gradient-based Attribution for Inference-Time Steering of LLMs and VLMs",
    2026,
    "ACL",
    "https://arxiv.org/abs/2507.18043",
)
Mode = Literal["both", "pos", "neg"]
By = Literal["PCA", "mean"]
Read = Literal["end of prompt", "end of answer"]
Rows = Float[Tensor, "pair answer layer d"]
SHOWN = 8
"""Of how many pairs the chosen tokens are kept to be read."""


def passes(model: LanguageModel, sample: Any = None, steps: int = 20, **_: Any) -> tuple[float, float]:
    """Of each pair, the way from the baseline with its ends, and three runs."""
    pairs = len(sample.positive) if isinstance(sample, Contrast) else 50
    return pairs * (steps + 6), pairs * -(-steps // BATCH)


@fit("GrAInS", PAPER, needs=no_blocks, cost=passes)
def grains(
    model: LanguageModel,
    data: Contrast,
    *,
    mode: Mode = "both",
    count: Annotated[int, Range(1, 100)] = 5,
    by: By = "PCA",
    read: Read = "end of prompt",
    baseline: Baseline = "zeros",
    steps: Annotated[int, Range(1, 300)] = 20,
    seed: int = 0,
    name: str = "",
) -> str:
    """Steer along what the tokens add that speak for one answer, less what those add that speak for the other.

        F(e) = log p(y+ | e) - log p(y- | e),    C_i = integrated gradients of F at prompt token i
        v_pos: of h - h(without the tokens of largest C > 0) in all pairs, the first direction or the mean
        v_neg: the same with the smallest C < 0,    v = v_pos, -v_neg, or v_pos - v_neg

    h is the stream after every layer. Pairs are one prompt with two answers; y+ and y- are the tokens at which they
    part. A token is taken away by putting the vocabulary's mean embedding in its place. Principal directions are of
    rows that are not centred, turned to the side of their mean and as long as that is along them, so that v_pos - v_neg
    means something: without, the sign of each would be chance.

    Args:
        mode: Tokens that speak for the positive answer, for the negative one, or both.
        count: How many tokens of a prompt at most.
        by: How the differences of all pairs become one vector.
        read: Where h is taken: at the last token of the prompt, where the answer is decided, or at the last of the
            answer as in the paper, which says more of long answers; those of one word hardly look back.
        baseline: Where the integral begins.
        steps: Points along the way.
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction.

    Raises:
        Unsuitable: pairs that are not one prompt with two answers; no token speaks for either.

    Assumes:
        That the tokens that decide between the answers of a prompt carry the behaviour.

    Misleads:
        Only the first token in which answers differ is explained. Where special tokens or commas decide, it is their
        part that is steered along: look at the chosen tokens.
    """
    pairs = answered(model, data)
    settings = (mode, count, by, read, baseline, steps, seed, *([name] if name else []))
    key = store.key_of("direction", directions.VERSION, "GrAInS", model.digest, data.positive, data.negative, settings)

    def make() -> Direction:
        found = [
            _differences(model, pair, count, read, baseline, steps) for pair in progress.track(pairs, "reading pairs")
        ]
        gains, losses, ends, favours = (torch.stack(each) for each in list(zip(*found, strict=True))[:4])
        v = combined(gains, losses, mode, by)
        facts = judged(ends[favours], ends[~favours], lambda *_: v, v, seed)
        facts["accuracy"] = _held_out(gains, losses, ends, favours, mode, by, seed)
        about = {"positive": len(pairs), "negative": len(pairs), "seed": seed, "token": read, "mode": mode, "by": by,
                 "examples": [data.positive[0][:200], data.negative[0][:200]],
                 "chosen": [each[4] for each in found[:SHOWN]],
                 "residual": float(np.mean([each[5] for each in found]))}  # fmt: skip
        return Direction(name or f"GrAInS of {len(pairs)} pairs", "GrAInS", model.name, model.digest,
                         tuple(range(model.layers)), v.cpu(), facts, about)  # fmt: skip

    return kept(key, make)


def attribution(
    model: LanguageModel, pair: Answered, baseline: Baseline, steps: int
) -> tuple[Float[Tensor, position], float, float, bool]:
    """C of each prompt token, their sum less F(e) - F(baseline), that difference, and whether F(e) > 0."""
    ids = pair.positive[None, : pair.shared]
    yes, no = pair.positive[pair.shared], pair.negative[pair.shared]
    with torch.no_grad(), model.record(["input"]) as found:
        model(ids, keep=1)
    e = found["input"]
    start = torch.zeros_like(e) if baseline == "zeros" else mean_embedding(model).to(e).expand_as(e)

    def score(x: Float[Tensor, "batch position d"]) -> Float[Tensor, batch]:
        with model.edit({Site("input"): lambda _: x}):
            out = model(ids.expand(len(x), -1), keep=1)[:, -1]
        return out[:, yes] - out[:, no]  # the normaliser of the log probabilities is the same

    c = _integrated(score, e, start, steps)
    with torch.no_grad():
        high, low = score(torch.cat([e, start])).double().tolist()
    return c, float(c.sum()) - (high - low), high - low, high > 0


def chosen(
    c: Float[Tensor, position], real: Bool[Tensor, position], count: int
) -> tuple[Bool[Tensor, position], Bool[Tensor, position]]:
    """Which tokens have the largest C above zero, and which the smallest below; special tokens never."""
    sides = []
    for sign in (1, -1):
        value = torch.where(real & (sign * c > 0), sign * c, torch.zeros_like(c))
        best = torch.zeros_like(real)
        best[value.topk(min(count, len(c))).indices] = True
        sides.append(best & (value > 0))
    return sides[0], sides[1]


def _differences(
    model: LanguageModel, pair: Answered, count: int, read: Read, baseline: Baseline, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Any, float]:
    """What the two kinds of chosen tokens add to the stream, and that stream, each [answer, layer, d].

    Also whether each of the streams is a positive example: at the end of the prompt, where the model favours y+.
    """
    c, rest, whole, favours = attribution(model, pair, baseline, steps)
    prompt = pair.positive[: pair.shared]
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), device=prompt.device)
    taken = chosen(c, ~torch.isin(prompt, special), count)
    sites = [Site("resid_post", layer) for layer in range(model.layers)]
    reads = []
    for ids in (prompt,) if read == "end of prompt" else (pair.positive, pair.negative):
        away = torch.zeros(3, len(ids), dtype=torch.bool, device=ids.device)
        away[1, : pair.shared], away[2, : pair.shared] = taken

        def without(e: Tensor, away: Tensor = away) -> Tensor:
            return torch.where(away[..., None], mean_embedding(model).to(e), e)

        with torch.no_grad(), model.edit({Site("input"): without}), model.record(sites) as found:
            model(ids.expand(3, -1), keep=1)
        reads.append(torch.stack([found[site][:, -1].float() for site in sites], 1))
    h, less_gains, less_losses = torch.stack(reads, 1)
    sides = torch.tensor([favours] if read == "end of prompt" else [True, False])
    tokens = [[model.token_text(int(prompt[at])) for at in each.nonzero()[:, 0]] for each in taken]
    return h - less_gains, h - less_losses, h, sides, tokens, abs(rest) / max(abs(whole), 1e-6)


def combined(gains: Rows, losses: Rows, mode: Mode, by: By) -> Float[Tensor, "layer d"]:
    """One vector of the differences of all pairs, each kind oriented by its own mean."""

    def one(rows: Rows) -> Tensor:
        flat = rows.flatten(0, 1).double()
        mean = flat.mean(0)
        if by == "mean":
            return mean
        return along(torch.linalg.svd(flat.transpose(0, 1), full_matrices=False).Vh[:, 0], mean)

    v = one(gains) if mode == "pos" else -one(losses) if mode == "neg" else one(gains) - one(losses)
    return v.float()


def _held_out(
    gains: Rows, losses: Rows, ends: Rows, favours: Bool[Tensor, "pair answer"], mode: Mode, by: By, seed: int
) -> Float[np.ndarray, layer]:
    """The share of held-out streams told right by a threshold along a direction made of the other pairs.

    Equal shares of both sides count; NaN where one has fewer than two.
    """
    if min(int(favours.sum()), int((~favours).sum())) < 2:
        return np.full(ends.shape[2], np.nan)
    folds = min(FOLDS, len(ends))
    part = torch.from_numpy(np.random.default_rng(seed).permutation(len(ends)) % folds)
    above, truth = [], []
    for fold in range(folds):
        rest, held = part != fold, part == fold
        if len(set(favours[rest].flatten().tolist())) < 2:
            continue
        v = combined(gains[rest], losses[rest], mode, by).double()
        along_it = (ends.double() * v).sum(-1)
        middle = sum(along_it[rest][favours[rest] == side].mean(0) for side in (True, False)) / 2
        above.append((along_it[held] > middle).flatten(0, 1))
        truth.append(favours[held].flatten())
    right, sides = torch.cat(above).double(), torch.cat(truth)
    return ((right[sides].mean(0) + 1 - right[~sides].mean(0)) / 2).cpu().numpy()
