"""Scores by hand; the heads whose job is known; a head that looks everywhere alike has what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import zoo
from interp.methods.circuits.head_detectors import (
    COLUMNS,
    UNIFORM,
    head_detectors,
    places,
    random_repeats,
    words,
)
from interp.samples import Prompt
from interp.sites import Site
from tests import tiny

ON = ("random repeats", "this prompt")
PROMPT = Prompt("the cat and the hat, the cat")


def test_places_by_hand() -> None:
    found = places(torch.tensor([[7, 8, 7, 8, 8]]))
    pairs = {name: {tuple(each) for each in mask.nonzero().tolist()} for name, mask in found.items()}
    assert pairs == {
        "previous token": {(1, 0), (2, 1), (3, 2), (4, 3)},
        "duplicate token": {(2, 0), (3, 1), (4, 1), (4, 3)},
        "induction": {(2, 1), (3, 2), (4, 2)},  # (4, 4) is the token itself
        "first token": {(1, 0), (2, 0), (3, 0), (4, 0)},
    }


def test_words_by_hand() -> None:
    assert words(["Un", "believ", "able", ".", " Yes", "!", "No"]) == [0, 0, 0, -1, 1, -1, 2]
    assert words(["a", " ", "b", "c d", "e"]) == [0, -1, 1, 1, 1]
    assert words(["", "é", "t"]) == [-1, 0, 0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_scores_are_what_loops_give(family: str) -> None:
    model = tiny.language(family)
    tokens = model.inputs(PROMPT)[0].tolist()
    texts = model.tokens(PROMPT.text)
    result = head_detectors(model, PROMPT, on="this prompt")
    with model.record([Site("pattern", layer) for layer in range(3)]) as found:
        model(PROMPT)
    word, number = [], 0
    for text in texts:
        number += not text.isalnum()
        word.append(number if text.isalnum() else -1)
    looks = {
        "previous token": lambda t, j: j == t - 1,
        "duplicate token": lambda t, j: tokens[j] == tokens[t],
        "induction": lambda t, j: j > 0 and tokens[j - 1] == tokens[t],
        "subword merge": lambda t, j: word[j] == word[t] >= 0,
        "first token": lambda t, j: j == 0,
    }
    for name, sees in looks.items():
        for layer in range(3):
            for head in range(model.parts.heads):
                masses = []
                for t in range(len(tokens)):
                    keys = [j for j in range(t) if sees(t, j)]
                    if keys:
                        masses.append(sum(float(found[Site("pattern", layer)][0, head, t, j]) for j in keys))
                row = result.rows.index(f"L{layer}H{head}")
                assert result.values[row, COLUMNS.index(name)] == pytest.approx(np.mean(masses), abs=1e-6), name


@pytest.mark.parametrize("on", ON)
def test_the_heads_of_the_known_circuit(on: str) -> None:
    model = zoo.load("induction")
    for seed in range(3):
        result = head_detectors(model, Prompt("xyzwqxyzwq"), on=on, seed=seed)
        table = dict(zip(result.rows, result.values, strict=True))
        columns = {name: index for index, name in enumerate(COLUMNS)}
        assert table["L0H1"][columns["previous token"]] == pytest.approx(1, abs=1e-6)
        assert table["L1H2"][columns["induction"]] == pytest.approx(1, abs=1e-3)
        for name, head in (("previous token", "L0H1"), ("induction", "L1H2")):
            rest = max(row[columns[name]] for key, row in table.items() if key not in (head, UNIFORM))
            assert rest < 0.25, name
        # the head that is left out looks everywhere alike, as chance does
        np.testing.assert_allclose(table["L0H0"], table[UNIFORM], atol=1e-6)


def test_the_trained_model_has_both_heads() -> None:
    model = zoo.load("stories")
    result = head_detectors(model, PROMPT)
    best = {name: result.values[:-1, column].max() for column, name in enumerate(COLUMNS)}
    chance = dict(zip(COLUMNS, result.values[-1], strict=True))
    assert best["previous token"] > 0.9 and best["induction"] > 0.5
    assert chance["previous token"] < 0.1 and chance["induction"] < 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_uniform_attention_is_chance(family: str) -> None:
    model = tiny.language(family)

    def level(pattern: torch.Tensor) -> torch.Tensor:
        seen = torch.ones_like(pattern).tril()
        return seen / seen.sum(-1, keepdim=True)

    for on in ON:
        with model.edit({Site("pattern", layer): level for layer in range(3)}):
            result = head_detectors(model, PROMPT, on=on)
        np.testing.assert_allclose(result.values, np.broadcast_to(result.values[-1], result.values.shape), atol=1e-6)


def test_random_repeats_are_the_same_twice() -> None:
    model = zoo.load("induction")
    ids = random_repeats(model, model.inputs(PROMPT), 0)[0].tolist()
    once, again = ids[1 : 1 + len(ids) // 2], ids[1 + len(ids) // 2 :]
    assert ids[0] == 0 and once == again and len(set(once)) == len(once)
    assert ids != random_repeats(model, model.inputs(PROMPT), 1)[0].tolist()


def test_what_can_not_occur_is_zero_and_said() -> None:
    model = tiny.language("gpt2")
    result = head_detectors(model, Prompt("a"), on="this prompt")
    assert not result.values.any() and all(name in result.note for name in COLUMNS)
    result = head_detectors(model, Prompt("a b"))
    assert result.note == "Can't occur here: subword merge." and np.isfinite(result.values).all()
