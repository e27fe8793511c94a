"""What steering and its meters cost on `stories`, on one thread: `make bench`."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pytest
import torch

from interp import zoo
from interp.methods import METHODS
from interp.methods.steering.dose_response import dose_response
from interp.methods.steering.side_effects import side_effects
from interp.model import LanguageModel
from interp.samples import Prompt
from tests.benchmarks.clock import ratios

pytestmark = pytest.mark.bench
ROUNDS = 15
SAMPLE = Prompt("User: How do I bake a cake?\nAssistant:")
TOKENS = 24
SETTINGS = {"direction": "stories/refusal", "layer": 2}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.set_num_threads(1)
    found = zoo.load("stories")
    assert isinstance(found, LanguageModel)
    tokenizer = copy.deepcopy(found.tokenizer)
    tokenizer.eos_token = None  # a text that ended early would make its side cheaper
    return LanguageModel(found.network, tokenizer, found.name)


def generation(model: LanguageModel) -> Callable[[], object]:
    def run() -> object:
        return list(model.generate(SAMPLE, TOKENS, 1.0))

    return run


def test_steered_generation_takes_hardly_longer(model: LanguageModel) -> None:
    plain = generation(model)

    def steered() -> object:
        with METHODS["steer"](model, SAMPLE, strength=0.5, **SETTINGS):
            return plain()

    taken = ratios({"plain": plain, "steered": steered}, 4 * ROUNDS)
    print("\n", taken)
    assert taken["steered"] <= 1.1


def test_the_meters_follow_a_slider(model: LanguageModel) -> None:
    """Each time at a strength that was never looked at, the unchanged side being known."""
    times = []
    side_effects(model, SAMPLE, direction="stories/refusal")
    for step in range(ROUNDS):
        start = time.perf_counter()
        with METHODS["steer"](model, SAMPLE, strength=0.3 + 0.05 * step, **SETTINGS):
            side_effects(model, SAMPLE, direction="stories/refusal")
        times.append(time.perf_counter() - start)
    print(f"\n {statistics.median(times):.3f} s, at most {max(times):.3f} s")
    assert statistics.median(times) < 0.5


@pytest.mark.parametrize("measure", ["behaviour", "perplexity", "KL", "repetition"])
def test_a_sweep_of_nine_strengths_takes_no_longer_than_as_many_generations(model: LanguageModel, measure: str) -> None:
    """One text and one random direction at each strength, though both are written."""
    plain = generation(model)

    def sweep() -> object:
        return dose_response(model, SAMPLE, measure=measure, steps=9, seeds=1, n=TOKENS, **SETTINGS)

    taken = ratios({"generation": plain, "sweep": sweep}, ROUNDS)
    print("\n", measure, taken)
    assert taken["sweep"] <= 9.5
