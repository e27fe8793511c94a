"""What the fits of directions share: both sides' streams, held-out accuracy, and what is kept with a vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import Unsuitable, directions, hooks, progress, store
from interp.directions import Direction
from interp.model import LanguageModel
from interp.samples import Contrast
from interp.sites import Site

BATCH = 32
FOLDS = 5
Token = Literal["last", "second to last", "mean"]
"""Which tokens of an example stand for it."""
Streams = Float[Tensor, "example layer d"]
Make = Callable[[Streams, Streams], Float[Tensor, "layer d"]]


def streams(
    model: LanguageModel,
    texts: Sequence[str],
    token: Token,
    label: str = "reading examples",
    sites: Sequence[Site] = (),
    turn: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Streams:
    """The residual stream of each text after every layer of the unchanged model, float32.

    sites: what is read instead, each [batch, position, d]; turn: what is made of the tokens [token, site, d] that stand
    for an example, before their mean is taken.

    Raises:
        Unsuitable: there is no text, or one of a single token where the second to last is asked for.
    """
    if not texts:
        raise Unsuitable("One side has no texts; give at least one for each.")
    sites = sites or [Site("resid_post", layer) for layer in range(model.layers)]
    order = sorted(range(len(texts)), key=lambda each: len(texts[each]))
    out: list[Tensor] = [torch.empty(0)] * len(texts)
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.long)
    for start in progress.track(range(0, len(order), BATCH), label):
        some = order[start : start + BATCH]
        ids = model.inputs([texts[each] for each in some], cut=True)
        with torch.no_grad(), hooks.alone(), model.record(sites) as found:
            model(ids, keep=1)
        x = torch.stack([found[site] for site in sites], 2).float()  # [text, position, layer, d]
        for row, number in enumerate(some):
            plain = (ids[row] >= 0) & ~torch.isin(ids[row], special.to(ids))
            chosen = _chosen(x[row], plain if plain.any() else ids[row] >= 0, token)
            out[number] = turn(chosen).mean(0)
    return torch.stack(out)


def _chosen(
    x: Float[Tensor, "position layer d"], counts: Bool[Tensor, position], token: Token
) -> Float[Tensor, "token layer d"]:
    """Padding stands at the left, so the last position is a token."""
    if token == "mean":
        return x[counts]
    if token == "last":
        return x[-1:]
    if int(counts.sum()) < 2:
        raise Unsuitable(
            "An example has only one token, and the second to last is asked for; choose the last, or mean."
        )
    return x[-2:-1]


def fitted(
    model: LanguageModel,
    data: Contrast,
    method: str,
    make: Make,
    token: Token,
    name: str,
    settings: Any,
    seed: int,
    more: Callable[[Streams, Streams], Mapping[str, np.ndarray]] = lambda positive, negative: {},
    about: Mapping[str, Any] | None = None,
) -> str:
    """Make a direction of both sides' streams, judge it on folds, and keep it; its key.

    make: positive and negative streams -> a vector for each layer, in the stream's units: adding it moves the mean of
    the negative examples to about that of the positive ones, along it. more: further facts of the same streams; about:
    what is kept besides.
    """
    if not data.positive or not data.negative:
        side = "positive" if not data.positive else "negative"
        raise Unsuitable(f"There are no {side} examples; give at least one text for each side.")
    key = store.key_of(
        "direction", directions.VERSION, method, model.digest, data.positive, data.negative, token, settings, seed
    )
    path = directions.folder() / f"{key}.safetensors"
    with progress.alone(key):
        if not path.exists():
            positive, negative = (
                streams(model, each, token, f"reading {side} examples")
                for each, side in ((data.positive, "positive"), (data.negative, "negative"))
            )
            vectors = make(positive, negative)
            facts = judged(positive, negative, make, vectors, seed) | dict(more(positive, negative))
            title = name or f"{method} of {len(data.positive)} and {len(data.negative)} texts"
            told = {"token": token, "positive": len(data.positive), "negative": len(data.negative), "seed": seed,
                     "examples": [data.positive[0][:200], data.negative[0][:200]], **(about or {})}  # fmt: skip
            directions.keep(
                Direction(
                    title, method, model.name, model.digest, tuple(range(model.layers)), vectors.float().cpu(), facts,
                    told,
                ),
                key,
            )  # fmt: skip
    return key


def judged(
    positive: Streams, negative: Streams, make: Make, vectors: Float[Tensor, "layer d"], seed: int
) -> dict[str, np.ndarray]:
    """`Direction.facts` of vectors: accuracy on held-out folds of pairs, and how examples lie along them.

    accuracy_l = mean over folds of the share of held-out examples with <h, v> above the middle of the two means exactly
    where they are positive, v made of the other folds. Equal shares of both sides count; NaN with fewer than two each.
    """
    v = vectors.double()
    square = v.square().sum(1).clamp(min=1e-30)
    p, n = positive.double(), negative.double()
    shift = p.mean(0) - n.mean(0)
    cosine = torch.nn.functional.cosine_similarity(v, shift, dim=1)
    pairs = min(len(p), len(n))
    differences = p[:pairs] - n[:pairs]
    agreement = torch.nn.functional.cosine_similarity(differences, v[None].expand_as(differences), dim=2).mean(0)
    norm = torch.cat([p, n]).norm(dim=2).mean(0)
    low, high = ((each.mean(0) * v).sum(1) / square for each in (n, p))
    accuracy = torch.full_like(low, float("nan"))
    if pairs >= 2:
        folds = min(FOLDS, pairs)
        generator = np.random.default_rng(seed)
        parts = [generator.permutation(len(each)) % folds for each in (p, n)]
        if len(p) == len(n):  # pairs stay pairs
            parts[1] = parts[0]
        right = torch.zeros_like(low)
        for fold in range(folds):
            kept, held = zip(
                *(
                    (each[torch.from_numpy(part != fold)], each[torch.from_numpy(part == fold)])
                    for each, part in zip((positive, negative), parts, strict=True)
                ),
                strict=True,
            )
            made = make(*kept).double()
            middle = sum((each.double().mean(0) * made).sum(1) for each in kept) / 2
            shares = [((each.double() * made).sum(2) > middle).double().mean(0) for each in held]
            right += (shares[0] + 1 - shares[1]) / 2
        accuracy = right / folds
    facts = {"accuracy": accuracy, "cosine": cosine, "agreement": agreement, "norm": norm, "low": low, "high": high}
    return {name: each.cpu().numpy() for name, each in facts.items()}


def along(unit: Float[Tensor, "layer d"], shift: Float[Tensor, "layer d"]) -> Float[Tensor, "layer d"]:
    """A direction of any length and sign, turned to the side of the shift of means and as long as that is along it."""
    square = unit.square().sum(1, keepdim=True).clamp(min=1e-30)
    return unit * ((unit * shift).sum(1, keepdim=True) / square)
