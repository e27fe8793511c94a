"""What parts promote, added up, against the logits; and against direct logit attribution."""

from __future__ import annotations

import pytest
import torch

from interp import Unsuitable
from interp.methods.circuits.node_output import node_output
from interp.methods.reading.direct_logit_attribution import direct_logit_attribution
from interp.model import LanguageModel
from interp.samples import Prompt
from tests import tiny

PROMPT = Prompt("The cat sat on the mat")
LAST = 21


def promoted(model: LanguageModel, node: str) -> dict[int, float]:
    """The logits that a part adds to, by token: the 100 most promoted and the 100 most suppressed."""
    table = node_output(model, PROMPT, node=node, top=100)
    assert table.columns == ("logit", "token")
    return {int(token): float(value) for value, token in table.values}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2", "opt", "gpt_neox"])
def test_all_parts_add_up_to_the_logits_but_for_biases(family: str) -> None:
    model = tiny.language(family)
    parts = {
        (layer + 1, head): promoted(model, f"z.{layer}.{head}@{LAST}")
        for layer in range(model.layers)
        for head in range(model.parts.heads)
    }
    parts |= {(layer + 1, -2): promoted(model, f"mlp_out.{layer}@{LAST}") for layer in range(model.layers)}
    parts[0, -1] = promoted(model, f"resid_pre.0@{LAST}")
    listed = sorted(set.intersection(*map(set, parts.values())))
    read = [token for token in listed if model.tokenizer.decode([token]).isascii()]
    assert read
    for token in read[:2]:
        grid = direct_logit_attribution(model, PROMPT, target=model.tokenizer.decode([token]), by="head").values[0]
        scale = max(abs(grid).max(), 1)
        for (row, column), values in parts.items():
            assert values[token] == pytest.approx(grid[row, column], abs=1e-4 * scale), (row, column)
        if family in ("llama", "olmo2"):
            logit = float(model(PROMPT)[0, -1, token])
            assert sum(values[token] for values in parts.values()) == pytest.approx(logit, abs=1e-4 * scale)


def test_the_last_stream_gives_the_models_own_logits() -> None:
    model = tiny.language("llama")
    logits = model(PROMPT)[0]
    for place in (5, LAST):
        found = promoted(model, f"resid_post.2@{place}")
        assert all(value == pytest.approx(float(logits[place, token]), abs=1e-4) for token, value in found.items())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_heads_of_a_layer_together_are_what_its_attention_writes_but_for_its_bias(family: str) -> None:
    model = tiny.language(family)
    whole = promoted(model, f"attn_out.1@{LAST}")
    heads = [promoted(model, f"z.1.{head}@{LAST}") for head in range(model.parts.heads)]
    read = set(whole).intersection(*heads)
    gaps = torch.tensor([whole[token] - sum(head[token] for head in heads) for token in sorted(read)])
    assert len(read) > 5
    if family == "gemma2":
        assert gaps.abs().max() < 1e-4
    else:
        assert gaps.abs().max() > 1e-2


def test_the_most_promoted_come_first_and_the_most_suppressed_last() -> None:
    table = node_output(tiny.language("llama"), PROMPT, node="mlp_out.1@4", top=5)
    assert len(table.rows) == 10
    promoting, suppressing = table.values[:5, 0], table.values[5:, 0]
    assert (promoting[:-1] >= promoting[1:]).all() and (suppressing[:-1] <= suppressing[1:]).all()
    assert promoting.min() > suppressing.max()


def test_without_a_position_the_last_token_is_read() -> None:
    model = tiny.language("gpt2")
    assert promoted(model, "mlp_out.1") == promoted(model, f"mlp_out.1@{LAST}")


@pytest.mark.parametrize("node", ["q.0.1@2", "pattern.0.1@2", "mlp_out.9@2", "z.0.9@2", "mlp_out.0@99", "resid"])
def test_parts_that_write_nothing_or_are_not_there_are_refused_in_a_sentence(node: str) -> None:
    with pytest.raises(Unsuitable) as problem:
        node_output(tiny.language("gpt2"), PROMPT, node=node)
    assert str(problem.value).endswith(".") and "\n" not in str(problem.value)
