"""TCAV: derivatives against small pushes, what random directions do, and a concept that matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods.change.steer import steer
from interp.methods.steering.tcav import tcav
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from tests import tiny
from tests.methods.change.pushed import direction, random_direction

TEXTS = ("The cat sat", "on a mat, and so", "my hat")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def logit(model: LanguageModel, text: str, strength: float, key: str, layer: int, last: bool) -> float:
    length = model.inputs(text).shape[1]
    where = {"positions": (length - 1,)} if last else {}
    with torch.no_grad(), steer(model, Prompt(text), direction=key, layer=layer, strength=strength, **where):
        out = model(text, keep=1)[0, -1].double()
    return float(out[model.token_index(_target("e"))] - out[model.token_index(_target("n"))])


def _target(text: str) -> object:
    from interp.samples import Target

    return Target(text)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_the_derivative_is_that_of_a_small_push(family: str, tokens: str) -> None:
    model = tiny.language(family)
    key = random_direction(model)
    table = tcav(model, TextSet(TEXTS), direction=key, target="e", foil="n", tokens=tokens)
    for layer in range(model.layers):
        step, slopes = 3e-3, []
        for text in TEXTS:
            ends = [logit(model, text, sign * step, key, layer, tokens == "last") for sign in (1, -1)]
            slopes.append((ends[0] - ends[1]) / (2 * step))
        assert table.values[layer, 0] == pytest.approx(np.mean(slopes), rel=0.02, abs=0.02)
        if min(map(abs, slopes)) > 0.02:
            assert table.values[layer, 1] == pytest.approx(np.mean(np.array(slopes) > 0))


def test_one_layer_is_the_row_of_all_and_the_foil_turns_the_sign() -> None:
    model = tiny.language("llama")
    key = direction(model).key
    whole = tcav(model, TextSet(TEXTS), direction=key, target="e", foil="n")
    turned = tcav(model, TextSet(TEXTS), direction=key, target="n", foil="e")
    np.testing.assert_allclose(turned.values[:, 0], -whole.values[:, 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(turned.values[:, 1], 1 - whole.values[:, 1])
    np.testing.assert_allclose(turned.values[:, 4], whole.values[:, 4], atol=0.02)
    one = tcav(model, TextSet(TEXTS), direction=key, layer=2, target="e", foil="n")
    assert one.rows == ("layer 2",) and one.values[0, :2] == pytest.approx(whole.values[2, :2])


def test_a_random_direction_is_told_from_random_ones_as_rarely_as_p_says() -> None:
    """Under the null, p is uniform: below .2 about a fifth of the time."""
    from interp import directions

    model, ps = tiny.language("gpt2"), []
    for seed in range(40):
        v = torch.randn(1, 16, generator=torch.Generator().manual_seed(1000 + seed))
        key = directions.keep(directions.Direction(f"r{seed}", "-", model.name, model.digest, (1,), v))
        ps.append(tcav(model, TextSet(TEXTS), direction=key, target="e", draws=99, seed=seed).values[0, 4])
    assert 0.02 < np.mean(np.array(ps) <= 0.2) < 0.45 and 0.3 < np.mean(ps) < 0.7


def test_the_direction_a_logit_rises_along_is_beyond_all_random_ones() -> None:
    from interp import directions

    model = tiny.language("gpt2")
    with model.record(["resid_post.1"], grad=True) as found:
        score = model("The cat sat", keep=1)[0, -1, 5]
    from interp.model import gradient

    (slope,) = gradient(score, [found["resid_post.1"]])
    v = slope[0].sum(0, keepdim=True)
    key = directions.keep(directions.Direction("g", "-", model.name, model.digest, (1,), v))
    row = tcav(model, Prompt("The cat sat"), direction=key, target=5).values[0]
    assert row[0] == pytest.approx(float(v.square().sum()), rel=1e-4) and row[1] == 1
    assert row[4] == pytest.approx(1 / 201)
    assert 0.3 < row[2] < 0.7, "random directions are on either side"


def test_what_can_not_be_asked_gets_a_sentence() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="no texts"):
        tcav(model, TextSet(()), direction=direction(model).key)
    with pytest.raises(Unsuitable, match="known after layers 0 to 2"):
        tcav(model, Prompt("a cat"), layer=9)
