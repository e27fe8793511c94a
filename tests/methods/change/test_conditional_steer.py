"""Steering on a condition against the same done by hand, prompt by prompt; batches, streams, threads and rules."""

from __future__ import annotations

import itertools
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Unsuitable, directions, hooks, zoo
from interp.experiment import Call
from interp.methods.change.conditional_steer import conditional_steer
from interp.methods.change.steer import steer
from interp.methods.steering._conditions import similarity
from interp.methods.steering.condition_vector import condition_vector
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.steering.test_condition_vector import WORDS
from tests.test_hooks import near

sys.path.insert(0, str(Path(__file__).parents[3] / "assets" / "recipes"))
import grammar

STORE = tempfile.mkdtemp(prefix="actiscope-test-")
PROMPTS = ("my hat and your hat", "4 8 15 16 23 42", "he said no", "9 9 9", "a")
FAMILIES = [("gpt2", 0), ("llama", 1), ("gemma2", 0)]
POST = Site("resid_post", 1)


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def fitted(family: str, seed: int = 0) -> tuple[LanguageModel, dict[str, Any], list[bool]]:
    """A tiny model, settings that steer after layer 1 what lies above the middle of PROMPTS, and which of them do."""
    model = tiny.language(family, seed)
    key = condition_vector(model, WORDS, similarity="projection")
    s = scores(model, key, "projection", PROMPTS)
    level = (sorted(s)[2] + sorted(s)[3]) / 2
    return (
        model,
        {
            "direction": difference_of_means(model, WORDS), "layer": 1, "strength": 3.0, "condition": key,
            "condition_layer": 0, "threshold": level, "fires": "above",
        },
        [each > level for each in s],
    )  # fmt: skip


def scores(model: LanguageModel, key: str, kind: str, texts: Sequence[str]) -> list[float]:
    """How like each text, read alone, is to the condition after layer 0."""
    c = directions.load(key, model).at(0)
    with hooks.alone():
        streams = [stream(model, each, Site("resid_post", 0))[0] for each in texts]
    return [float(similarity(each.mean(0), c, kind)) for each in streams]


def stream(model: LanguageModel, prompt: Any, site: Site = POST) -> Tensor:
    with model.record([site]) as found:
        model(prompt)
    return found[site]


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_what_meets_the_condition_is_steered_and_all_else_is_the_plain_run_bit_for_bit(family: str, seed: int) -> None:
    model, settings, expected = fitted(family, seed)
    v = directions.load(settings["direction"], model).at(1)
    for text, met in zip(PROMPTS, expected, strict=True):
        plain, h = model(text), stream(model, text)
        with conditional_steer(model, Prompt(text), **settings):
            assert torch.equal(model(text), plain) != met
            near(stream(model, text), h + 3 * v if met else h, 1e-5)
        with conditional_steer(model, Prompt(text), **settings | {"rule": "not this"}):
            assert torch.equal(model(text), plain) == met


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"unit": "norm"}, {"where": "prompt"}, {"where": "generated", "keep_norm": True}, {"positions": (0, 2)},
        {"keep_norm": True, "strength": -2.0},
    ],
    ids=str,
)  # fmt: skip
def test_where_the_condition_holds_it_is_steering_with_the_same_settings(settings: dict[str, Any]) -> None:
    model, fixed, _ = fitted("llama")
    prompt, plain = Prompt("a hat and 3"), model("a hat and 3")
    settings = {"direction": fixed["direction"], "layer": 1, "strength": 1.5} | settings
    with steer(model, prompt, **settings):
        want = model(prompt), list(model.generate(prompt, 5, 1.0, 2))
    with conditional_steer(model, prompt, condition=fixed["condition"], rule="this or not this", **settings):
        assert torch.equal(model(prompt), want[0]) and list(model.generate(prompt, 5, 1.0, 2)) == want[1]
    assert not torch.equal(want[0], plain)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_by_default_likeness_is_the_papers_and_layer_side_and_threshold_are_the_fitted_ones(
    family: str, seed: int
) -> None:
    model = tiny.language(family, seed)
    key, direction = condition_vector(model, WORDS), difference_of_means(model, WORDS)
    found, texts = directions.load(key, model), [*WORDS.positive, *WORDS.negative, *PROMPTS]
    s = scores(model, key, "cosine of tanh", texts)
    for fires in ("as fitted", "above", "below"):
        above = found.fact("fires above", 0) == 1 if fires == "as fitted" else fires == "above"
        for text, each in zip(texts, s, strict=True):
            plain = model(text)
            with conditional_steer(
                model, Prompt(text), direction=direction, layer=0, strength=1.0, condition=key, fires=fires
            ):
                fired = not torch.equal(model(text), plain)
            assert fired == ((each > found.fact("threshold", 0)) == above), (fires, text)
    with conditional_steer(model, Prompt("x"), direction=direction, layer=0, strength=3.0, rule="this or not this"):
        assert model.carried_from() == 0 and not torch.equal(model("x"), model_plain(model, "x"))


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_prompts_of_a_batch_padded_left_or_right_are_judged_as_each_alone(family: str, seed: int) -> None:
    model, settings, expected = fitted(family, seed)
    left = model.inputs(PROMPTS)
    right = torch.stack([torch.cat([row[row >= 0], row[row < 0]]) for row in left])
    with conditional_steer(model, Prompt("x"), **settings):
        together = model(left), model(right)
        for row, text in enumerate(PROMPTS):
            alone = model(text)[0]
            near(together[0][row, -len(alone) :], alone, 1e-4)
            near(together[1][row, : len(alone)], alone, 1e-4)
    plain = model(left)
    changed = (together[0] - plain).abs().amax((1, 2))
    assert [float(each) > 1e-3 for each in changed] == expected


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
def test_the_prompt_alone_decides_with_a_cache_and_without(family: str, where: Any) -> None:
    model, settings, expected = fitted(family)
    for text, met in zip(PROMPTS, expected, strict=True):
        plain = list(model.generate(text, 10, 1.0, 4))
        with conditional_steer(model, Prompt(text), **settings, where=where):
            texts = [list(model.generate(text, 10, 1.0, 4, cache)) for cache in (True, False)]
            with model.record([POST], every=True) as stepwise:
                list(model.generate(text, 6))
            with model.record([POST], every=True) as whole:
                list(model.generate(text, 6, cache=False))
        assert texts[0] == texts[1] and (met or texts[0] == plain)
        cached = torch.cat(stepwise[POST], 1)
        near(cached, whole[POST][-1][:, : cached.shape[1]], 1e-4)
        with steer(model, Prompt(text), direction=settings["direction"], layer=1, strength=3.0 * met, where=where):
            assert list(model.generate(text, 10, 1.0, 4)) == texts[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_follows_the_prompt_has_no_say_where_both_are_read_at_once(family: str) -> None:
    """A continuation read again behind its prompt, with which it would lie on the other side of the threshold."""
    model, settings, _ = fitted(family)
    for text, behind in itertools.permutations(PROMPTS, 2):
        own, whole = scores(model, settings["condition"], "projection", [text, text + behind])
        ids = model.inputs(text + behind)
        plain = model._forward(ids, None, hooks.Here(prompt=len(text)))
        with conditional_steer(model, Prompt(text), **settings | {"threshold": (own + whole) / 2}):
            assert torch.equal(model._forward(ids, None, hooks.Here(prompt=len(text))), plain) != (own > whole)
            assert torch.equal(model._forward(ids, None, hooks.Here(prompt=ids.shape[1])), plain) == (own > whole)


@pytest.mark.parametrize(("family", "seed"), FAMILIES)
def test_a_condition_fitted_at_last_tokens_is_judged_at_the_prompts_last_token(family: str, seed: int) -> None:
    model, settings, _ = fitted(family, seed)
    key = condition_vector(model, WORDS, similarity="projection", tokens="last")
    c = directions.load(key, model).at(0)
    s = [float(similarity(stream(model, each, Site("resid_post", 0))[0, -1], c, "projection")) for each in PROMPTS]
    level = (sorted(s)[2] + sorted(s)[3]) / 2
    left = model.inputs(PROMPTS)
    right = torch.stack([torch.cat([row[row >= 0], row[row < 0]]) for row in left])
    plain = model(left), model(right)
    met = [each > level for each in s]
    with conditional_steer(model, Prompt("x"), **settings | {"condition": key, "threshold": level}):
        for ids, before in zip((left, right), plain, strict=True):
            changed = torch.where(ids >= 0, (model(ids) - before).abs().amax(2), 0.0).amax(1)
            assert [float(each) > 1e-3 for each in changed] == met
        texts = [list(model.generate(each, 6, 1.0, 3, cache)) for each in PROMPTS for cache in (True, False)]
    assert texts[::2] == texts[1::2]
    for text, each, one in zip(PROMPTS, met, texts[::2], strict=True):
        with steer(model, Prompt(text), direction=settings["direction"], layer=1, strength=3.0 * each):
            assert list(model.generate(text, 6, 1.0, 3)) == one


def test_streams_that_take_turns_keep_to_their_own_prompts() -> None:
    model, settings, _ = fitted("llama")
    want = []
    for text in PROMPTS:
        with conditional_steer(model, Prompt(text), **settings):
            want.append(list(model.generate(text, 8, 1.0, 2)))
    with conditional_steer(model, Prompt("x"), **settings):
        streams = [model.generate(text, 8, 1.0, 2) for text in PROMPTS]
    turns = [list(each) for each in zip(*itertools.zip_longest(*streams), strict=True)]
    assert [[each for each in turn if each is not None] for turn in turns] == want


def test_two_threads_at_once_judge_their_own_prompts() -> None:
    model, settings, _ = fitted("gpt2")
    want, wrong, gate = {}, list[Any](), threading.Barrier(4)
    for index, text in enumerate(PROMPTS):
        rule = "this" if index % 2 else "not this"
        with conditional_steer(model, Prompt(text), **settings, rule=rule):
            want[text] = model(text), list(model.generate(text, 5, 1.0))

    def work() -> None:
        gate.wait()
        for _ in range(3):
            for index, text in enumerate(PROMPTS):
                with conditional_steer(model, Prompt(text), **settings, rule="this" if index % 2 else "not this"):
                    if (
                        not torch.equal(model(text), want[text][0])
                        or list(model.generate(text, 5, 1.0)) != want[text][1]
                    ):
                        wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize(
    ("rule", "table"),
    [
        ("a", lambda a, b, c: a),
        ("not a", lambda a, b, c: not a),
        ("a and b", lambda a, b, c: a and b),
        ("a or b", lambda a, b, c: a or b),
        ("a and not b", lambda a, b, c: a and not b),
        ("not a and b or c", lambda a, b, c: (not a and b) or c),
        ("not (a and (b or c))", lambda a, b, c: not (a and (b or c))),
        ("a or b and c", lambda a, b, c: a or (b and c)),
        ("not not a and(b)", lambda a, b, c: a and b),
    ],
)
def test_rules_are_those_of_logic_for_every_prompt_of_a_batch(rule: str, table: Any) -> None:
    """a, b and c hold for prompts by thresholds between them; every row of the truth table is a prompt."""
    model, settings, _ = fitted("gpt2")
    key = settings["condition"]
    texts = [f"{number} apples and {'no ' * (number % 3)}pears {'1' * number}" for number in range(12)]
    s = scores(model, key, "projection", texts)
    ranks = sorted(s)
    low, high, middle = ((ranks[at] + ranks[at + 1]) / 2 for at in (3, 8, 5))
    names = {"a": f"{key}@0 > {low:.9f}", "b": f"{key}@0<{high:.9f}", "c": f"{key}@0 >{middle:.9f}"}
    text = "".join(names.get(each, each) for each in re.split(r"\b([abc])\b", rule))
    with conditional_steer(model, Prompt("x"), **settings, rule=text):
        fired = (model(texts) - model_plain(model, texts)).abs().amax((1, 2)) > 1e-4
    assert fired.tolist() == [bool(table(each > low, each < high, each > middle)) for each in s]


def model_plain(model: LanguageModel, texts: str | list[str]) -> Tensor:
    with hooks.alone():
        return model(texts)


def test_every_combination_of_two_conditions_is_told_apart() -> None:
    model, settings, _ = fitted("llama")
    key, text = settings["condition"], "the cat"
    plain = model(text)
    true, false = f"{key}@0 > -9999", f"{key}@0 < -9999"
    for a, b in itertools.product((True, False), repeat=2):
        for join, want in (("and", a and b), ("or", a or b), ("and not", a and not b), ("or not", a or not b)):
            rule = f"{true if a else false} {join} {true if b else false}"
            with conditional_steer(model, Prompt(text), **settings, rule=rule):
                assert torch.equal(model(text), plain) != want, rule


def test_special_tokens_have_no_say_unless_there_is_nothing_else() -> None:
    model, settings, _ = fitted("llama")
    c = directions.load(settings["condition"], model).at(0)
    site, prompt = Site("resid_post", 0), "<bos>a 1"
    h = stream(model, prompt, site)[0]
    inside, whole = (float(similarity(each.mean(0), c, "projection")) for each in (h[1:], h))
    assert abs(inside - whole) > 1e-3
    level = (inside + whole) / 2
    settings |= {"condition_layer": 0, "threshold": level, "fires": "above" if inside > whole else "below"}
    with conditional_steer(model, Prompt(prompt), **settings):
        assert not torch.equal(model(prompt), model_plain(model, prompt))
        both = model([prompt, "<bos>"])
        near(both[1, -1:], model("<bos>")[0], 1e-4)


def test_at_strength_nothing_there_is_nothing_to_enter_even_without_a_condition() -> None:
    model = tiny.language("qwen3")
    with conditional_steer(model, Prompt("x"), strength=0.0):
        assert hooks.in_force() == () and not hooks.plan()


def test_the_condition_sees_what_was_changed_before_it_and_not_what_is_changed_after() -> None:
    model, settings, expected = fitted("gpt2")
    text = PROMPTS[expected.index(True)]
    away = {"direction": settings["condition"], "layer": 0, "strength": -30.0}
    with steer(model, Prompt(text), **away):
        changed = model(text)
        with conditional_steer(model, Prompt(text), **settings):
            assert torch.equal(model(text), changed)
    with conditional_steer(model, Prompt(text), **settings), steer(model, Prompt(text), **away):
        assert not torch.equal(model(text), changed)


def test_a_link_carries_a_rule() -> None:
    call = Call("conditional_steer", strength=1.5, rule="this and not stories/topic@1 > 0.4", threshold=0.25)
    assert Call.parse(str(call)) == call and call.settings["rule"].endswith("0.4")


def test_what_can_not_be_judged_gets_a_sentence() -> None:
    model, settings, _ = fitted("gpt2")
    key = settings["condition"]
    for rule in ("", "this that", "this and", "and", "()", "this(this)", "not", "c0", "this and c5", "this; import os",
                 "__import__('os')", "this > 1", "a" * 500, "(" * 350 + "this", "../x/y", "this if this"):  # fmt: skip
        with pytest.raises(Unsuitable, match="A rule joins conditions"):
            conditional_steer(model, Prompt("x"), **settings, rule=rule)
    for change, hint in (
        ({"condition": settings["direction"], "threshold": None}, "not fitted as a condition"),
        ({"condition_layer": 2}, "steer a later layer"),
        ({"condition_layer": 7, "layer": 2}, "steer a later layer"),
        ({"rule": f"this and {key}@2"}, "steer a later layer"),
        ({"condition": "0" * 64}, "not kept here"),
        ({"rule": "this and stories/nothing"}, "not kept here"),
        ({"condition": "../../etc"}, "name of a direction"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            conditional_steer(model, Prompt("x"), **settings | change)


@pytest.fixture(scope="module")
def refusing() -> tuple[LanguageModel, str, str, Contrast]:
    """`stories`, a push towards refusing, a condition that tells harmful requests, and requests of other kinds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACTISCOPE_STORE", STORE)
        model = zoo.load("stories")
        direction = difference_of_means(model, requests(100, 4, False))
        condition = condition_vector(model, requests(200, 4, False), by="probe", similarity="projection")
        assert directions.load(condition, model).fact("f1") > 0.98
    return model, direction, condition, requests(100, 7, True)


def requests(count: int, seed: int, held: bool) -> Contrast:
    """Harmful requests and harmless ones."""
    cases = grammar.cases("refusal", 4 * count, seed, held)
    sides = [[each.prompt for each in cases if (each.answer == " Sorry") == bad][:count] for bad in (True, False)]
    return Contrast(*map(tuple, sides))


def refused(model: LanguageModel, prompts: Sequence[str]) -> float:
    """The share that is answered by Sorry, of prompts of several lengths in one batch."""
    sorry = model.tokenizer(" Sorry", add_special_tokens=False)["input_ids"][0]
    return float((model(list(prompts), keep=1)[:, -1].argmax(-1) == sorry).float().mean())


@pytest.mark.parametrize(
    ("strength", "rule", "harmful", "harmless"),
    [(3.0, "this", 1, 0), (3.0, "not this", 1, 1), (-3.0, "this", 0, 0), (-3.0, "not this", 1, 0)],
)
def test_what_stories_refuses_changes_for_the_requests_that_meet_the_condition_alone(
    refusing: Any, strength: float, rule: str, harmful: float, harmless: float
) -> None:
    """Requests of kinds that no direction was fitted on; unconditionally the same push changes all of them."""
    model, direction, condition, held = refusing
    settings = {"direction": direction, "layer": 2, "strength": strength}
    with conditional_steer(model, Prompt("x"), **settings, condition=condition, rule=rule):
        assert abs(refused(model, held.positive) - harmful) <= 0.05
        assert abs(refused(model, held.negative) - harmless) <= 0.05
        streamed = [next(model.generate(each, 1)) for each in (held.positive[0], held.negative[0])]
    assert [each == " Sorry" for each in streamed] == [harmful == 1, harmless == 1]
    with steer(model, Prompt("x"), **settings):
        assert abs(refused(model, held.positive + held.negative) - (strength > 0)) <= 0.05
    assert refused(model, held.positive) == 1 and refused(model, held.negative) == 0
