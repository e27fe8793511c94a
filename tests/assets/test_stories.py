"""The models of the small language reach on held-out cases what their cards say; ready-made prompts come out right."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from interp import zoo
from interp.methods.reading.next_tokens import next_tokens
from interp.model import LanguageModel
from interp.samples import Prompt, Target
from pages.ui.prompts import ready

RECIPES = Path(__file__).parents[2] / "assets" / "recipes"
NAMES = [name for name in zoo.shelf() if name.startswith("stories")]
PROMISED = {"ioi", "induction", "agreement", "capitals", "maps", "sentiment", "refusal"}


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    sys.path.insert(0, str(RECIPES))
    try:
        import stories

        yield stories
    finally:
        sys.path.remove(str(RECIPES))


def claimed(name: str) -> dict[str, float]:
    """What the card's table says of the weights that are shipped."""
    rows = re.findall(r"^\| `(\w+)` \|.*?\| \**([01]\.\d+)\** \|", zoo.shelf()[name]["card"], re.MULTILINE)
    return {behaviour: float(value) for behaviour, value in rows}


def test_the_shelf_has_three_of_them() -> None:
    assert NAMES == ["stories", "stories-gpt2", "stories-moe"]
    assert set(claimed("stories")) >= PROMISED


@pytest.mark.parametrize("name", NAMES)
def test_held_out_accuracies_are_those_of_the_card(name: str, recipe: Any) -> None:
    """150 cases of each behaviour, other ones than those that the card counts: within three standard errors."""
    model = zoo.load(name)
    assert isinstance(model, LanguageModel)
    found = recipe.judged(model.network, model.tokenizer, 150, seed=3)
    for behaviour, value in claimed(name).items():
        slack = 3 * (value * (1 - value) / 150) ** 0.5 + 0.02
        assert abs(found[behaviour] - value) <= slack, (behaviour, found[behaviour], value)
        assert value >= 0.9, f"{behaviour} is below 90 % and must not be claimed"


def test_what_is_held_out_stands_in_no_training_document(recipe: Any) -> None:
    """Thirty thousand documents, against what cases are made of."""
    grammar = recipe.grammar
    rng = random.Random(11)
    documents = [grammar.document(rng) for _ in range(30_000)]
    gifts = [each for each in documents if re.search(r" (gave|handed|passed|offered|sent) an? ", each)]
    assert len(gifts) > 3000
    for text in gifts:
        words = set(re.findall(r"\w+", text))
        assert not words & grammar.HELD_NAMES and not words & grammar.HELD_OBJECTS and not words & grammar.HELD_PLACES
    text = "\n".join(documents)
    for index, (country, capital, *_) in enumerate(grammar.COUNTRIES):
        assert f"{grammar.CAPITAL[index % 4].format(country)} {capital}" not in text
        assert f"{grammar.CAPITAL[(index + 1) % 4].format(country)} {capital}" in text
    for pairs, _ in grammar.RELATIONS.values():
        for number, (one, two) in enumerate(pairs):
            title, sign = grammar.LISTS[number % 4]
            written = re.compile(rf" {one}{re.escape(sign)} {two}[,.]")
            # lists of random words, all of which stand there twice, may hit on a pair by chance
            assert not any(each.startswith(title) and len(written.findall(each)) == 1 for each in documents)
    labelled = [each for each in documents if "Sentiment:" in each]
    assert labelled and not any(set(re.findall(r"\w+", each)) & grammar.HELD_JUDGEMENTS for each in labelled)
    chats = [each for each in documents if each.startswith("User:")]
    for verb, thing in grammar.HELD_REQUESTS:
        assert not any(f"{verb} {thing.replace('_', ' ')}" in each for each in chats)
    # but each of the words is known from elsewhere
    for word in (*grammar.HELD_NAMES, *grammar.HELD_OBJECTS, *grammar.HELD_JUDGEMENTS):
        assert re.search(rf"\b{word}\b", text), word


@pytest.mark.parametrize("behaviour", ready())
def test_ready_made_prompts_come_out_right_on_the_model_they_open_with(behaviour: str) -> None:
    model = zoo.load("induction" if behaviour == "induction" else "stories")
    assert isinstance(model, LanguageModel)
    right = []
    for case in ready()[behaviour]:
        clean, corrupted = (model.inputs(case[name]) for name in ("prompt", "corrupted"))
        assert clean.shape == corrupted.shape, case
        answer, foil = (model.token_index(Target(case[name])) for name in ("answer", "foil"))
        logits = model(Prompt(case["prompt"]), keep=1)[0, -1]
        right.append(bool(logits[answer] > logits[foil]))
        assert next_tokens(model, Prompt(case["prompt"])).rows
    assert sum(right) >= len(right) - 1 if behaviour != "greater_than" else sum(right) >= 0.6 * len(right)
