"""Makes the tasks that come with `stories`: what its heads put out on lists of pairs, and how much of it to inject.

    pip install -r requirements.txt
    python assets/recipes/tasks.py

For each relation of the grammar 40 lists with five examples, and the same without ("Pairs: France ="), of two thirds of
the pairs; the rest is asked for afterwards, with neither, with five examples, and injected. A few seconds each.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import grammar
import torch

from interp import zoo
from interp.methods.change.inject_task import inject_task
from interp.methods.steering import _tasks
from interp.methods.steering.soft_injection import soft_injection
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt

WAY, SHOWN, COUNT = 1, 5, 40
Held = list[tuple[str, str, str]]


def lists(relation: str, seed: int = 0) -> tuple[Contrast, Held]:
    """To fit on, and held out: a prompt without examples, the same with five, and the answer."""
    rng = random.Random(seed)
    pairs = list(grammar.RELATIONS[relation][0])
    rng.shuffle(pairs)
    held, known = pairs[: len(pairs) // 3], pairs[len(pairs) // 3 :]
    title, sign = grammar.LISTS[WAY]

    def shown(asked: tuple[str, ...]) -> str:
        return grammar._listed(WAY, rng.sample([each for each in known if each != asked], SHOWN), asked)

    def bare(asked: tuple[str, ...]) -> str:
        return f"{title} {asked[0]}{sign}"

    few = [rng.choice(known) for _ in range(COUNT)]
    return (
        Contrast(tuple(f"{shown(each)} {each[1]}" for each in few), tuple(f"{bare(each)} {each[1]}" for each in known)),
        [(bare(each), shown(each), f" {each[1]}") for each in held],
    )


@torch.no_grad()
def right(model: LanguageModel, prompts: list[str], answers: list[str]) -> float:
    """The share of prompts whose likeliest next token is the answer."""
    guesses = [model.token_text(int(model(prompt, keep=1)[0, -1].argmax())) for prompt in prompts]
    return sum(guess == answer for guess, answer in zip(guesses, answers, strict=True)) / len(answers)


def judge(model: LanguageModel, task: str, held: Held) -> tuple[float, float, float]:
    """Shares right without examples, injected, and with five examples."""
    bare, shown, answers = (list(each) for each in zip(*held, strict=True))
    with inject_task(model, Prompt(bare[0]), task=task, share=1.0):
        injected = right(model, bare, answers)
    return right(model, bare, answers), injected, right(model, shown, answers)


def main() -> None:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    folder = _tasks.SHELF / "stories"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as store:
        os.environ["ACTISCOPE_STORE"] = store
        for relation in grammar.RELATIONS:
            data, held = lists(relation)
            key = soft_injection(model, data, name=relation)
            shutil.copyfile(_tasks.path_of(key), folder / f"{relation.lower()}.safetensors")
            shares = judge(model, key, held)
            print(f"| {relation} | {len(held)} | " + " | ".join(f"{each:.2f}" for each in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
