"""Each number of the meters against a loop over tokens, without caches and batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods import METHODS
from interp.methods.steering.difference_of_means import difference_of_means
from interp.methods.steering.kl_by_token import kl_by_token
from interp.methods.steering.side_effects import side_effects
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, TextSet
from tests import tiny
from tests.methods.change import pushed

SAMPLE = Prompt("The cat sat on the")
TEXTS = TextSet(("The cat sat on the mat, and so did I.", "A dog ran."))
LENGTH = len(SAMPLE.text)


def value(table: Table, row: str) -> tuple[float, float]:
    plain, changed = table.values[table.rows.index(row)]
    return float(plain), float(changed)


def text_of(model: LanguageModel, n: int) -> list[int]:
    """The tokens of a continuation, drawn as `generate` draws them but kept as ids."""
    generator = torch.Generator().manual_seed(0)
    ids = model.inputs(SAMPLE)
    for _ in range(n):
        choice = torch.multinomial(model(ids)[0, -1].softmax(0), 1, generator=generator)
        ids = torch.cat([ids, choice[None]], 1)
    return ids[0].tolist()


@pytest.mark.parametrize("family", ["mistral", "llama", "gemma2"])
def test_every_number_is_that_of_a_loop(family: str) -> None:
    model = tiny.language(family, 3)
    name = pushed.random_direction(model, 2.0)
    steer = METHODS["steer"](model, SAMPLE, direction=name, layer=1, strength=1.0)
    plain_said = text_of(model, 9)[LENGTH:]
    with steer:
        table = side_effects(model, SAMPLE, n=9, texts=TEXTS)
        scores = kl_by_token(model, SAMPLE, n=9)
        ids = text_of(model, 9)
        streamed = "".join(model.generate(SAMPLE, 9, 1.0))
    said = ids[LENGTH:]
    whole = torch.tensor([ids])
    kl, lengths, moves = [0.0], [], []
    with model.record(["resid_post.2"]) as found:
        plain = model(whole)[0].double().log_softmax(1)
    h = found["resid_post.2"][0].double()
    with (
        METHODS["steer"](model, SAMPLE, direction=name, layer=1, strength=1.0),
        model.record(["resid_post.2"]) as found,
    ):
        changed = model(whole)[0].double().log_softmax(1)
    moved = found["resid_post.2"][0].double()
    for at in range(len(ids) - 1):
        kl.append(sum(float(p.exp() * (p - q)) for p, q in zip(plain[at], changed[at], strict=True)))
        lengths.append(float(moved[at].norm() / h[at].norm()))
        moves.append(float((moved[at] - h[at]).norm() / h[at].norm()))
    np.testing.assert_allclose(scores.values, kl, rtol=1e-3, atol=1e-5)
    assert scores.score == pytest.approx(np.mean(kl[1:]), rel=1e-3)
    assert "".join(scores.tokens) == SAMPLE.text + streamed and max(kl) > 0.01
    expected = {
        "KL, prompt": np.mean(kl[1:LENGTH]),
        "KL, continuation": np.mean(kl[LENGTH:]),
        "KL, largest": max(kl),
        "stream length": np.mean(lengths),
        "stream moved by": np.mean(moves),
        "distinct-1": len(set(said)) / 9,
        "distinct-2": len(set(pairwise(said))) / 8,
        "repetition": 1 - len(set(zip(said, said[1:], said[2:], strict=False))) / 7,
    }
    for row, number in expected.items():
        assert value(table, row)[1] == pytest.approx(number, rel=1e-3, abs=1e-6), row
    assert value(table, "distinct-1")[0] == len(set(plain_said)) / 9
    before, after = value(table, "perplexity")
    assert value(table, "perplexity ratio")[1] == pytest.approx(after / before) and abs(after - before) > 0.1


def test_where_nothing_is_in_force_nothing_has_changed_bit_for_bit() -> None:
    model = tiny.featured(tiny.language("llama"))
    table = side_effects(model, SAMPLE, n=6)
    assert "behaviour" in table.rows
    assert np.array_equal(table.values[:, 0], table.values[:, 1])
    assert not kl_by_token(model, SAMPLE, n=6).values.any()
    with METHODS["steer"](model, SAMPLE, strength=0.0):
        assert side_effects(model, SAMPLE, n=6) == table


def test_the_behaviour_is_scored_by_the_direction_that_is_named() -> None:
    model = tiny.language("llama")
    key = difference_of_means(model, tiny.two_sides())
    for held in (0.0, 1.0):
        with METHODS["clamp_direction"](model, SAMPLE, direction=key, layer=2, value=held, positions=(LENGTH - 1,)):
            table = side_effects(model, SAMPLE, n=2, direction=key)
        plain, changed = value(table, "behaviour")
        assert changed == pytest.approx(held, abs=1e-4) and abs(plain - held) > 0.01
    with pytest.raises(Unsuitable, match="not after layer 9"):
        side_effects(model, SAMPLE, direction=key, layer=9)


def test_the_plain_side_is_computed_once_while_a_strength_moves() -> None:
    model = tiny.language("llama", 3)
    name = pushed.random_direction(model)
    model.forget()
    spent = []
    for strength in (1.0, 2.0, 3.0):
        with METHODS["steer"](model, SAMPLE, direction=name, strength=strength):
            spent.append(side_effects(model, SAMPLE, n=5, texts=TEXTS).forwards)
    assert spent[0] > spent[1] == spent[2] == 5 + 1 + 2


def test_a_longer_push_moves_more() -> None:
    model = tiny.language("llama", 1)
    name = pushed.random_direction(model)
    found = []
    for strength in (0.01, 0.1, 1.0):
        with METHODS["steer"](model, SAMPLE, direction=name, layer=0, strength=strength):
            table = side_effects(model, SAMPLE, n=4, texts=TEXTS)
        found.append([value(table, row)[1] for row in ("KL, prompt", "stream moved by")])
    assert found[0] < found[1] < found[2] and all(a < b for x, y in pairwise(found)
                                                   for a, b in zip(x, y, strict=True))  # fmt: skip
    # a small push moves the stream in proportion, and what is expected by its square
    assert found[1][1] / found[0][1] == pytest.approx(10, rel=0.1)
    assert found[1][0] / found[0][0] == pytest.approx(100, rel=0.3)
