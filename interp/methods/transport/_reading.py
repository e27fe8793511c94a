"""What the lenses of transport share: a prompt's streams, what operators make of them, and putting that in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, hooks
from interp.hooks import Block, here
from interp.methods.change._places import positions_of
from interp.methods.features._saes import open_sae
from interp.methods.reading._prompts import looked
from interp.model import LanguageModel
from interp.sae import SAE
from interp.samples import Prompt
from interp.sites import Site
from interp.transport import Operators, need

HALF = 0.5
"""A feature is carried where the whole interval of its held-out R^2 lies above this, and made where it lies below."""
Array = np.ndarray


# ------------------------------------------------------------------------------------------------- which, and between


def same_token(model: LanguageModel, key: str) -> Operators:
    """The operators of that key, or the first, seen to take sources from the same token.

    Raises:
        Unsuitable: there are none, or they take them from others.
    """
    found = need(model, key)
    if found.policy != "same":
        raise Unsuitable("These operators read a token from others before it; choose some of the same token.")
    return found


def pair(model: LanguageModel, of: Operators, source: Site | None, target: Site | None) -> tuple[int, int]:
    """The numbers of two streams; neighbours where one is not given, in the middle where none is.

    Raises:
        Unsuitable: no such site, or the source does not come first.
    """
    a, b = (None if each is None else of.number(model.resolve(each)) for each in (source, target))
    if b is None:
        b = len(of.streams) // 2 if a is None else a + 1
    if a is None:
        a = b - 1
    if not 0 <= a < b < len(of.streams):
        raise Unsuitable(
            f"A source comes before its target, and both among {of.streams[0]} to {of.streams[-1]}; choose an earlier "
            "source or a later target."
        )
    return a, b


def stream_sae(model: LanguageModel, name: str, of: Operators) -> tuple[SAE, int]:
    """The SAE of that name, the model's own for none, and the number of the stream that it reads.

    Raises:
        Unsuitable: none is here, or it reads none of these streams.
    """
    found = open_sae(model, name)
    site = model.resolve(found.site)
    if found.is_transcoder or site.kind not in ("resid_pre", "resid_post"):
        raise Unsuitable(
            f"{found.name} reads {site}, and not the residual stream as an SAE of it does; choose one of resid_post."
        )
    return found, of.number(site)


def before(model: LanguageModel, of: Operators, found: SAE, source: Site | None, target: int) -> int:
    """The number of the source for an SAE at the target: as given, or the stream just before."""
    if target == 0:
        raise Unsuitable(f"{found.name} reads the first of the streams, to which nothing leads; choose a later one.")
    return pair(model, of, source, of.streams[target])[0]


def held_out(of: Operators, found: SAE, source: int, target: int) -> Float[Array, "feature 3"]:
    """R^2, low and high of every feature as it is read off the transported stream; NaN where that is not known."""
    known = found.name in of.saes and of.sae_digests[of.saes.index(found.name)] == found.digest
    facts = of.features(found.name, source, target) if known else None
    if facts is None:
        return np.full((found.d_sae, 3), np.nan)
    return np.stack([facts[each] for each in ("read", "read low", "read high")], 1).astype(float)


def layer_of(name: str) -> str:
    """What a stream's name stands for, in words."""
    return "the embedding" if name == "embed" else f"layer {name}"


# --------------------------------------------------------------------------------------------------------- of a prompt


@dataclass(frozen=True)
class Read:
    """The streams of a prompt, float64: y [stream, token, d], and x, of each source [token, d].

    plain: all but special tokens; places: those of them whose source was fitted on, as the token before is plain too
    where that has a part in it. A source is None where the layer whose attention it is weighted by is skipped.
    """

    y: Float[Tensor, "stream token d"]
    x: tuple[Float[Tensor, "token d"] | None, ...]
    plain: tuple[int, ...]
    places: tuple[int, ...]


def read(model: LanguageModel, sample: Prompt, of: Operators) -> Read:
    """What the operators read on a prompt under the interventions in force, taken from tokens as in their fit."""
    layers = [each.layer if each.kind == "resid_pre" else (each.layer or 0) + 1 for each in of.streams[:-1]]
    patterns = [Site("pattern", each) for each in layers] if of.policy == "attention" else []
    passes, _ = looked(model, sample, [*of.streams, *patterns])
    y = torch.stack([each[-1] for each in passes[: len(of.streams)]]).double().cpu()
    special = special_places(model, sample)
    plain = tuple(each for each in range(y.shape[1]) if each not in special)
    places = plain if of.policy == "same" else tuple(each for each in plain if each - 1 in plain)
    x: tuple[Tensor | None, ...] = tuple(y)
    if of.policy == "previous":
        x = tuple(y[:-1].roll(1, 1))
    elif of.policy == "attention":
        x = tuple(
            found[-1].double().cpu().mean(0) @ one if found else None
            for found, one in zip(passes[len(of.streams) :], y[:-1], strict=True)
        )
    return Read(y, x, plain, places)


def special_places(model: LanguageModel, sample: Prompt) -> tuple[int, ...]:
    """The positions of special tokens, on which nothing was fitted; none where the prompt has no others."""
    ids = model.inputs(sample)[0].tolist()
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    found = tuple(place for place, each in enumerate(ids) if each in special)
    return found if len(found) < len(ids) else ()


def variable(of: Operators, source: int) -> int:
    """The number of what a stream is read from, among the variables of the fit."""
    return source if of.policy == "same" else len(of.streams) + source


def predicted(
    of: Operators, x: Float[Tensor, "row d"], source: int, target: int, rank: int = 0
) -> Float[Tensor, "row d"]:
    """T x + b, by the ridge map or one of reduced rank; T itself is not formed for the few rows of a prompt."""
    number = variable(of, source)
    centred = x - of.mean(number)
    if rank:
        return centred @ of.map(source, target, "reduced rank", rank).T + of.mean(target)
    factor = of.factor(number)
    shrunk = centred @ factor.vectors / (factor.values + of.penalty(source, target))
    return shrunk @ factor.vectors.T @ of.covariance(target, number).T + of.mean(target)


def explained(of: Operators, seen: Read, source: int, target: int, rank: int = 0) -> float:
    """1 - sum |W (y - T x - b)|^2 / sum |W (y - mean)|^2 over the tokens that count, W and mean as of the fit."""
    x = seen.x[source]
    if x is None or not seen.places:
        return float("nan")
    places, whitening = list(seen.places), of.factor(target).whitening
    y = seen.y[target, places]
    left = (y - predicted(of, x[places], source, target, rank)) @ whitening.T
    return 1 - float(left.square().sum() / ((y - of.mean(target)) @ whitening.T).square().sum())


@lru_cache(8)
def identities(of: Operators) -> Float[Array, "source target"]:
    """`Operators.transported` of the identity for every pair, without a product of matrices for each."""
    out = np.full((len(of.streams), len(of.streams)), np.nan)
    for b in range(1, len(of.streams)):
        whitening = of.factor(b).whitening
        metric = whitening.T @ whitening
        whole = float((metric * of.moment(b, b)).sum())
        for a in range(b):
            x = variable(of, a)
            crossed, off = of.covariance(b, x, "test"), of.mean(b, "test") - of.mean(x, "test")
            left = of.covariance(b, b, "test") + of.covariance(x, x, "test") - crossed - crossed.T
            out[a, b] = 1 - float((metric * (left + torch.outer(off, off))).sum()) / whole
    return out


# ------------------------------------------------------------------------------------------------------------ in place


def between(model: LanguageModel, source: Site, target: Site, change: Callable[[Tensor, Tensor], Tensor]) -> Block:
    """A block in which the target h becomes change(h, x), x being the source in the same forward.

    Both are as earlier changes left them.
    """
    kept = object()  # each forward has a scratch of its own, so threads and streams can't read each other's

    def reading(x: Tensor) -> Tensor:
        # where a gradient is asked for at the source, what is kept has to be the leaf that is recorded after this edit
        actions = hooks.plan().get(model._point(source).key, ())
        if not x.requires_grad and any(each.recorder is not None and each.recorder.grad for each in actions):
            x = x.detach().requires_grad_()
        here().scratch[kept] = x
        return x

    def writing(h: Tensor) -> Tensor:
        return change(h, here().scratch[kept])

    return model.edit({source: reading, target: writing}, carried=source.layer)


def chosen_places(model: LanguageModel, sample: Prompt, positions: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Where activations [batch, position, d] are changed, [batch, position, 1]: there, or at all but special tokens."""
    at = torch.tensor(tuple(positions) or special_places(model, sample), dtype=torch.long, device=model.device)

    def places(x: Tensor) -> Tensor:
        return torch.isin(positions_of(x), at, invert=not positions).unsqueeze(-1)

    return places
