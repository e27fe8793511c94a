from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import Unsuitable, progress
from interp.method import Range, Unset, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.transport._papers import ATO
from interp.methods.transport._reading import between, pair, same_token
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, TextSet
from interp.sites import Site
from interp.transport import Affine

ROWS = ("unchanged", "transport", "identity", "mean", "random")
POSITIONS = 64
"""Over so many positions' logits sums over the vocabulary are taken at once."""


def passes(model: LanguageModel, texts: TextSet | None, **_: Any) -> tuple[float, float]:
    """A forward for each row and text."""
    return len(ROWS) * len(texts.texts if texts else ("",)), 0


@lens("Causal check of transport", ATO, needs=no_blocks, cost=passes)
def transport_check(
    model: LanguageModel,
    sample: Prompt,
    *,
    source: Annotated[Site | None, Unset("the layer before the target")] = None,
    target: Annotated[Site | None, Unset("the middle of the model")] = None,
    operators: str = "",
    rank: Annotated[int, Range(0, 2**14)] = 0,
    texts: Annotated[TextSet | None, Unset("this prompt alone")] = None,
    seed: int = 0,
) -> Table:
    """Put in place of a layer what a map makes of an earlier one, and see how much worse the next tokens are guessed.

        h <- T x + b,     perplexity = exp(mean_t -ln p(token t + 1)),     KL = mean_t sum_v p ln(p / p_replaced)

    At all but special tokens, for four maps: the transport, the identity (T = 1), the mean (T = 0) and a random
    map of the same rank, which keeps the spread of the true one. What is guessed at special tokens is not counted.

    Args:
        source: The residual stream that is read.
        target: The residual stream that is replaced.
        operators: The key of a fit, of the same token; the first there is unless given.
        rank: The rank of the transport, by reduced-rank regression, and of the random map; 0 is all there is.
        texts: Texts to judge on, each cut to what the model reads at once.
        seed: Number that fixes the random map.

    Returns:
        Table: perplexity, how many more nats a token costs than in the unchanged run, the standard error of that over
        texts (NaN of a single one), and KL from the unchanged predictions. Under changes in force "unchanged" is with
        them.

    Raises:
        Unsuitable: no operators of the same token, no such streams, or no next token to guess.

    Assumes:
        That later layers read the replaced stream as they read their own: what counts is what they make of it.

    Misleads:
        A stream can be replaced at little cost because the layers between do little, or because later ones ignore it.
    """
    of = same_token(model, operators)
    a, b = pair(model, of, source, target)
    sites = of.streams[a], of.streams[b]
    maps = {
        "transport": of.operator(*sites, "reduced rank" if rank else "ridge", rank),
        "identity": of.operator(*sites, "identity"),
        "mean": of.operator(*sites, "mean"),
        "random": of.operator(*sites, "random", rank, seed),
    }
    maps = {name: each.to(model.device) for name, each in maps.items()}
    read = [model.inputs(each, cut=True) for each in (texts.texts if texts else (sample,))]
    plain = [_plain(model, ids[0]) for ids in read]
    if not any((each[:-1] & each[1:]).any() for each in plain):
        raise Unsuitable("There is no next token to guess; give texts of two words or more.")
    steps = progress.track(_runs(model, read, plain, sites, maps), "replacing", len(ROWS) * len(read))
    sums = np.zeros((len(ROWS), len(read), 2))
    for row, text, nats, kl in steps:
        sums[row, text] = nats, kl
    guessed = np.array([int((each[:-1] & each[1:]).sum()) for each in plain])
    nats = sums[..., 0].sum(1) / guessed.sum()
    kl = sums[..., 1].sum(1) / sum(int(each.sum()) for each in plain)
    more = sums[..., 0] - sums[:1, :, 0]
    # of a ratio of sums over texts
    spread = np.square(more - guessed * (more.sum(1) / guessed.sum())[:, None]).sum(1)
    k = len(read)
    error = np.sqrt(spread * k / (k - 1)) / guessed.sum() if k > 1 else np.full(len(ROWS), np.nan)
    with np.errstate(over="ignore"):
        columns = [np.exp(nats), nats - nats[0], error, kl]
    names = ("perplexity", "nats more", "standard error", "KL")
    return Table(ROWS, names, np.stack(columns, 1))


def _plain(model: LanguageModel, ids: Int[Tensor, position]) -> Bool[Tensor, position]:
    special = torch.tensor(sorted(getattr(model.tokenizer, "all_special_ids", ())), dtype=torch.long, device=ids.device)
    return ~torch.isin(ids, special)


def _runs(
    model: LanguageModel,
    read: list[Int[Tensor, "1 position"]],
    plain: list[Bool[Tensor, position]],
    sites: tuple[Site, Site],
    maps: dict[str, Affine],
) -> Iterator[tuple[int, int, float, float]]:
    """Of every row and text the sums of nats over guessed tokens, and of KL over the tokens that are replaced."""
    for text, (ids, some) in enumerate(zip(read, plain, strict=True)):
        with torch.no_grad():
            unchanged = model(ids)[0]
        yield 0, text, _nats(unchanged, ids[0], some), 0.0
        for row, affine in enumerate(maps.values(), start=1):

            def put(h: Tensor, x: Tensor, affine: Affine = affine, some: Tensor = some) -> Tensor:
                return torch.where(some[:, None], affine(x).to(h), h)

            with torch.no_grad(), between(model, *sites, put):
                changed = model(ids)[0]
            yield row, text, _nats(changed, ids[0], some), _kl(unchanged, changed, some)


def _nats(logits: Float[Tensor, "position token"], ids: Int[Tensor, position], some: Bool[Tensor, position]) -> float:
    """sum_t -ln p(token t + 1), of tokens that are guessed at and are themselves no special ones."""
    guessed, total = some[:-1] & some[1:], 0.0
    for start in range(0, len(ids) - 1, POSITIONS):
        part = slice(start, min(start + POSITIONS, len(ids) - 1))
        lost = torch.nn.functional.cross_entropy(logits[part].float(), ids[1:][part], reduction="none")
        total += float(lost.double()[guessed[part]].sum())
    return total


def _kl(
    unchanged: Float[Tensor, "position token"], changed: Float[Tensor, "position token"], some: Bool[Tensor, position]
) -> float:
    """sum_t KL(unchanged || changed) in nats."""
    total = 0.0
    for start in range(0, len(some), POSITIONS):
        part = slice(start, start + POSITIONS)
        p, q = (each[part].float().log_softmax(1) for each in (unchanged, changed))
        total += float((p.exp() * (p - q)).double().sum(1)[some[part]].sum())
    return total
