"""Patching many parts in one batch against patching one by one, and what a patch must and can't change."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Unsuitable, zoo
from interp.methods.circuits import _patching
from interp.methods.circuits._pairs import Nodes, Pair, nodes_at, read_pair, sites_of
from interp.methods.circuits._patching import Patcher, put
from interp.methods.circuits.activation_patching import activation_patching
from interp.model import LanguageModel
from interp.samples import PromptPair
from interp.sites import Node, Site
from tests import tiny

PAIR = PromptPair("The cat sat by it", "The dog sat on it", "a", "b")
FIRST = 4
"""The first token in which the two prompts differ."""
KINDS: tuple[Nodes, ...] = ("heads and MLPs", "q, k, v", "residual stream", "attention and MLPs", "patterns")


def slowly(model: LanguageModel, pair: Pair, node: Node) -> Tensor:
    """Logits at every position of a whole forward with one part from the donor."""
    assert node.site is not None
    site = Site(node.kind, node.layer)
    with torch.no_grad(), model.record([site]) as donor:
        model(pair.donor)
    at = slice(None) if node.position is None else node.position
    index: tuple[object, ...] = (0, at) if node.head is None else (0, at, node.head)
    if node.kind == "pattern":
        index = (0, node.head, at)

    def edit(value: Tensor) -> Tensor:
        new = value.clone()
        new[index] = donor[site][index]
        return new

    with torch.no_grad(), model.edit({site: edit}):
        return model(pair.base)[0]


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_the_donors_embeddings_give_the_donors_metric(family: str) -> None:
    for direction in ("noising", "denoising"):
        graph = activation_patching(
            tiny.language(family),
            PAIR,
            nodes="residual stream",
            by_position=False,
            direction=direction,  # type: ignore[arg-type]
        )
        assert graph.base != graph.donor and graph.direction == direction
        way = graph.donor - graph.base
        assert graph.value("resid_pre.0") == pytest.approx(way, abs=1e-5)
        assert graph.value("resid_post.2") == pytest.approx(way, abs=1e-5)
        recovery = graph.recovery()
        assert recovery is not None and recovery[0] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_each_effect_is_that_of_a_whole_run_with_one_part_patched(family: str) -> None:
    model, rng = tiny.language(family), np.random.default_rng(0)
    pair = read_pair(model, PAIR)
    for kind in KINDS:
        for by_position in (True, False):
            graph = activation_patching(model, PAIR, nodes=kind, by_position=by_position)
            expected = [str(each) for each in nodes_at(model, sites_of(model, kind), pair.length, by_position)]
            assert list(graph.nodes) == expected
            assert graph.total == pytest.approx(np.abs(graph.values).sum())
            moving = [name for name in graph.nodes if "@" not in name or int(name.partition("@")[2]) >= FIRST]
            for name in rng.choice(moving, min(4, len(moving)), replace=False):
                whole = float(pair.score(slowly(model, pair, Node.parse(name))[-1:]))
                assert graph.value(name) == pytest.approx(whole - graph.base, abs=1e-5), name


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_what_is_the_same_in_both_runs_moves_nothing_when_patched(family: str) -> None:
    model = tiny.language(family)
    for kind in KINDS:
        graph = activation_patching(model, PAIR, nodes=kind)
        early = np.array([int(name.partition("@")[2]) < FIRST for name in graph.nodes])
        assert np.abs(graph.values[early]).max() < 1e-5 < np.abs(graph.values[~early]).max()


@pytest.mark.parametrize("family", tiny.LANGUAGE)
def test_a_patch_at_one_token_leaves_earlier_logits_alone(family: str) -> None:
    model = tiny.language(family)
    pair = read_pair(model, PAIR)
    with torch.no_grad():
        plain = model(pair.base)[0]
    for name in ("resid_pre.1@12", "z.0.1@12", "mlp_out.1@12", "q.1.0@12", "k.1.1@12", "v.0.0@12", "pattern.1.0@12"):
        logits = slowly(model, pair, Node.parse(name))
        torch.testing.assert_close(logits[:12], plain[:12], rtol=0, atol=2e-5)
        assert name[0] not in "rzm" or (logits[12:] - plain[12:]).abs().max() > 5e-5, name


def test_keys_of_grouped_heads_are_patched_together() -> None:
    graph = activation_patching(tiny.language("llama"), PAIR, nodes="q, k, v", by_position=False)
    assert {f"q.0.{head}" for head in range(4)} | {"k.0.0", "k.0.1", "v.0.0", "v.0.1"} <= set(graph.nodes)
    assert not {"k.0.2", "v.0.2"} & set(graph.nodes)


@pytest.mark.parametrize("family", ["gemma2"])
def test_the_size_of_a_batch_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language(family)
    whole = {kind: activation_patching(model, PAIR, nodes=kind).values for kind in KINDS}
    for batch, tokens in ((7, 2048), (64, 60)):
        monkeypatch.setattr(_patching, "BATCH", batch)
        monkeypatch.setattr(_patching, "TOKENS", tokens)
        for kind in KINDS:
            values = activation_patching(model, PAIR, nodes=kind).values
            np.testing.assert_allclose(values, whole[kind], rtol=0, atol=1e-5)


def test_rows_of_several_parts_are_patched_at_once_in_any_order() -> None:
    model = tiny.language("llama")
    pair = read_pair(model, PAIR)
    sites = [Site("z", 0), Site("mlp_out", 1), Site("resid_post", 2)]
    names = [[], ["z.0.1@6"], ["mlp_out.1@9", "z.0.1@6"], ["resid_post.2@16", "z.0.0@4"], ["resid_post.2@16"]]
    rows = [[Node.parse(name) for name in row] for row in names]
    patcher = Patcher(model, pair, sites)
    effects = patcher.effects(rows)
    assert effects[0] == 0
    assert effects[3] == pytest.approx(patcher.other - patcher.base, abs=1e-5)
    assert effects[4] == pytest.approx(patcher.other - patcher.base, abs=1e-5)
    order = [4, 2, 0, 3, 1]
    torch.testing.assert_close(patcher.effects([rows[each] for each in order]), effects[order], rtol=0, atol=1e-6)
    with torch.no_grad(), model.record(sites[:2]) as donor:
        model(pair.donor)
    edits = {
        site: lambda value, site=site, node=node: put(value, donor[site], [(0, node)], site.kind)
        for site, node in zip(sites[:2], (rows[2][1], rows[2][0]), strict=True)
    }
    with torch.no_grad(), model.edit(edits):
        whole = float(pair.score(model(pair.base)[:, -1]))
    assert effects[2] == pytest.approx(whole - patcher.base, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_denoising_is_noising_with_the_prompts_swapped(family: str) -> None:
    model = tiny.language(family)
    swapped = PromptPair(PAIR.corrupted, PAIR.clean, PAIR.answer, PAIR.foil)
    there = activation_patching(model, PAIR, direction="denoising")
    back = activation_patching(model, swapped)
    np.testing.assert_array_equal(there.values, back.values)
    assert (there.base, there.donor) == (back.base, back.donor)
    noising = activation_patching(model, PAIR)
    assert (noising.base, noising.donor) == (pytest.approx(there.donor), pytest.approx(there.base))


def test_metrics_are_of_one_distribution() -> None:
    model = tiny.language("gpt2")
    logs = activation_patching(model, PAIR, metric="log-probability")
    share = activation_patching(model, PAIR, metric="probability")
    difference = activation_patching(model, PAIR)
    foil = activation_patching(model, dataclasses.replace(PAIR, answer="b", foil="a"), metric="log-probability")
    assert share.base == pytest.approx(np.exp(logs.base))
    np.testing.assert_allclose(share.base + share.values, np.exp(logs.base + logs.values), rtol=1e-9)
    np.testing.assert_allclose(difference.values, logs.values - foil.values, rtol=0, atol=1e-9)
    assert (logs.units, share.units, difference.units) == ("nat", "probability", "logit")
    for direction in ("noising", "denoising"):
        kl = activation_patching(model, PAIR, metric="KL divergence", direction=direction)  # type: ignore[arg-type]
        ends = (kl.base, kl.donor) if direction == "noising" else (kl.donor, kl.base)
        assert ends[0] == pytest.approx(0, abs=1e-9) and ends[1] > 1e-5
        assert (kl.base + kl.values > -1e-9).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"corrupted": "The dogs sat on it"}, "equally many"),
        ({"corrupted": "The cat sat by it"}, "the same"),
        ({"answer": "ab"}, "single token|tokens"),
        ({"foil": "ab"}, "single token|tokens"),
        ({"foil": "a"}, "same token"),
    ],
)
def test_what_can_not_be_patched_is_refused_in_a_sentence(change: dict[str, str], reason: str) -> None:
    with pytest.raises(Unsuitable, match=reason) as problem:
        activation_patching(tiny.language("gpt2"), dataclasses.replace(PAIR, **change))
    assert str(problem.value).endswith(".") and "\n" not in str(problem.value)


def test_neurons_are_left_to_estimates() -> None:
    with pytest.raises(Unsuitable, match="attribution patching") as problem:
        activation_patching(tiny.language("gpt2"), PAIR, nodes="neurons")
    assert str(problem.value).endswith(".")


def test_without_answer_and_foil_each_prompts_first_guess_is_taken() -> None:
    model, clean, corrupted = tiny.language("llama"), "The cat sat", "The cat sad"
    unnamed = activation_patching(model, PromptPair(clean, corrupted), by_position=False)
    with torch.no_grad():
        guesses = [model.token_text(int(model(text)[0, -1].argmax())) for text in (clean, corrupted)]
    assert unnamed.target == f"{guesses[0]} over {guesses[1].lstrip(' ')}"
    assert unnamed.base > 0 > unnamed.donor


def test_a_metric_that_does_not_move_gives_a_note_and_no_shares() -> None:
    model = zoo.load("induction")
    assert isinstance(model, LanguageModel)
    # nothing matches, so that all letters are equally likely
    graph = activation_patching(model, PromptPair("abcd", "abce", "x", "y"))
    assert graph.recovery() is None
    assert "no effect is given as a share" in graph.note and graph.note.endswith(".")
    assert np.isfinite(graph.values).all() and np.isfinite(graph.total)
