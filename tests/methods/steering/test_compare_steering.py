"""Each way against the interventions entered by hand; an instruction against its words."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from interp import Unsuitable, directions
from interp.experiment import Call
from interp.methods import METHODS
from interp.methods.steering._meters import judge, mean_divergence, perplexity, repetition, written
from interp.methods.steering.compare_steering import compare_steering
from interp.methods.steering.difference_of_means import difference_of_means
from interp.samples import Prompt, TextSet
from tests import tiny

SAMPLE = Prompt("The cat sat on the")
TEXTS = TextSet(("The cat sat on the mat.", "A dog ran."))
SETTINGS = {"n": 5, "seeds": 3, "texts": TEXTS}


def test_each_way_is_measured_by_itself_on_the_same_seeds() -> None:
    model = tiny.featured(tiny.language("llama"))
    key = difference_of_means(model, tiny.two_sides())
    name = directions.load(key, model).name
    steer = Call("steer", direction=key, layer=1, strength=3.0)
    lines = [str(Call("project_out", direction=key, layer=0)), str(Call("ablate_feature", features=(0, 1)))]
    ways = (str(steer), "\n".join(lines))
    table = compare_steering(model, SAMPLE, ways=ways, direction=key, **SETTINGS)
    by = judge(model, key, None)
    assert by is not None
    plain_cost = perplexity(model, TEXTS)
    for row, way in enumerate(((), (steer,), tuple(map(Call.parse, lines)))):
        with contextlib.ExitStack() as stack:
            for call in way:
                stack.enter_context(METHODS[call.method](model, SAMPLE, **call.settings))
            texts = [written(model, [SAMPLE], 5, 1.0, [seed], "continuation") for seed in range(3)]
            expected = [
                np.mean([float(by.scores(model, SAMPLE, each)[0]) for each in texts]),
                perplexity(model, TEXTS) / plain_cost,
                np.mean([float(mean_divergence(model, each)[0]) for each in texts]),
                np.mean([repetition(each.tokens(0)) for each in texts]),
            ]
        np.testing.assert_allclose(table.values[row], expected, rtol=1e-4, atol=1e-7)
    assert table.columns == ("behaviour", "perplexity ratio", "KL", "repetition")
    assert table.rows[0] == "plain" and table.rows[1] == f"Steer (direction {name}, layer 1, strength 3)"
    assert " + " in table.rows[2]
    # what is in force is a way of its own, and no part of the others
    with METHODS["steer"](model, SAMPLE, **steer.settings):
        again = compare_steering(model, SAMPLE, ways=ways, direction=key, **SETTINGS)
    assert again.rows == ("plain", "as it stands", *table.rows[1:])
    np.testing.assert_array_equal(again.values, table.values[[0, 1, 1, 2]])


def test_an_instruction_is_the_prompt_with_its_words_before_it() -> None:
    model = tiny.language("llama", 2)
    table = compare_steering(model, SAMPLE, instruction="Be nice.", **SETTINGS)
    row = table.values[table.rows.index("instruction")]
    kl, ids = [], model.inputs(SAMPLE)[0].tolist()
    before = "Be nice. "
    for seed in range(3):
        said = written(model, [before + SAMPLE.text], 5, 1.0, [seed]).tokens(0)
        asked = model.inputs(before + SAMPLE.text)[0].tolist()
        changed = model(torch.tensor([asked + said]))[0].double().log_softmax(1)[len(asked) - 1 :]
        plain = model(torch.tensor([ids + said]))[0].double().log_softmax(1)[len(ids) - 1 :]
        steps = min(5, len(said) + 1)
        kl.append(
            np.mean([float((p.exp() * (p - q)).sum()) for p, q in zip(plain[:steps], changed[:steps], strict=True)])
        )
    columns = list(table.columns)
    assert row[columns.index("KL")] == pytest.approx(np.mean(kl), rel=1e-4)
    ratio = perplexity(model, TEXTS, before) / perplexity(model, TEXTS)
    assert row[columns.index("perplexity ratio")] == pytest.approx(ratio)


NO_WAYS = ("", "next_tokens", "no_such_method", 'steer{"strength":1e9}', "steer{", "difference_of_means")


@pytest.mark.parametrize("way", NO_WAYS)
def test_what_is_no_way_to_steer_is_refused(way: str) -> None:
    with pytest.raises(Unsuitable):
        compare_steering(tiny.language("gpt2"), SAMPLE, ways=(way,), **SETTINGS)


def test_equal_ways_have_rows_of_their_own_and_there_is_a_limit() -> None:
    model = tiny.language("gpt2")
    table = compare_steering(model, SAMPLE, ways=("skip_layer", "skip_layer"), **SETTINGS)
    assert len(set(table.rows)) == 3
    np.testing.assert_array_equal(table.values[1], table.values[2])
    with pytest.raises(Unsuitable, match="At most"):
        compare_steering(model, SAMPLE, ways=("skip_layer",) * 13, **SETTINGS)
