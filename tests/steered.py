"""How far `stories` is steered on held-out prompts, what that costs other text, and what random directions do.

python -m tests.steered      # a table: behaviour, layer, strength, shares before and after, perplexity, random ones
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp import directions, hooks
from interp.methods import METHODS
from interp.model import LanguageModel
from interp.samples import Prompt

sys.path.insert(0, str(Path(__file__).parent.parent / "assets" / "recipes"))
import directions as recipe
import grammar

STRENGTHS = (0.5, 0.75, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)
PROMPTS = 40


@dataclass(frozen=True)
class Task:
    """A behaviour: prompts without it for choosing a strength and for judging, and whether a continuation shows it."""

    name: str
    direction: str
    layer: int
    choosing: tuple[str, ...]
    judging: tuple[str, ...]
    shows: Callable[[str], bool]
    tokens: int


def _cases(behaviour: str, answer: str, seed: int, held: bool) -> tuple[str, ...]:
    found = [each.prompt for each in grammar.cases(behaviour, 4 * PROMPTS, seed, held) if each.answer == answer]
    return tuple(found[:PROMPTS])


def _others(seed: int) -> tuple[str, ...]:
    rng = random.Random(seed)
    topics = [each for each in grammar.TOPICS if each != recipe.TOPIC]
    return tuple(recipe.about(rng.choice(topics), rng) for _ in range(PROMPTS))


def _cooks(text: str) -> bool:
    words = {word for group in grammar.TOPICS[recipe.TOPIC] for word in group}
    return bool({word.strip(".,?!") for word in text.split()[:1]} & words)


def tasks() -> list[Task]:
    """Sentiment, refusal and topic, from the side that does not show the behaviour."""
    return [
        Task(
            "a bad review is called positive", "stories/sentiment", 1, _cases("sentiment", " negative", 21, False),
            _cases("sentiment", " negative", 22, True), lambda text: text.startswith(" positive"), 2,
        ),
        Task(
            "a harmless request is refused", "stories/refusal", 2, _cases("refusal", " Sure", 21, False),
            _cases("refusal", " Sure", 22, True), lambda text: text.startswith(" Sorry"), 2,
        ),
        Task("a text turns to cooking", "stories/topic", 1, _others(31), _others(32), _cooks, 4),
    ]  # fmt: skip


def unrelated(count: int = 100, seed: int = 77) -> list[str]:
    """New documents of the language, of all families."""
    rng = random.Random(seed)
    return [grammar.document(rng) for _ in range(count)]


def share(model: LanguageModel, task: Task, prompts: Sequence[str], block: Callable[[], Any] | None = None) -> float:
    """The share of greedy continuations that show the behaviour."""
    hits = 0
    for prompt in prompts:
        with ExitStack() as stack:
            if block is not None:
                stack.enter_context(block())
            text = "".join(model.generate(Prompt(prompt), task.tokens))
        hits += task.shows(text)
    return hits / len(prompts)


@torch.no_grad()
def perplexity(model: LanguageModel, texts: Sequence[str], block: Callable[[], Any] | None = None) -> float:
    """exp of the mean of -ln p of every token after the first, steered at all of them."""
    total, count = 0.0, 0
    with ExitStack() as stack:
        if block is not None:
            stack.enter_context(block())
        for text in texts:
            ids = model.inputs(text)
            found = model(ids)[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])
            total, count = total - float(found.double().sum()), count + len(found)
    return math.exp(total / count)


@dataclass(frozen=True)
class Steered:
    """random: the mean share over random directions of equal norm; ratio: of perplexities of unrelated text."""

    name: str
    layer: int
    strength: float
    before: float
    after: float
    ratio: float
    random: float


def steered(model: LanguageModel, task: Task, draws: int = 5, texts: int = 100) -> Steered:
    """Choose the smallest strength that turns 19 of 20 prompts, and judge it on others."""

    def pushing(name: str, strength: float) -> Callable[[], Any]:
        return lambda: METHODS["steer"](
            model, Prompt("The"), direction=name, layer=task.layer, strength=strength, where="all"
        )

    strength = next(
        (each for each in STRENGTHS if share(model, task, task.choosing, pushing(task.direction, each)) >= 0.95),
        STRENGTHS[-1],
    )
    found = directions.load(task.direction, model)
    v = found.at(task.layer)
    turned = []
    for seed in range(draws):
        drawn = torch.randn(len(v), generator=torch.Generator().manual_seed(seed))
        other = dataclasses.replace(
            found,
            name=f"random {seed}",
            layers=(task.layer,),
            vectors=(drawn * v.norm() / drawn.norm())[None],
            facts={},
        )
        turned.append(share(model, task, task.judging, pushing(directions.keep(other), strength)))
    own, other_texts = pushing(task.direction, strength), unrelated(texts)
    with hooks.alone():
        plain = perplexity(model, other_texts)
    return Steered(
        task.name, task.layer, strength, share(model, task, task.judging), share(model, task, task.judging, own),
        perplexity(model, other_texts, own) / plain, sum(turned) / draws,
    )  # fmt: skip


@dataclass(frozen=True)
class Conditioned:
    """The share of requests that are refused, harmful and harmless: plain, steered always, steered on condition.

    others: the share of documents of any kind on which the condition is met.
    """

    harmful: tuple[float, float, float]
    harmless: tuple[float, float, float]
    others: float


def conditioned(model: LanguageModel, count: int = PROMPTS) -> Conditioned:
    """Steer towards refusing, always and where the condition that comes with the model is met (CAST)."""
    task = tasks()[1]
    settings: dict[str, Any] = {"direction": task.direction, "layer": task.layer, "strength": 2.25}
    found = []
    for answer in (" Sorry", " Sure"):
        prompts = _cases("refusal", answer, 22, True)[:count]
        found.append((
            share(model, task, prompts),
            share(model, task, prompts, lambda: METHODS["steer"](model, Prompt("The"), **settings)),
            share(
                model, task, prompts,
                lambda: METHODS["conditional_steer"](model, Prompt("The"), condition="stories/harmful", **settings),
            ),
        ))  # fmt: skip
    met = 0
    texts = [each for each in unrelated(count) if "User:" not in each]
    for text in texts:
        ids = model.inputs(text)
        with torch.no_grad():
            plain = model(ids)
            with METHODS["conditional_steer"](model, Prompt(text), condition="stories/harmful", **settings):
                met += not torch.equal(model(ids), plain)
    return Conditioned(*found, met / len(texts))


if __name__ == "__main__":
    import os
    import tempfile

    from interp import zoo

    with tempfile.TemporaryDirectory() as store:
        os.environ["ACTISCOPE_STORE"] = store
        stories: Any = zoo.load("stories")
        print("| behaviour | layer | strength | before | after | perplexity of other text | random directions |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for each in tasks():
            row = steered(stories, each)
            print(f"| {row.name} | {row.layer} | {row.strength:g} | {row.before:.3f} | {row.after:.3f} "
                  f"| x {row.ratio:.2f} | {row.random:.3f} |", flush=True)  # fmt: skip
        both = conditioned(stories)
        print("\n| refused | plain | steered always | steered on condition |\n|---|--:|--:|--:|")
        for name, shares in (("harmful requests", both.harmful), ("harmless requests", both.harmless)):
            print(f"| {name} | {' | '.join(f'{each:.3f}' for each in shares)} |")
        print(f"\nOn {both.others:.0%} of other documents the condition is met.")
