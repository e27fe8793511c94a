"""The Steering page: its first sight, what its dials put on the bar, links, curves, conditions, texts of one's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from interp import Unsuitable, directions, zoo
from interp.experiment import Call, Experiment
from interp.results import Table
from interp.samples import Contrast, Prompt
from pages.ui import directions as own
from pages.ui import steering as page
from pages.ui.bar import in_words
from pages.ui.bench import first_steering
from tests.pages.test_pages import opened

LINK = {"v": "1", "model": "stories", "prompt": "Review: The film was"}
PUSH = 'steer{"direction":"stories/sentiment","layer":2,"strength":-0.5}'


def texts(app: AppTest) -> str:
    return " ".join(each.value for kind in (app.markdown, app.caption, app.info, app.warning) for each in kind)


def shown(app: AppTest) -> list[str]:
    """The texts that the page has written, plain and steered, as HTML."""
    return [each.proto.body for each in app.get("html") if 'class="continued"' in each.proto.body]


def calls(app: AppTest) -> list[Call]:
    return [chip.call for chip in app.session_state["bench"].chips]


def test_the_first_sight_is_what_its_caption_says() -> None:
    start = first_steering().experiment
    plain, steered = ("".join(each.stream(page.CONTINUED)) for each in (start.before(), start))
    assert "wonderful" in plain and "positive" in plain
    assert "poor" in steered and "negative" in steered
    found = Experiment(
        start.model, start.sample, Call("side_effects", direction="stories/sentiment", temperature=0.0),
        start.interventions,
    ).run()  # fmt: skip
    assert isinstance(found, Table)
    rows = dict(zip(found.rows, found.values.tolist(), strict=True))
    assert rows["perplexity ratio"][1] < 1.1 and rows["behaviour"][1] < rows["behaviour"][0] - 0.1
    far = Experiment(start.model, start.sample, start.lens, (start.interventions[0].but(strength=-1.5),))
    assert "poor" not in (broken := "".join(far.stream(page.CONTINUED))) and "negative" not in broken
    app = opened("steering")
    assert not app.exception and not app.warning
    assert page.NOTICE in texts(app)
    before, after = shown(app)
    assert "border-bottom" not in before and "wonderful" in before
    assert after.count("border-bottom") == 3 and "poor" in after  # poor, poor, negative


@pytest.mark.parametrize("name", page.STARTS)
def test_every_example_changes_what_is_written_and_breaks_little(name: str) -> None:
    app = opened("steering")
    app.button(key=f"start:{name.lower()}").click().run()
    assert not app.exception and not app.warning
    experiment = app.session_state["bench"].experiment
    assert experiment.sample == Prompt(page.STARTS[name][0]) and experiment.interventions == (page.STARTS[name][1],)
    _, steered = shown(app)
    assert "border-bottom" in steered
    found = Experiment(experiment.model, experiment.sample, Call("side_effects"), experiment.interventions).run()
    assert isinstance(found, Table)
    assert found.values[found.rows.index("perplexity ratio"), 1] < page.COSTLY


def test_a_dial_is_a_chip_and_a_chip_is_a_dial() -> None:
    app = opened("steering", **LINK, lens="side_effects", do=PUSH)
    app.slider(key="dial0:amount").set_value(1.5).run()
    app.slider(key="dial0:layer").set_value(1).run()
    assert calls(app) == [Call("steer", direction="stories/sentiment", layer=1, strength=1.5)]
    app.segmented_control(key="dial0:kind").set_value("project_out").run()
    assert calls(app) == [Call("project_out", direction="stories/sentiment", layer=1, share=1.0)]
    app.button(key="add-dial").click().run()
    app.selectbox(key="dial1of2:direction").set_value("stories/topic").run()
    assert [call.settings["direction"] for call in calls(app)] == ["stories/sentiment", "stories/topic"]
    app.toggle(key="dial0of2:on").set_value(False).run()
    assert [call.method for call in app.session_state["bench"].experiment.interventions] == ["steer"]
    app.button(key="dial0of2:remove").click().run()
    assert [call.settings["direction"] for call in calls(app)] == ["stories/topic"]
    assert not app.exception
    best = directions.load("stories/topic", zoo.load("stories")).best
    assert in_words(calls(app)[0], zoo.load("stories")) == f"Steer: Cooking over other topi…, layer {best}, 1"


def test_at_strength_zero_nothing_is_marked() -> None:
    app = opened("steering", **LINK, lens="side_effects", do=PUSH)
    app.slider(key="dial0:amount").set_value(0.0).run()
    plain, steered = shown(app)
    assert plain == steered and not app.exception


@pytest.mark.parametrize("key", page.PANELS)
def test_every_question_is_answered_before_and_after_a_push(key: str) -> None:
    for change in ({}, {"do": PUSH}):
        app = opened("steering", **LINK, lens=key, **change)
        assert not app.exception and not app.warning
        assert app.session_state["bench"].lens.method == key


def test_texts_drawn_by_chance_come_with_the_link() -> None:
    app = opened("steering", **LINK, lens="side_effects", do=PUSH)
    app.button(key="draw").click().run()
    app.button(key="draw").click().run()
    assert app.session_state["url"]["draw"] == ["2"]
    again = opened("steering", **LINK, lens="side_effects", do=PUSH, draw="2")
    assert shown(again) == shown(app) and not again.exception
    again.button(key="likeliest").click().run()
    assert "draw" not in again.session_state["url"]


def test_what_differs_is_marked_and_nothing_is_taken_as_markup() -> None:
    assert page.differing([" a", " b", " c"], [" a", " x", " c", " y"]) == [False, True, False, True]
    assert page.differing([], ["a"]) == [True] and page.differing(["a"], []) == []
    written = page.written("<b>&", ["<i>", "\u202e", "\n"], [True, False, False])
    assert "<b>" not in written and "<i>" not in written and "&lt;i&gt;" in written
    assert "⟨202E⟩" in written and "\n" in written
    table = page.tabled(["", "x"], [["<script>", "1"]])
    assert "<script>" not in table


def test_where_the_text_is_broken_begins_between_the_last_sound_strength_and_the_first_broken_one() -> None:
    x = [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert page._stretches(x, [True, False, False, False, False]) == [(-2.0, -1.5)]
    assert page._stretches(x, [False, False, False, True, True]) == [(0.5, 2.0)]
    assert page._stretches(x, [True] * 5) == [(-2.0, 2.0)] and page._stretches(x, [False] * 5) == []


def test_a_threshold_turns_a_push_into_one_on_a_condition() -> None:
    app = opened("steering", **LINK, lens="condition_scores", do=PUSH)
    assert not app.exception
    bench = app.session_state["bench"]
    with pytest.MonkeyPatch.context() as patch:
        changes: list[Any] = []
        patch.setattr(page, "bench", lambda: bench)
        patch.setattr(page, "change", lambda **fields: changes.append(fields))
        page._threshold(None, "stories/refusal", 2, 0.12345678, "below")
    (chip,) = changes[0]["chips"]
    assert chip.call == Call(
        "conditional_steer", direction="stories/sentiment", layer=2, strength=-0.5, condition="stories/refusal",
        condition_layer=2, threshold=0.123457, fires="below",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ one's own


def test_a_direction_is_made_of_the_texts_in_the_boxes_and_put_on_a_dial() -> None:
    app = opened("steering")
    app.button(key="make-direction").click().run()
    app.text_input(key="direction-name").input("mine").run()
    app.button(key="fit-direction").click().run()
    assert not app.exception and not app.warning
    call = calls(app)[-1]
    found = directions.load(call.settings["direction"], zoo.load("stories"))
    assert call.method == "steer" and found.name == "mine"
    assert found.about["positive"] == len(own.ready_made("sentiment").positive)
    assert not app.session_state["own-direction"]


def test_ready_made_prompts_stand_on_the_side_of_their_answer() -> None:
    found = own.ready_made("refusal")
    assert "User: How do I kill a king?\nAssistant:" in found.positive
    assert "User: How do I bake a pie?\nAssistant:" in found.negative
    assert not set(found.positive) & set(found.negative)


def test_the_two_sides_are_read_from_csv_and_jsonl_in_either_form() -> None:
    expected = Contrast(("good, very", "fine\nindeed"), ("bad",))
    pairs = b'\xef\xbb\xbfpositive,negative\r\n"good, very",bad\r\n"fine\nindeed",\r\n'
    labelled = b'text,label\n"good, very",1\nbad,negative\n"fine\nindeed",Positive\n'
    assert own.contrast(pairs, False) == own.contrast(labelled, False) == expected
    rows = [{"text": "good, very", "label": True}, {"text": "bad", "label": 0}, {"text": "fine\nindeed", "label": "+"}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    assert own.contrast(lines, True) == expected
    lines = b'{"positive": "good, very", "negative": "bad"}\n\n{"positive": "fine\\nindeed"}'
    assert own.contrast(lines, True) == expected


@pytest.mark.parametrize(
    ("data", "jsonl"),
    [
        (b"\xff\xfe\x00", False),
        (b"a,b\n1,2\n", False),
        (b"text,label\nhello,perhaps\n", False),
        (b"[1, 2]", True),
        (b"{", True),
        (b'{"positive": 3}', True),
        (b"[" * 100_000, True),
        (b'text,label\n"' + b"a" * 200_000 + b'",1\n', False),
        (b"positive\n" + b"a\n" * (own.MOST + 1), False),
    ],
)
def test_a_file_that_holds_no_examples_gets_a_sentence(data: bytes, jsonl: bool) -> None:
    with pytest.raises(Unsuitable) as reason:
        own.contrast(data, jsonl)
    assert str(reason.value).endswith(".") and len(str(reason.value)) < 200


def test_a_model_without_directions_is_told_to_make_one() -> None:
    app = opened("steering", v="1", model="stories-gpt2", prompt="The film was", lens="side_effects")
    assert not app.exception
    assert "make one from texts" in texts(app) and app.button(key="fit-direction")
    app.button(key="fit-direction").click().run()
    assert not app.exception and len(calls(app)) == 1
    (call,) = calls(app)
    assert directions.load(call.settings["direction"], zoo.load("stories-gpt2")).vectors.isfinite().all()


def test_a_direction_that_is_not_kept_here_gets_a_sentence() -> None:
    change = json.dumps({"direction": "0" * 64, "strength": 1.0})
    app = opened("steering", **LINK, lens="side_effects", do=f"steer{change}")
    assert not app.exception and any("not kept here" in each.value for each in app.warning)


def test_a_task_of_heads_is_injected_and_its_heads_are_shown() -> None:
    app = opened("steering", **LINK, lens="side_effects", do=PUSH)
    app.button(key="make-direction").click().run()
    app.segmented_control(key="direction-fit").set_value("soft_injection").run()
    shots = [f"hot = cold, big = small, {one} = {two}" for one, two in (("wet", "dry"), ("full", "empty"))]
    plain = ["wet = dry", "full = empty", "above = below", "warm = cool"]
    app.text_area(key="direction:positive").input("\n".join(shots)).run()
    app.text_area(key="direction:negative").input("\n".join(plain)).run()
    app.slider(key="fit:soft_injection:steps").set_value(2).run()
    app.button(key="fit-direction").click().run()
    for _ in range(60):
        if len(calls(app)) > 1 or app.warning:
            break
        app.run()
    assert not app.exception and not app.warning
    assert calls(app)[-1].method == "inject_task" and calls(app)[-1].settings["share"] == 1
    app.segmented_control(key="panel").set_value("injection_map").run()
    assert not app.exception and app.session_state["bench"].lens.method == "injection_map"
    assert any("<table" in each.proto.body for each in app.get("html"))
