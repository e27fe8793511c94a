from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp import Unsuitable, hooks
from interp.feature_index import Index
from interp.method import Paper, Range, SAEName, lens
from interp.methods.features import _spreading
from interp.methods.features._saes import (
    Seen,
    best,
    listed,
    look,
    need_index,
    no_sae,
    open_sae,
    readout,
    shown_tokens,
)
from interp.methods.features._saes import (
    words as texts_of,
)
from interp.model import LanguageModel, Model, VisionModel
from interp.results import FeatureList
from interp.sae import SAE
from interp.samples import Image, Prompt

PAPER = Paper(
    "Pavlović, Jovan and Krész, Miklós and Hajdu, László",
    "Leveraging Spreading Activation for Improved Document Retrieval in Knowledge-Graph-Based RAG Systems",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2512.15922",
)
How = Literal["best", "contexts", "promoted", "prompt", "spreading"]
NEAR = 3
"""How many tokens before the one that fires a word still counts, by half."""
CLEAR = 3.0
"""A gain of so many of a feature's own spreads over the vocabulary is worth a place in the best."""
FUSED, DEPTH = 5, 50
"""In the best of all ways a feature gets 1 / (5 + rank) for each of the first 50 that it is among."""
SEEDS = 20
"""The features of a prompt that activation spreads from."""


@dataclass(frozen=True)
class Found:
    """How well each feature answers, [feature], 0 where not at all; the unit; and why, in words."""

    scores: Float[np.ndarray, feature]
    units: str
    why: Callable[[int], str]


@lens("Feature search", PAPER, needs=no_sae, cost=lambda model, **_: (1, 0))
def feature_search(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    words: str = "",
    how: How = "best",
    cutoff: Annotated[float, Range(0, 0.95)] = 0.4,
    threshold: Annotated[float, Range(0, 1)] = 0.02,
    top: Annotated[int, Range(1, 200)] = 20,
    index: str = "",
) -> FeatureList:
    """Find features by a word or by the prompt: in their contexts, in what they promote, or along their connections.

        contexts:   s_i = share_i exclusive_i n_i / (n_i + 2)
        promoted:   s_i = <d_i, norm' (u_v - mean u)> / (standard deviation of the same over all v)
        prompt:     s_i = max_t f_i(t) / max f_i * -ln(density_i)
        spreading:  a_j <- min(1, a_j + sum_i a_i (w_ij - c) / (1 - c)),  w_ij > c, from the word or the prompt
        best:       sum over the ways of 1 / (5 + rank)

    share_i of the activation in feature i's contexts lies on the word, and that is where it fired in n_i of them, the
    part exclusive_i; directly before or after the word counts half. u are the unembedding's rows behind the final norm.

    Activation spreads over a graph of features, tokens and contexts: a feature and a token, by the share of its
    activation there or by what it promotes; a feature and a context, by its activation over its maximum; two features,
    by the cosine of their decoder rows or the tokens they share; a token and a context it stands in, by its rarity.
    Breadth-first, each node passes on once what it has when it is reached; those above the threshold are found.

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        words: What to look for; several words are looked for each. The prompt (image) is looked for if there are none.
        how: Where to look; the best of all ways puts together what each finds.
        cutoff: For spreading, connections no stronger than this (c) count as none.
        threshold: For spreading, features with less activation are not listed.
        top: How many features to list.
        index: Which index to search; the SAE's own unless given.

    Returns:
        FeatureList, best first, with the reason for each, and the activations on the sample.

    Raises:
        Unsuitable: no index of the SAE yet, or no word where one is looked for.

    Assumes:
        That what a feature is about shows in its highest contexts, or in the tokens it promotes directly.

    Misleads:
        A word in the contexts is not what the feature means: "capital" may stand beside a feature for countries. A
        feature of a middle layer can promote tokens by way of later layers, which none of this sees.
    """
    found = open_sae(model, sae)
    known = need_index(model, found, index)
    (seen,), _ = look(model, sample, [found])
    asked = words.split()
    if not asked and how in ("contexts", "promoted"):
        raise Unsuitable("Type a word to look for, or search by the prompt.")
    ways: dict[str, Callable[[], Found]] = {
        "contexts": lambda: in_contexts(model, known, asked),
        "promoted": lambda: in_promoted(model, found, known, asked),
        "prompt": lambda: by_prompt(model, sample, seen, known),
        "spreading": lambda: by_spreading(model, sample, seen, known, asked, cutoff, threshold),
    }
    if how == "best":
        chosen = ("contexts", "promoted", "spreading") if asked else ("prompt", "spreading")
        answer = fused([ways[each]() for each in chosen])
    else:
        answer = ways[how]()
    features = best(np.where(known.count > 0, answer.scores, 0), top)
    return listed(
        model, [(found, int(each)) for each in features], answer.scores[features], answer.units, {found.name: known},
        tokens=shown_tokens(model, sample), grid=seen.grid(seen.encode()[:, torch.as_tensor(features)]),
        reasons=[answer.why(int(each)) for each in features],
        note="" if len(features) else "Nothing was found; try another word, or another way of looking.",
    )  # fmt: skip


def fused(ways: Sequence[Found]) -> Found:
    """Reciprocal ranks added up: sum of 1 / (5 + rank), for those among the first 50."""
    scores = np.zeros_like(ways[0].scores)
    among: dict[int, list[tuple[int, int]]] = {}
    for number, way in enumerate(ways):
        least = CLEAR if way.units == "spreads" else 0.0
        for rank, feature in enumerate(best(np.where(way.scores >= least, way.scores, 0), DEPTH), 1):
            scores[feature] += 1 / (FUSED + rank)
            among.setdefault(int(feature), []).append((rank, number))
    return Found(
        scores, "reciprocal rank",
        lambda each: "; ".join(dict.fromkeys(ways[number].why(each) for _, number in sorted(among.get(each, ()))[:2])),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ where words are


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The text of each token, and "" for none (-1)."""

    texts: tuple[str, ...]
    plain: np.ndarray
    begins: Bool[np.ndarray, token]
    """with a letter or digit"""
    ends: Bool[np.ndarray, token]


def vocabulary(model: LanguageModel) -> Vocabulary:
    """Of a model's tokenizer, whatever is in force."""

    def make() -> Vocabulary:
        texts = (*(model.token_text(each) for each in range(model.config.vocab_size)), "")
        return Vocabulary(
            texts, np.array([each.strip().casefold() for each in texts]),
            np.array([each[:1].isalnum() for each in texts]), np.array([each[-1:].isalnum() for each in texts]),
        )  # fmt: skip

    with hooks.alone():
        return model.cached(("vocabulary",), make)


def occurrences(
    model: LanguageModel, word: str, ids: Int[np.ndarray, "*contexts width"]
) -> tuple[Bool[np.ndarray, "*contexts width"], tuple[int, ...]]:
    """Which tokens are part of a whole word, in whatever case; and the tokens that are that word alone.

    Where it stands nowhere, parts of words that contain it count.
    """
    known = vocabulary(model)
    alone = np.flatnonzero(known.plain == word.casefold())
    hits = np.isin(ids, alone) & _whole(known, ids, ids)
    for spelled in dict.fromkeys((word, word.lower(), word.capitalize(), word.upper())):
        for text in (spelled, " " + spelled):
            parts = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            width = ids.shape[-1] - len(parts) + 1
            if len(parts) < 2 or width < 1:
                continue
            same = ids[..., :width] == parts[0]
            for step, part in enumerate(parts[1:], 1):
                same &= ids[..., step : step + width] == part
            padded = np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(1, 1)], constant_values=-1)
            same &= ~(known.ends[padded[..., :width]] & known.begins[parts[0]])
            same &= ~(known.begins[padded[..., len(parts) + 1 : len(parts) + 1 + width]] & known.ends[parts[-1]])
            for step in range(len(parts)):
                hits[..., step : step + width] |= same
    if not hits.any() and len(word) > 2:
        inside = np.array([word.casefold() in each for each in known.plain])
        alone = np.flatnonzero(inside)
        hits = inside[ids]
    return hits, tuple(alone.tolist())


def _whole(known: Vocabulary, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Whether no letter stands directly before the first or after the last token."""
    before, after = np.full_like(first, -1), np.full_like(last, -1)
    before[..., 1:], after[..., :-1] = first[..., :-1], last[..., 1:]
    return ~(known.ends[before] & known.begins[first]) & ~(known.begins[after] & known.ends[last])


@dataclass(frozen=True, eq=False)
class Contexts:
    """An index's contexts: activations above zero, which exist, the column that fired, and their sum by feature."""

    ids: Int[np.ndarray, "feature k width"]
    values: Float[np.ndarray, "feature k width"]
    there: Bool[np.ndarray, "feature k"]
    at: Int[np.ndarray, "feature k"]
    total: Float[np.ndarray, feature]


@lru_cache(2)
def _contexts(index: Index) -> Contexts:
    values = np.maximum(index.context_values, 0)
    at = index.context_at.astype(np.int64)
    return Contexts(
        index.context_ids, values, at >= 0, np.maximum(at, 0), np.maximum(values.sum((1, 2), dtype=np.float64), 1e-12)
    )


def in_contexts(model: Model, index: Index, words: Sequence[str]) -> Found:
    """Features whose contexts hold the words where they fire, or just before or after.

    s = share x exclusive x n / (n + 2), of the word itself or, by half, of what stands beside it; the mean over words.
    """
    each = [_in_contexts(model, index, word) for word in words]
    scores = np.mean([one.scores for one in each], 0)
    return Found(scores, "share", lambda feature: max(each, key=lambda one: float(one.scores[feature])).why(feature))


def _in_contexts(model: Any, index: Index, word: str) -> Found:
    if isinstance(model, VisionModel):
        return _in_labels(index, word)
    own = _contexts(index)
    hits, _ = occurrences(model, word, own.ids)
    count = own.there.sum(1)

    def score(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of activation on `mask`: its worth, and in how many contexts it fired there."""
        fired = np.take_along_axis(mask, own.at[..., None], 2)[..., 0] & own.there
        n = fired.sum(1)
        share = (own.values * mask).sum((1, 2)) / own.total
        return share * n / np.maximum(count, 1) * n / (n + 2), n

    on, on_count = score(hits)
    before, after = np.zeros_like(hits), np.zeros_like(hits)
    for step in range(1, NEAR + 1):
        before[..., step:] |= hits[..., :-step]
    after[..., :-1] = hits[..., 1:]
    behind, behind_count = score(before & ~hits)
    ahead, ahead_count = score(after & ~hits)
    scores = np.stack([on, behind / 2, ahead / 2])

    def why(feature: int) -> str:
        way = int(scores[:, feature].argmax())
        many = (on_count, behind_count, ahead_count)[way][feature]
        place = ("on", "after", "before")[way]
        return f"fires {place} {word!r} in {many} of {count[feature]} contexts"

    return Found(scores.max(0), "share", why)


def _in_labels(index: Index, word: str) -> Found:
    """The same of images, whose captions are what can be searched."""
    if not hasattr(index, "image_label"):
        return Found(np.zeros(index.n_features), "share", lambda _: "")
    starts, letters = index.image_label_start, index.image_label.tobytes()
    names = [letters[a:b].decode().casefold() for a, b in pairwise(starts)]
    wanted = index.image_document[np.array([word.casefold() in each for each in names], bool)]
    there = index.context_documents >= 0
    hits = np.isin(index.context_documents, wanted) & there
    values = np.maximum(index.context_values, 0).sum(2)
    n, count = hits.sum(1), there.sum(1)
    share = (values * hits).sum(1) / np.maximum(values.sum(1), 1e-12)
    return Found(
        share * n / np.maximum(count, 1) * n / (n + 2), "share",
        lambda feature: f"fires on {word!r} in {n[feature]} of {count[feature]} images",
    )  # fmt: skip


def in_promoted(model: Model, found: SAE, index: Index, words: Sequence[str]) -> Found:
    """Features whose decoder row raises the words' logits, in units of its own spread over all tokens or classes."""
    read = readout(model, found)
    if read is None:
        return Found(np.zeros(found.d_sae), "spreads", lambda _: "")
    directions, outputs = read
    ids = [ids_of(model, word) for word in words]
    flat = [each for some in ids for each in some]
    if not flat:
        return Found(np.zeros(found.d_sae), "spreads", lambda _: "")
    with torch.no_grad():
        spread = model.cached(("spread over outputs", found.digest), lambda: _spread(directions, outputs))
        gains = directions @ outputs[flat].T
        z = (gains / spread.clamp(min=1e-12)[:, None]).double().cpu().numpy()
    owner = np.repeat(np.arange(len(ids)), [len(some) for some in ids])
    by_word = np.stack([z[:, owner == word].max(1) for word in range(len(ids)) if (owner == word).any()], 1)

    def why(feature: int) -> str:
        token = int(z[feature].argmax())
        (name,) = texts_of(model, [flat[token]])
        return f"promotes {name!r} ({float(gains[feature, token]):+.2g}, {z[feature, token]:.1f} times its spread)"

    return Found(by_word.mean(1), "spreads", why)


def _spread(directions: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """The standard deviation of <d, u> over all outputs u, whose mean is zero, without forming all products."""
    covariance = outputs.T @ outputs / len(outputs)
    return ((directions @ covariance) * directions).sum(1).clamp(min=0).sqrt()


def ids_of(model: Any, word: str) -> list[int]:
    """The tokens that are this word alone, or the classes whose name has it."""
    if isinstance(model, VisionModel):
        return [number for number, label in enumerate(model.labels) if word.casefold() in label.casefold()]
    found = np.flatnonzero(vocabulary(model).plain[:-1] == word.casefold()).tolist()
    if not found:  # the first piece of it, as it stands after a space
        found = model.tokenizer(" " + word, add_special_tokens=False)["input_ids"][:1]
    return found


# ---------------------------------------------------------------------------------------------- prompts, and spreading


def by_prompt(model: Model, sample: Prompt | Image, seen: Seen, index: Index) -> Found:
    """Features that fire on the sample, those that seldom do first."""
    f = seen.encode().clamp(min=0)
    highest = f.amax(0).double().cpu().numpy()
    share = highest / np.maximum(np.maximum(index.maximum, highest), 1e-12)
    rare = -np.log((index.count + 1) / (index.n_tokens + 1))
    tokens, where = shown_tokens(model, sample), f.argmax(0).cpu().numpy()

    def why(feature: int) -> str:
        place = int(seen.places[where[feature]])
        name = repr(tokens[place]) if tokens else f"row {place // seen.shape[-1]}, column {place % seen.shape[-1]}"
        return f"fires on {name} at {share[feature]:.0%} of its maximum"

    return Found(share * rare, "share of the maximum x nat", why)


def by_spreading(
    model: Model, sample: Prompt | Image, seen: Seen, index: Index, words: Sequence[str], cutoff: float, least: float
) -> Found:
    """Features that activation reaches from the words, or from what fires on the sample."""
    size = model.config.vocab_size if isinstance(model, LanguageModel) else len(getattr(model, "labels", ()))
    graph = _spreading.graph(index, size)
    seeds = np.zeros(len(graph.net.starts) - 1)
    names: dict[int, str] = {}
    if words:
        for word in words:
            ids = ids_of(model, word)
            names |= {graph.features + each: word for each in ids}
            seeds[graph.token(np.array(ids, int))] = 1
    else:
        found = by_prompt(model, sample, seen, index)
        some = best(found.scores, SEEDS)
        seeds[some] = found.scores[some] / found.scores[some].max(initial=1e-12)
        names |= {int(each): found.why(int(each)) for each in some}
    reached = _spreading.spread(graph.net, seeds, cutoff)
    scores = np.where(reached.activation >= least, reached.activation, 0)[: graph.features]

    def text(node: int) -> str:
        (name,) = texts_of(model, [node - graph.features])
        return repr(name)

    def told(source: int, target: int, kind: int) -> str:
        feature, other = (target, source) if target < graph.features else (source, target)
        if kind == _spreading.SHARE:
            token = other - graph.features
            n = int(
                (
                    np.take_along_axis(index.context_ids[feature], _contexts(index).at[feature][:, None], 1) == token
                ).sum()
            )
            return f"fires on {text(other)} in {n} of {int(_contexts(index).there[feature].sum())} contexts"
        if kind == _spreading.PROMOTED:
            ids = index.promoted_ids[feature].tolist()
            return f"promotes {text(other)} ({index.promoted_values[feature, ids.index(other - graph.features)]:+.2g})"
        if kind in (_spreading.ALIKE, _spreading.TOGETHER):
            return f"{'like' if kind == _spreading.ALIKE else 'fires together with'} #{source}"
        if kind == _spreading.CONTEXT:
            return "by way of a context" if target < graph.features else f"where #{source} fires"
        return f"with {text(source if source < target else target)}" if kind == _spreading.WORD else ""

    return Found(
        scores, "activation",
        lambda feature: _spreading.path(reached, feature, lambda node: names.get(node, ""), told),
    )  # fmt: skip
