from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import dropwhile, pairwise
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
How = Literal["best", "contexts", "read", "promoted", "prompt", "spreading"]
READS = ("best", "read", "spreading")
NEAR = 3
"""How many tokens before the one that fires a word still counts, by half."""
CLEAR = 3.0
"""A gain of so many of a feature's own spreads over the vocabulary is worth a place in the best."""
FUSED, DEPTH = 5, 50
"""In the best of all ways a feature gets 1 / (5 + rank) for each of the first 50 that it is among."""
SEEDS, HOPS = 8, 2
"""Activation spreads from so many of the features that fire, so far."""
EXAMPLES = 32
"""A word is read again in so many of the contexts in which it stands."""
EARLIER = 1 / 3
"""What a prompt's tokens before the last one count: a prompt is typed for what is to come next."""


@dataclass(frozen=True)
class Found:
    """How well each feature answers, [feature], 0 where not at all; the unit; and why, in words."""

    scores: Float[np.ndarray, feature]
    units: str
    why: Callable[[int], str]


@lens(
    "Feature search",
    PAPER,
    cost=lambda model, words, how, **_: (1 + EXAMPLES * len(words.split()) * (how in READS), 0),
)
def feature_search(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    words: str = "",
    how: How = "best",
    cutoff: Annotated[float, Range(0, 0.95)] = 0.2,
    threshold: Annotated[float, Range(0, 1)] = 0.02,
    top: Annotated[int, Range(1, 200)] = 20,
    index: str = "",
) -> FeatureList:
    """Find features by a word or by the prompt: in their contexts, in what they promote, or along their connections.

        contexts:   s_i = share_i exclusive_i n_i / (n_i + 2)
        read:       s_i = mean_t f_i(t) / sqrt(max f_i) * -ln(density_i),   t where the word stands, or beside it
        promoted:   s_i = <d_i, norm' (u_v - mean u)> / (standard deviation of the same over all v)
        prompt:     s_i = max_t c_t f_i(t) / sqrt(max f_i) * -ln(density_i),   c = 1 for the last token, 1/3 before
        spreading:  a_j <- min(1, a_j + sum_i a_i (w_ij - c) / (1 - c)),  w_ij > c, from the word or the prompt
        best:       sum over the ways of 1 / (5 + rank)

    share_i of the activation in feature i's contexts lies on the word, and that is where it fired in n_i of them, the
    part exclusive_i; directly before or after the word counts half. To read is to run the model on up to 32 contexts
    in which the word stands, whoever's they are. u are the unembedding's rows behind the final norm.

    Activation spreads over a graph of features, tokens and contexts: a feature and a token, by the share of its
    activation there or by what it promotes; a feature and a context, by its activation over its maximum; two features,
    by the cosine of their decoder rows or the tokens they share; a token and a context it stands in, by its rarity.
    Breadth-first, two steps far, each node passes on once what it has when it is reached; those above the threshold
    are found. It begins at the tokens and at the features that fire most on the word, or on the prompt.

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
    if not asked and how in ("contexts", "read", "promoted"):
        raise Unsuitable("Type a word to look for, or search by the prompt.")
    ways: dict[str, Callable[[], Found]] = {
        "contexts": lambda: in_contexts(model, known, asked),
        "read": lambda: either(*read_again(model, found, known, asked)),
        "promoted": lambda: in_promoted(model, found, known, asked),
        "prompt": lambda: by_prompt(model, sample, seen, known),
        "spreading": lambda: by_spreading(
            model, known, asked, ways["read" if asked else "prompt"](), cutoff, threshold
        ),
    }
    if how != "best":
        answer = ways[how]()
    elif asked:
        answer = fused(
            [ways["contexts"](), *read_again(model, found, known, asked), ways["promoted"](), ways["spreading"]()],
            (1, 1, 0.7, 1, 0.5),
        )
    else:
        answer = fused([ways["prompt"](), ways["spreading"]()], (1, 0.5))
    features = best(np.where(known.count > 0, answer.scores, 0), top)
    return listed(
        model, [(found, int(each)) for each in features], answer.scores[features], answer.units, {found.name: known},
        tokens=shown_tokens(model, sample), grid=seen.grid(seen.encode()[:, torch.as_tensor(features)]),
        reasons=[answer.why(int(each)) for each in features],
        note="" if len(features) else "Nothing was found; try another word, or another way of looking.",
    )  # fmt: skip


def fused(ways: Sequence[Found], weights: Sequence[float]) -> Found:
    """Reciprocal ranks added up: sum of w / (5 + rank), for those among the first 50 of a way."""
    scores = np.zeros_like(ways[0].scores)
    among: dict[int, list[tuple[float, int]]] = {}
    for number, (way, weight) in enumerate(zip(ways, weights, strict=True)):
        least = CLEAR if way.units == "spreads" else 0.0
        for rank, feature in enumerate(best(np.where(way.scores >= least, way.scores, 0), DEPTH), 1):
            scores[feature] += weight / (FUSED + rank)
            among.setdefault(int(feature), []).append((-weight / (FUSED + rank), number))
    return Found(
        scores, "reciprocal rank",
        lambda each: "; ".join(dict.fromkeys(ways[number].why(each) for _, number in sorted(among.get(each, ()))[:2])),
    )  # fmt: skip


def either(on: Found, beside: Found) -> Found:
    """The better of the two, what stands beside the word for a little less."""
    less = 0.7 * beside.scores
    return Found(
        np.maximum(on.scores, less), on.units, lambda each: (on if on.scores[each] >= less[each] else beside).why(each)
    )


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
            texts, np.array([each.strip().casefold() for each in texts], object),
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
            parts = list(dropwhile(lambda each: not known.plain[each], parts))  # a space of its own
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


# ------------------------------------------------------------------------------------------------------- what fires


def rarity(index: Index) -> Float[np.ndarray, feature]:
    """-ln(density); one more token, on which everything fires, keeps it finite for those that never did."""
    return -np.log((index.count + 1) / (index.n_tokens + 1))


def read_again(model: Model, found: SAE, index: Index, words: Sequence[str]) -> tuple[Found, Found]:
    """Features that fire on the words, and directly beside them, when contexts in which these stand are read again.

    For a class of words (plurals, crimes): the contexts of its feature hold few of each, but on each it fires.
    """
    if not isinstance(model, LanguageModel):
        none = Found(np.zeros(found.d_sae), "sqrt(activation) x nat", lambda _: "")
        return none, none
    with hooks.alone():  # as the index was made
        each = [
            model.cached(("read again", index.key, word), partial(_read_again, model, found, index, word))
            for word in words
        ]
    worth = rarity(index) / np.sqrt(np.maximum(index.maximum, 1e-12))
    means = np.mean([one for one, _ in each], 0) * worth
    steps = np.array([-1, 1, 2, 3])
    name = " or ".join(map(repr, words))

    def beside(feature: int) -> str:
        step = int(steps[means[1:, feature].argmax()])
        return f"fires {'before' if step < 0 else f'{step} after' if step > 1 else 'after'} {name} where it is read"

    shares = np.mean([one for _, one in each], 0)
    return (
        Found(means[0], "sqrt(activation) x nat", lambda feature: f"fires on {shares[feature]:.0%} of {name} read"),
        Found(means[1:].max(0), "sqrt(activation) x nat", beside),
    )


def _read_again(model: LanguageModel, found: SAE, index: Index, word: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean activations [place, feature] on the word and at -1, 1, 2, 3 beside it; the share on which each fires."""
    own = _contexts(index)
    hits, _ = occurrences(model, word, own.ids)
    feature, context = np.nonzero(hits.any(2))
    # one of each document, evenly over all
    first = np.unique(index.context_documents[feature, context], return_index=True)[1]
    chosen = first[np.linspace(0, len(first) - 1, min(EXAMPLES, len(first))).astype(int)] if len(first) else first
    rows = [own.ids[feature[each], context[each]] for each in chosen]
    marks = [hits[feature[each], context[each]][row >= 0] for each, row in zip(chosen, rows, strict=True)]
    texts = [row[row >= 0].tolist() for row in rows]
    if not texts:
        texts = [model.tokenizer(" " + word, add_special_tokens=False)["input_ids"]]
        marks = [np.ones(len(texts[0]), bool)]
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    lead = [each for each in model.tokenizer(word)["input_ids"][:1] if each in special]
    longest = len(lead) + max(map(len, texts))
    # what stands behind a text has no effect on it in a causal model
    ids = torch.tensor([lead + each + [each[-1]] * (longest - len(lead) - len(each)) for each in texts])
    with torch.no_grad(), model.record([found.site]) as seen:
        model(ids.to(model.device), keep=1)
        x = found.rows(seen[found.site], model)
    total, count = np.zeros((5, found.d_sae)), np.zeros(5)
    fires = np.zeros(found.d_sae)
    for row, text, mark in zip(x, texts, marks, strict=True):
        with torch.no_grad():
            f = found.encode(row[len(lead) : len(lead) + len(text)]).clamp(min=0).double().cpu().numpy()
        fires += np.count_nonzero(f[mark], 0)
        for place, step in enumerate((0, -1, 1, 2, 3)):
            at = np.flatnonzero(mark) + step
            at = at[(at >= 0) & (at < len(text))]
            at = at[~mark[at]] if step else at
            total[place] += f[at].sum(0)
            count[place] += len(at)
    return total / np.maximum(count, 1)[:, None], fires / max(count[0], 1)


def by_prompt(model: Model, sample: Prompt | Image, seen: Seen, index: Index) -> Found:
    """Features that fire on the sample, at its end above all, those that seldom do first."""
    f = seen.encode().clamp(min=0)
    share = f.amax(0).double().cpu().numpy()
    weight = torch.ones(len(f), 1, device=f.device)
    if isinstance(sample, Prompt):
        weight[seen.places != seen.places.max()] = EARLIER
    f = f * weight
    highest = f.amax(0).double().cpu().numpy()
    most = np.maximum(np.maximum(index.maximum, share), 1e-12)
    share = share / most
    tokens, where = shown_tokens(model, sample), f.argmax(0).cpu().numpy()

    def why(feature: int) -> str:
        place = int(seen.places[where[feature]])
        name = repr(tokens[place]) if tokens else f"row {place // seen.shape[-1]}, column {place % seen.shape[-1]}"
        return f"fires on {name} at {share[feature]:.0%} of its maximum"

    return Found(highest / np.sqrt(most) * rarity(index), "sqrt(activation) x nat", why)


def by_spreading(model: Model, index: Index, words: Sequence[str], firing: Found, cutoff: float, least: float) -> Found:
    """Features that activation reaches from the words, and from those that fire there or on the sample."""
    size = model.config.vocab_size if isinstance(model, LanguageModel) else len(getattr(model, "labels", ()))
    graph = _spreading.graph(index, size)
    seeds = np.zeros(len(graph.net.starts) - 1)
    some = best(firing.scores, SEEDS)
    seeds[some] = firing.scores[some] / firing.scores[some].max(initial=1e-12)
    seeds[graph.token(np.array([each for word in words for each in ids_of(model, word)], int))] = 1
    reached = _spreading.spread(graph.net, seeds, cutoff, HOPS)
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

    def name(node: int) -> str:
        return firing.why(node) if node < graph.features else ""

    return Found(scores, "activation", lambda feature: _spreading.path(reached, feature, name, told))
