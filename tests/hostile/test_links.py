"""Links, JSON, calls, sites, nodes and names that were broken on purpose: a sentence, or something that comes back."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from interp import Unsuitable, settings
from interp.experiment import INTERVENTIONS, LONGEST, Call, Experiment
from interp.method import _unwrap
from interp.methods import METHODS
from interp.samples import Prompt
from interp.sites import Node, Site
from tests.hostile import fuzz
from tests.hostile.texts import LINKS, SPECS

SECONDS = 2.0
SENTENCE = 700
"""Characters of the longest sentence that a refusal may have."""


def refused(read: Callable[[Any], Any], given: Any) -> Any:
    """What it reads, or None where it was refused, by a short sentence and soon; whatever else it raises is raised."""
    begun = time.process_time()
    found = None
    try:
        found = read(given)
    except Unsuitable as reason:
        assert 0 < len(str(reason)) <= SENTENCE, str(reason)[:200]
    assert time.process_time() - begun < SECONDS, f"{time.process_time() - begun:.1f} s for {str(given)[:200]!r}"
    return found


def comes_back(found: Experiment | None) -> bool:
    if found is None:
        return False
    assert Experiment.from_url(found.to_url()) == found == Experiment.from_json(found.to_json())
    assert hash(found) == hash(Experiment.from_json(found.to_json())) and len(found.digest) == 64
    for call in (found.lens, *found.interventions):
        assert Call.parse(str(call)) == call
    return True


def go_through(seed: int, cases: int) -> tuple[int, int]:
    """Break so many links and so many JSONs of every method in turn; how many of them still were experiments."""
    draw = random.Random(seed)
    sound = list(fuzz.experiments(seed, 2))
    good = 0
    for number in range(cases):
        found = sound[number % len(sound)]
        kinds = (
            (Experiment.from_url, fuzz.broken_link), (Experiment.from_json, fuzz.broken_json),
            (Call.parse, lambda draw, of: fuzz.broken(draw, str(of.lens))),
        )  # fmt: skip
        read, broken = kinds[draw.choice((0, 0, 1, 1, 2))]
        text = broken(draw, found)
        try:
            read_back = refused(read, text)
            good += comes_back(read_back) if isinstance(read_back, Experiment) else read_back is not None
        except Exception as problem:
            raise AssertionError(f"case {number} of seed {seed}: {read.__qualname__}({text[:2000]!r})") from problem
    return good, cases


def test_a_sample_of_broken_links_to_every_method() -> None:
    good, cases = go_through(0, 2500)
    assert 0.02 * cases < good < 0.9 * cases  # else nothing was broken, or everything beyond what is looked at


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_hundred_thousand_broken_links(seed: int) -> None:
    go_through(seed, 10_000)


def test_links_to_every_method_come_back() -> None:
    seen = set()
    for found in fuzz.experiments(1):
        assert comes_back(found)
        seen |= {found.lens.method}
    assert seen == {key for key, each in METHODS.items() if each.kind == "lens"}


@pytest.mark.parametrize("name", LINKS)
def test_hostile_links(name: str) -> None:
    comes_back(refused(Experiment.from_url, LINKS[name]))


@pytest.mark.parametrize("name", SPECS)
def test_hostile_json(name: str) -> None:
    comes_back(refused(Experiment.from_json, SPECS[name]))


# ------------------------------------------------------------------------------------------------------- hypothesis

ANY = st.text(st.characters(codec=None), max_size=80)  # type: ignore[arg-type]
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | ANY | st.sampled_from(fuzz.NASTY)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(ANY, inner, max_size=4), max_leaves=12
)
CALM = hypothesis(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@CALM
@given(st.sampled_from(sorted(METHODS)), st.data())
def test_any_settings_of_any_method(key: str, data: st.DataObject) -> None:
    names = [each.name for each in METHODS[key].controls]
    chosen = data.draw(st.dictionaries(st.sampled_from([*names, "self", "method", "x"]), JSON, max_size=4))
    found = refused(lambda given: Call(key, **given), chosen)
    if found is not None:
        assert Call.parse(str(found)) == found and hash(Call.parse(str(found))) == hash(found)
    refused(Call.parse, key + json.dumps(chosen))


@CALM
@given(st.one_of(ANY, st.from_regex(r"[a-z_.]{1,12}([.@#][0-9]{1,8}){0,4}")))
def test_any_site_and_any_node(text: str) -> None:
    site, node = refused(Site.parse, text), refused(Node.parse, text)
    assert site is None or Site.parse(str(site)) == site
    assert node is None or Node.parse(str(node)) == node


KEYS = dict.fromkeys(("v", "model", "prompt", "image", "pair", "images", "texts", "contrast", "interventions"), JSON)
LENS = st.fixed_dictionaries({"method": st.sampled_from(sorted(METHODS)), "settings": JSON})


@CALM
@given(st.fixed_dictionaries({}, optional=KEYS | {"lens": JSON | LENS}))
def test_any_json(value: dict[str, Any]) -> None:
    comes_back(refused(Experiment.from_json, json.dumps({"v": "1", **value})))


# ------------------------------------------------------------------------------------------ what an experiment may cost


def test_every_number_has_an_end_and_every_list_a_length() -> None:
    free = {"seed", "position", "threshold", "value", "by"}
    """Numbers that no work grows with: a place in the prompt, or how strong something is."""
    for key, method in METHODS.items():
        for control in method.controls:
            base, _ = _unwrap(control.hint)
            call = lambda value, key=key, name=control.name: refused(lambda _: Call(key, **{name: value}), value)  # noqa: E731
            if base in (int, float):
                assert control.name in free or control.range, f"{key}: {control.name} has no end"
                assert call(10**40) is None and call(float("inf")) is None and call(float("nan")) is None
            if "tuple" in str(base):
                assert call((0,) * 20_000) is None and call(("resid_post.0",) * 20_000) is None
                assert call([[0, 0]] * 20_000) is None
            if base is str and control.kind == "text":
                assert call("a" * (settings.SETTINGS.characters + 1)) is None


def test_the_number_of_interventions_and_the_length_of_a_link_end() -> None:
    prompt, lens = Prompt("a"), Call("logit_lens")
    whole = Experiment("stories", prompt, lens, (Call("skip_layer"),) * INTERVENTIONS)
    assert comes_back(whole)
    with pytest.raises(Unsuitable, match="at most"):
        Experiment("stories", prompt, lens, (Call("skip_layer"),) * (INTERVENTIONS + 1))
    for read in (Experiment.from_url, Experiment.from_json, Call.parse):
        with pytest.raises(Unsuitable, match="longer"):
            read("a" * (LONGEST + 1))


@pytest.mark.parametrize("many", [0, 1, 99, 10_000])
def test_a_link_of_many_parameters(many: int) -> None:
    link = "&".join(f"x{n}=1" for n in range(many)) + "&v=1&model=stories&prompt=a&lens=logit_lens"
    found = refused(Experiment.from_url, link)
    assert (found is not None) == (many < 97)


def test_a_text_is_no_list_of_texts() -> None:
    for link in ('contrast=["ab","cd"]', 'texts=["ab"]', 'texts=[["a",["b"]]]', "texts=[[1]]", 'texts=[{"a":1}]'):
        with pytest.raises(Unsuitable):
            Experiment.from_url("model=stories&lens=tcav&" + link)
    with contextlib.suppress(Unsuitable):
        Experiment.from_url('model=stories&lens=condition_scores&contrast=[["a"],["b"]]')
