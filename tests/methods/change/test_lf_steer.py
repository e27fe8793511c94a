"""Active features moved towards consistent texts, against the same done by hand token by token."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
import torch

from interp import Unsuitable, hooks, sae
from interp.experiment import Call
from interp.methods.change.lf_steer import lf_steer
from interp.methods.change.steer import steer
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from tests import tiny
from tests.methods.steering.test_condition_vector import WORDS
from tests.methods.steering.test_sae_direction import read
from tests.test_hooks import near

STORE = tempfile.mkdtemp(prefix="actiscope-test-")
SIDES = {"consistent": TextSet(WORDS.positive), "inconsistent": TextSet(WORDS.negative)}
PROMPT = Prompt("a cat, and 12 hats")


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def located(model: LanguageModel, found: sae.SAE, token: str, top: int) -> tuple[list[int], np.ndarray]:
    """The features that differ most, and by how much."""
    f = [read(model, found, each.texts, token)[1] for each in SIDES.values()]
    delta = f[0].mean(0) - f[1].mean(0)
    spread = np.sqrt((f[0].var(0) + f[1].var(0)) / 2).clip(min=1e-3 * np.abs(delta).max())
    return np.argsort(-np.abs(delta) / spread)[:top].tolist(), delta


@pytest.mark.parametrize(("family", "seed"), [("gpt2", 0), ("llama", 0), ("gemma2", 1)])
@pytest.mark.parametrize(
    "settings",
    [{}, {"strength": -1.5}, {"top": 3, "token": "last"}, {"positions": (1, 4)}, {"where": "generated"}],
    ids=str,
)
def test_only_features_that_fire_move_and_what_is_not_explained_stays(
    family: str, seed: int, settings: dict[str, Any]
) -> None:
    model = tiny.featured(tiny.language(family, seed))
    for name in sae.available(model):
        found = sae.load(name)
        some, delta = located(model, found, settings.get("token", "mean"), settings.get("top", 16))
        source, target = model.resolve(found.site), model.resolve(found.target)
        with model.record(sorted({source, target}, key=str)) as plain:
            model(PROMPT)
        x, want = plain[source][0], plain[target][0].clone()
        places = settings.get("positions", range(len(x)))
        for t in [len(x) - 1] if settings.get("where") == "generated" else places:
            f = found.encode(x[t])
            new = f.clone()
            for i in some:
                new[i] += settings.get("strength", 0.7) * delta[i] if f[i] > 0 else 0.0
            want[t] += found.decode(new, x[t]) - found.decode(f, x[t])
        with (
            lf_steer(model, PROMPT, sae=name, **SIDES, **({"strength": 0.7} | settings)),
            model.record([target]) as out,
        ):
            model(PROMPT)
        near(out[target][0], want, 1e-4)
        assert float((want - plain[target][0]).abs().max()) > 1e-3


def test_with_a_cache_it_generates_as_without_and_padded_prompts_are_as_each_alone() -> None:
    model = tiny.featured(tiny.language("llama"))
    for where in ("all", "prompt", "generated"):
        with lf_steer(model, PROMPT, **SIDES, strength=2.0, where=where):
            texts = [list(model.generate(PROMPT, 12, 1.0, 4, cache)) for cache in (True, False)]
            assert texts[0] == texts[1]
            together = model(["the cat", "a mat and so"])
            near(together[0, -7:], model("the cat")[0], 1e-4)
            near(together[1], model("a mat and so")[0], 1e-4)


def test_examples_are_of_the_unchanged_model_whatever_is_in_force() -> None:
    model = tiny.featured(tiny.language("gpt2"))
    key = difference_of_means(model, WORDS)
    with steer(model, PROMPT, direction=key, layer=0, strength=2.0):
        model.forget()
        with lf_steer(model, PROMPT, **SIDES, strength=1.0):
            first = model(PROMPT)
    model.forget()
    change = lf_steer(model, PROMPT, **SIDES, strength=1.0)
    with steer(model, PROMPT, direction=key, layer=0, strength=2.0), change:
        assert torch.equal(model(PROMPT), first)


def test_at_strength_nothing_there_is_nothing_to_enter_and_a_link_carries_the_texts() -> None:
    model = tiny.language("gpt2")
    with lf_steer(model, PROMPT):
        assert hooks.in_force() == ()
    call = Call("lf_steer", **SIDES, strength=0.5)
    assert Call.parse(str(call)) == call and call.settings["consistent"].texts == WORDS.positive


def test_what_can_not_be_steered_gets_a_sentence() -> None:
    model = tiny.featured(tiny.language("gpt2"))
    same = TextSet(("a", "b"))
    for settings, hint in (
        ({}, "at least one of each"),
        ({"consistent": same}, "at least one of each"),
        ({"consistent": same, "inconsistent": TextSet(())}, "at least one of each"),
        ({"consistent": same, "inconsistent": same}, "No feature of this SAE differs"),
        (SIDES | {"sae": "local:0123456789abcdef"}, "not kept here"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            lf_steer(model, PROMPT, **settings, strength=1.0)  # type: ignore[arg-type]
