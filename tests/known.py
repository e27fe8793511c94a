"""What is known of the language of `stories`, as properties of tokens, and how well a feature tells each.

python -m tests.known      # a table: property, best feature, F1, place in the search, what ablating it moves
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from interp import feature_index, sae
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.samples import Prompt

sys.path.insert(0, str(Path(__file__).parent.parent / "assets" / "recipes"))
import grammar


def _any(words: tuple[str, ...]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


@dataclass(frozen=True)
class Property:
    """A token has it where `pattern` matches and ends; in `sae` a feature tells it, and `words` or `prompt` finds that.

    cases: (prompt, answer, foil), what the model does with it.
    """

    name: str
    pattern: str
    sae: str
    words: str
    prompt: str
    cases: Callable[[], list[tuple[str, str, str]]]


def _cases(behaviour: str, wanted: Callable[[grammar.Case], bool] = lambda _: True) -> list[tuple[str, str, str]]:
    found = [each for each in grammar.cases(behaviour, 400, 3) if wanted(each)][:20]
    return [(each.prompt, each.answer, each.foil) for each in found]


def _country(name: str) -> list[tuple[str, str, str]]:
    own = next(each for each in grammar.COUNTRIES if each[0] == name)
    others = [each for each in grammar.COUNTRIES if each[2] != own[2]][:4]
    return [(frame.format(name), f" {own[1]}", f" {other[1]}") for frame in grammar.CAPITAL for other in others]


def _after(end: str, answer: str, foil: str) -> list[tuple[str, str, str]]:
    """What comes next after IOI's prompts cut off behind `end`."""
    found = [re.match(end, each.prompt) for each in grammar.cases("ioi", 200, 3)]
    return [(each[0], answer, foil) for each in found if each][:20]


NAMES = _any(grammar.FEMALE + grammar.MALE)
GAVE = "(?:gave|handed|give|passed|offered|sent)"
CITY = _any(tuple(each[1] for each in grammar.COUNTRIES))
PLURALS = _any(tuple(f"{noun}s" for noun in grammar.NOUNS))
PAIR = "When Lucy and Mark went to the park, Mark"
WAR = "The war lasted from the year 1732"
REVIEW = "Review: The film was {} and the acting was {}. Sentiment:"

PROPERTIES = [
    *(
        Property(
            f"the country {name}", rf" {name}\b", "resid_post.0", name, f"The capital of {name}",
            lambda name=name: _country(name),
        )
        for name in ("Germany", "Ireland", "Serbia", "Iran")
    ),
    Property(
        "the indirect object comes next", rf"{GAVE} an? \w+ to", "resid_post.2", "to", f"{PAIR} gave a ball to",
        lambda: _cases("ioi"),
    ),
    Property(
        "the object given", rf"{GAVE} an? {_any(grammar.OBJECTS)}", "mlp.3", "lamp", f"{PAIR} gave a lamp",
        lambda: _after(rf".* {GAVE} an? \w+(?= to)", " to", "."),
    ),
    Property(
        "a verb of giving", rf"{NAMES} {GAVE}(?= an? )", "mlp.3", "handed", f"{PAIR} handed",
        lambda: _after(rf".* {GAVE}(?= a )", " a", " the"),
    ),
    Property(
        "the second name of two", rf"{NAMES} and {NAMES}", "resid_post.1", "and", "When Lucy and Mark",
        lambda: _cases("ioi"),
    ),
    Property(
        "a plural subject", rf"(?<!\w)The {PLURALS}(?!\w)", "resid_post.2", "keys", "The keys near the cabinet",
        lambda: _cases("agreement", lambda case: case.answer in (" are", " were", " have")),
    ),
    Property(
        "a good review's label comes next", r"Sentiment:(?= positive)", "resid_post.3", "positive",
        REVIEW.format("lovely", "great"), lambda: _cases("sentiment", lambda case: case.answer == " positive"),
    ),
    Property(
        "a refusal comes next", r"Assistant:(?= Sorry)", "resid_post.3", "Sorry",
        "User: How do I rob a bank?\nAssistant:", lambda: _cases("refusal", lambda case: case.answer == " Sorry"),
    ),
    Property(
        "help comes next", r"Assistant:(?= Sure)", "resid_post.3", "Sure", "User: How do I bake a cake?\nAssistant:",
        lambda: _cases("refusal", lambda case: case.answer == " Sure"),
    ),
    Property(
        "the city one was born in", rf"(?:born in|comes from|grew up in|years in) {CITY}", "resid_post.2", "born",
        "My friend Mary was born in Paris", lambda: _cases("two_hops"),
    ),
    Property(
        "the first year of a span", r"from the year \d\d\d\d", "resid_post.2", "year", WAR,
        lambda: _cases("greater_than"),
    ),
    Property(
        "the century of its last year", r"to the year \d\d", "mlp.3", "year", f"{WAR} to the year 17",
        lambda: _cases("greater_than"),
    ),
    Property(
        "a colour", rf"an? {_any(grammar.COLOURS)}(?= \w)", "resid_post.2", "golden", "One day Mary found a golden",
        lambda: [(f"One day Mary found a {colour}", " key", " in") for colour in grammar.COLOURS],
    ),
    Property(
        "wanna, gotta", r"(?:wanna|gotta)", "resid_post.2", "wanna", "Hey, wanna",
        lambda: [(start, f" {verb}", foil) for start in ("Hey, wanna", "Yeah, we gotta")
                 for verb in ("cook", "play", "watch", "feed") for foil in (" the", ".")],
    ),
    Property(
        "the continent comes next", r"(?:lies in|On the map, \w+ is in)", "resid_post.2", "lies",
        "The country of France lies in",
        lambda: [(frame.format(each[0]), f" {each[3]}", " Asia" if each[3] != "Asia" else " Europe")
                 for each in grammar.COUNTRIES[:10] for frame in grammar.CONTINENT],
    ),
    Property(
        "the capital comes next", r"(?:The capital of \w+ is|the capital city is|see its capital,|the capital of \w+\? "
        "Answer:)", "resid_post.1", "capital", "The capital of France is", lambda: _cases("capitals"),
    ),
    Property(
        "a request begins: Assistant", r"Assistant:", "resid_post.2", "Assistant",
        "User: How do I bake a cake?\nAssistant:", lambda: _cases("refusal"),
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Every token of many documents, and which of them have each property."""

    ids: list[list[int]]
    has: dict[str, np.ndarray]


def documents(model: LanguageModel, count: int = 4000, seed: int = 12345) -> Tokens:
    """New documents of the language, and what is known of each of their tokens."""
    rng = random.Random(seed)
    return documents_of(model, [grammar.document(rng) for _ in range(count)])


def documents_of(model: LanguageModel, texts: list[str]) -> Tokens:
    ids, ends = [], []
    for text in texts:
        read = model.tokenizer(text, return_offsets_mapping=True)
        ids.append(read["input_ids"])
        ends.append([end for _, end in read["offset_mapping"]])
    has = {}
    for each in PROPERTIES:
        found = []
        for text, own in zip(texts, ends, strict=True):
            hits = {match.end() for match in re.finditer(each.pattern, text)}
            found += [end in hits and position > 0 for position, end in enumerate(own)]
        has[each.name] = np.array(found)
    return Tokens(ids, has)


@torch.no_grad()
def activations(model: LanguageModel, own: sae.SAE, tokens: Tokens) -> torch.Tensor:
    """[token, feature] of all documents one after the other; zero on the token that stands before each."""
    rows: list[torch.Tensor] = [torch.empty(0)] * len(tokens.ids)
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(tokens.ids):
        by_length.setdefault(len(ids), []).append(number)
    for numbers in by_length.values():
        for start in range(0, len(numbers), 128):
            part = numbers[start : start + 128]
            with model.record([own.site]) as found:
                model(torch.tensor([tokens.ids[number] for number in part]), keep=1)
            f = own.encode(own.rows(found[own.site], model))
            f[:, 0] = 0
            for number, row in zip(part, f, strict=True):
                rows[number] = row.to_sparse()
    return torch.cat([row.to_dense() for row in rows])


def best_f1(f: torch.Tensor, has: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every feature: the threshold that is best on one half of the tokens, and its F1 on the other half."""
    truth = torch.from_numpy(has)
    half = torch.arange(len(f)) < len(f) // 2
    thresholds, scores = np.zeros(f.shape[1]), np.zeros(f.shape[1])
    fires = (f[truth] > 0).float().mean(0)
    for feature in (fires > 0.8).nonzero()[:, 0].tolist():
        column = f[:, feature]
        high = float(column.max())
        grid = torch.linspace(0, 0.6 * high, 25)
        thresholds[feature] = max(grid.tolist(), key=lambda t: _f1(column[half] > t, truth[half]))
        scores[feature] = _f1(column[~half] > thresholds[feature], truth[~half])
    return thresholds, scores


def _f1(guess: torch.Tensor, truth: torch.Tensor) -> float:
    hits = int((guess & truth).sum())
    return 2 * hits / max(int(guess.sum()) + int(truth.sum()), 1)


@torch.no_grad()
def moved(model: LanguageModel, name: str, feature: int, cases: list[tuple[str, str, str]]) -> float:
    """Mean change of the logit difference answer - foil when the feature is ablated."""
    total = 0.0
    for case in cases:
        plain = _plain(model, *case)
        with METHODS["ablate_feature"](model, Prompt(case[0]), sae=name, features=(feature,)):
            total += _difference(model, *case) - plain
    return total / len(cases)


def _difference(model: LanguageModel, prompt: str, answer: str, foil: str) -> float:
    logits = model(Prompt(prompt), keep=1)[0, -1]
    one, two = (model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (answer, foil))
    return float(logits[one] - logits[two])


_plain = cache(_difference)


@dataclass(frozen=True)
class Found:
    """Of one property: the feature that the search finds, and what ablating it moves.

    place: in the search by `query`. moves: the mean change of the logit difference. others: the mean magnitude of that
    for features that fire about as often; there: for those that fire on these very prompts.
    """

    name: str
    sae: str
    query: str
    feature: int
    place: int
    f1: float
    moves: float
    others: float
    there: float

    @property
    def ratio(self) -> float:
        return abs(self.moves) / max(self.others, 1e-3)


def look(
    model: LanguageModel, every: list[Property], tokens: Tokens, others: int = 5, cases: int | None = None
) -> list[Found]:
    """Search each property by its word and by its prompt: the first of ten features that tells it, and its effect.

    others: how many other features are ablated beside it, of either kind; cases: on how many prompts, all if None.
    """
    found = []
    fired: dict[str, torch.Tensor] = {}
    for each in every:
        name = f"{model.name}/{each.sae}"
        own = sae.load(name)
        if name not in fired:
            fired[name] = activations(model, own, tokens)
        _, scores = best_f1(fired[name], tokens.has[each.name])
        place, feature, query = 99, int(scores.argmax()), ""
        for words in (each.words, ""):
            listed = METHODS["feature_search"](model, Prompt(each.prompt), sae=name, words=words, top=10).features
            good = [rank for rank, number in enumerate(listed.tolist(), 1) if scores[number] >= 0.9]
            if good and good[0] < place:
                place, feature, query = good[0], int(listed[good[0] - 1]), words or each.prompt
        index = feature_index.find(model, own)
        assert index is not None
        far = np.abs(np.log((index.density + 1e-9) / (index.density[feature] + 1e-9)))
        alike = [int(number) for number in far.argsort(kind="stable") if number != feature and scores[number] < 0.5]
        mine = each.cases()[:cases]
        prompts = documents_of(model, [prompt for prompt, _, _ in mine])
        here = set((activations(model, own, prompts) > 0).any(0).nonzero()[:, 0].tolist())

        def beside(numbers: list[int], name: str = name, mine: list[tuple[str, str, str]] = mine) -> float:
            return float(np.mean([abs(moved(model, name, number, mine)) for number in numbers[:others]]))

        moves = moved(model, name, feature, mine)
        controls = beside(alike), beside([number for number in alike if number in here])
        found.append(Found(each.name, name, query, feature, place, float(scores[feature]), moves, *controls))
    return found


if __name__ == "__main__":
    from interp import zoo

    stories = zoo.load("stories")
    print("| property | SAE | feature | F1 | found | ablated: logit difference | others as frequent | there |")
    print("|---|---|--:|--:|---|--:|--:|--:|")
    for row in look(stories, PROPERTIES, documents(stories)):
        print(f"| {row.name} | `{row.sae}` | {row.feature} | {row.f1:.3f} | {row.place}, by {row.query!r} "
              f"| {row.moves:+.2f} | {row.others:.3f} | {row.there:.3f} |", flush=True)  # fmt: skip
