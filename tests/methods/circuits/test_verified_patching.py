"""What is verified against exact patching, and how often the bound holds for what is not."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from interp import Unsuitable, zoo
from interp.methods.circuits._pairs import nodes_at, read_pair, sites_of
from interp.methods.circuits._patching import Patcher
from interp.methods.circuits.activation_patching import activation_patching
from interp.methods.circuits.atp_star import atp_star
from interp.methods.circuits.attribution_patching import attribution_patching
from interp.methods.circuits.verified_patching import MEMBERS, bound_of, subsets, verified_patching
from interp.model import LanguageModel
from interp.samples import PromptPair
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
IOI = PromptPair(
    "When Felix and Walter went to the store, Walter gave a drink to",
    "When Felix and Walter went to the store, Felix gave a drink to",
    " Felix",
    " Walter",
)
INDUCTION = PromptPair(
    " river tree cat park hat sun dog boy cat", " river tree cat park hat sun dog boy sun", " park", " dog"
)
VERIFY = 10


@functools.lru_cache(1)
def stories() -> LanguageModel:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    return model


def holds(pair: PromptPair, seeds: int) -> int:
    """For how many seeds no part that is not verified moves the metric by more than the bound."""
    model = stories()
    read, sites = read_pair(model, pair), sites_of(model, "heads and MLPs")
    nodes = nodes_at(model, sites, read.length, True)
    order = np.argsort(-atp_star(model, pair).values, kind="stable")
    rest = [nodes[index] for index in order[VERIFY:]]
    patcher = Patcher(model, read, sites)
    largest = patcher.effects([(node,) for node in rest]).abs().max()
    held = 0
    for seed in range(seeds):
        chosen = subsets(200, len(rest), seed)
        rows = [[rest[index] for index in np.flatnonzero(row)] for row in chosen]
        held += bool(largest <= bound_of(chosen, patcher.effects(rows).numpy(), 0.99))
    return held


@pytest.mark.parametrize("kind", ["heads and MLPs", "q, k, v", "patterns"])
def test_the_first_are_patched_exactly(kind: str) -> None:
    model = tiny.language("gemma2")
    for rank_by, method in (("AtP*", atp_star), ("AtP", attribution_patching)):
        settings = {"nodes": kind, "direction": "denoising", "metric": "log-probability"}
        graph = verified_patching(model, PAIR, rank_by=rank_by, verify=9, samples=0, **settings)  # type: ignore[arg-type]
        exact, estimate = activation_patching(model, PAIR, **settings), method(model, PAIR, **settings)
        first = np.argsort(-np.abs(estimate.values), kind="stable")[:9]
        assert graph.nodes == tuple(estimate.nodes[index] for index in first)
        np.testing.assert_allclose(graph.values, [exact.value(name) for name in graph.nodes], rtol=0, atol=1e-5)
        np.testing.assert_allclose(graph.beside, estimate.values[first])
        assert graph.beside_name == rank_by and graph.direction == "denoising"
        assert graph.base == pytest.approx(exact.base, abs=1e-6)


def test_nothing_is_bounded_without_subsets_or_without_a_rest() -> None:
    model = tiny.language("gpt2")
    for settings in ({"samples": 0}, {"samples": 3}, {"verify": 1000}):
        graph = verified_patching(model, PAIR, **settings)
        assert np.isnan(graph.bound) and graph.note == ""
    assert len(graph.nodes) == 3 * 17 * 3
    graph = verified_patching(model, PAIR, samples=4, verify=1)
    assert np.isfinite(graph.bound) and graph.bound > 0


def test_the_bound_is_told_and_fixed_by_the_seed() -> None:
    model = tiny.language("gpt2")
    graphs = [verified_patching(model, PAIR, verify=5, samples=40, seed=seed) for seed in (0, 0, 1)]
    assert graphs[0].bound == graphs[1].bound != graphs[2].bound
    assert graphs[0].confidence == 0.99
    assert graphs[0].note.startswith("Verified the first 5 of 153 exactly; with 99 % confidence no other part")
    assert f"{graphs[0].bound:.2g} logit" in graphs[0].note
    surer = verified_patching(model, PAIR, verify=5, samples=40, confidence=0.999)
    assert surer.bound > graphs[0].bound


def test_neurons_are_left_to_estimates() -> None:
    with pytest.raises(Unsuitable, match="one by one") as problem:
        verified_patching(tiny.language("gpt2"), PAIR, nodes="neurons")
    assert str(problem.value).endswith(".")


@pytest.mark.parametrize("samples", [4, 10, 16, 200])
def test_every_part_is_in_as_many_subsets(samples: int) -> None:
    chosen = subsets(samples, 300, seed=2)
    assert chosen.shape == (samples, 300) and chosen.dtype == bool
    assert set(chosen.sum(0)) == {min(MEMBERS, samples // 2)}
    assert np.array_equal(chosen, subsets(samples, 300, seed=2))
    assert not np.array_equal(chosen, subsets(samples, 300, seed=3))


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("spread", ["alike", "one large", "heavy tails"])
def test_the_bound_holds_where_effects_add_up(spread: str, confidence: float) -> None:
    rng, held, trials = np.random.default_rng(0), 0, 300
    for seed in range(trials):
        effects = rng.standard_normal(60)
        if spread == "one large":
            effects[7] = 20
        elif spread == "heavy tails":
            effects = effects**3
        chosen = subsets(100, 60, seed)
        held += np.abs(effects).max() <= bound_of(chosen, chosen @ effects + rng.normal(0, 0.1, 100), confidence)
    # three standard deviations of how often a thing of that chance happens
    assert held / trials >= confidence - 3 * np.sqrt(confidence * (1 - confidence) / trials)


def test_one_part_that_moves_all_is_bounded_by_what_it_does() -> None:
    chosen = subsets(50, 20, seed=0)
    assert bound_of(chosen, -3.0 * chosen[:, 4], 0.99) == pytest.approx(3)
    assert bound_of(chosen, np.zeros(50), 0.99) == 0


def test_more_subsets_and_less_confidence_tighten_the_bound() -> None:
    effects = np.random.default_rng(0).standard_normal(100)
    bounds = []
    for samples in (16, 100, 1000):
        chosen = [subsets(samples, 100, seed) for seed in range(20)]
        bounds.append(np.mean([bound_of(each, each @ effects, 0.99) for each in chosen]))
    assert bounds[0] > bounds[1] > bounds[2] > np.abs(effects).max()
    chosen = [subsets(100, 100, seed) for seed in range(20)]
    assert np.mean([bound_of(each, each @ effects, 0.9) for each in chosen]) < bounds[1]


@pytest.mark.parametrize("pair", [IOI, INDUCTION], ids=["ioi", "induction"])
def test_the_bound_holds_on_a_trained_model(pair: PromptPair) -> None:
    assert holds(pair, 5) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("pair", [IOI, INDUCTION], ids=["ioi", "induction"])
def test_the_bound_holds_on_a_trained_model_for_95_of_100_seeds(pair: PromptPair) -> None:
    assert holds(pair, 100) >= 95
