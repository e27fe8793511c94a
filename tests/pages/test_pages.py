"""Every page runs, whatever lies on the bench, and settings become an experiment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from interp import Unsuitable
from interp.methods import METHODS
from interp.model import LanguageModel, VisionModel
from interp.samples import Image, Prompt, gallery
from pages.ui.bench import View
from pages.ui.circuits import WEIGHTINGS
from pages.ui.controls import heads, numbers
from pages.ui.prompts import _columns, ready, visible

ROOT = Path(__file__).parents[2]


def opened(page: str, **query: Any) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    app.switch_page(f"pages/{page}.py")
    for key, value in query.items():
        app.query_params[key] = value
    return app.run()


def some(values: list[str], *always: str) -> list[Any]:
    """Every fifth value as a parameter, and those named; the others only in `make slow`."""
    chosen = {*values[::5], *always}
    return [each if each in chosen else pytest.param(each, marks=pytest.mark.slow) for each in values]


@pytest.mark.parametrize(
    "page",
    [
        "home",
        "heatmaps",
        "pixels",
        "prompts",
        "circuits",
        "features",
        "transport",
        "steering",
        "methods",
        "models",
        "history",
    ],
)
def test_it_opens_without_an_error(page: str) -> None:
    app = opened(page)
    assert not app.exception and not app.warning
    assert app.title


CAMS = sorted(key for key, m in METHODS.items() if m.family == "cam" and key != "score_cam")


@pytest.mark.parametrize("key", some(CAMS, "legrad"))
def test_every_cam_is_shown(key: str) -> None:
    model = "photos-vit" if key == "legrad" else "photos"
    app = opened("heatmaps", v="1", model=model, image="chelsea", lens=key)
    assert not app.exception
    assert app.session_state["bench"].lens.method == key


CHANGES = sorted(key for key, m in METHODS.items() if m.kind == "intervention")


@pytest.mark.parametrize("key", some(CHANGES))
def test_every_intervention_can_be_added_by_its_button(key: str) -> None:
    if METHODS[key].model_type is VisionModel:
        app = opened("heatmaps", v="1", model="scenes", image="scene_ring", lens="grad_cam")
    else:
        app = opened("prompts", v="1", model="stories", prompt="The capital of Peru is", lens="logit_lens")
    app.button(key=f"add:{key}").click().run()
    assert not app.exception
    chips = app.session_state["bench"].chips
    assert [chip.call.method for chip in chips] == [key]
    app.toggle(key="on:0").set_value(False).run()
    assert app.session_state["bench"].experiment.interventions == ()
    assert app.session_state["bench"].chips[0].call == chips[0].call  # switched off, it keeps its settings
    app.button(key="remove:0").click().run()
    assert app.session_state["bench"].chips == () and not app.exception


@pytest.mark.parametrize(
    "key",
    sorted(key for key, m in METHODS.items() if m.model_type is LanguageModel and m.family == "reading"),
)
def test_every_way_of_reading_is_shown_before_and_after_a_change(key: str) -> None:
    change = 'ablate_heads{"heads":[[1,2]]}'
    app = opened("prompts", v="1", model="induction", prompt="The cat sat. The c", lens=key, do=change)
    assert not app.exception and not app.warning
    assert app.session_state["bench"].lens.method == key
    assert app.session_state["bench"].experiment.interventions


CIRCUITS = [key for key in WEIGHTINGS if key not in ("acdc", "verified_patching")]


# the difference is drawn from both sides, so it is asked of every weighting
@pytest.mark.parametrize(
    ("key", "side"),
    [
        *((key, "difference") for key in CIRCUITS),
        (CIRCUITS[0], ""),
        (CIRCUITS[1], ""),
        (CIRCUITS[2], "before"),
        (CIRCUITS[3], "before"),
    ],
)
def test_every_weighting_of_a_circuit_is_shown_before_and_after_a_change(key: str, side: str) -> None:
    pair = '["The cat, the cow: c", "The cat, the sow: c", "o", "a"]'
    change = 'patch_from{"sites":[{"site":"z.1.2"}],"positions":[19]}'
    view = {"side": side, "node": "z.1.2@19", "pin": "z.0.1@14", "group": "copiers:z.1.2@19,z.0.1@14"}
    app = opened("circuits", v="1", model="induction", pair=pair, lens=key, do=change, **view)
    assert not app.exception and not app.warning
    bench = app.session_state["bench"]
    assert bench.lens.method == key and bench.experiment.interventions
    assert bench.view == View(0.8, "z.1.2@19", ("z.0.1@14",), (("copiers", ("z.1.2@19", "z.0.1@14")),), "", side)


def test_a_broken_view_in_a_link_is_left_out() -> None:
    pair = '["The cat, the cow: c", "The cat, the sow: c", "o", "a"]'
    view = {"node": "<script>", "pin": "z.1,,;drop", "group": "a:b", "keep": "x", "side": "up", "beside": "grad_cam"}
    app = opened("circuits", v="1", model="induction", pair=pair, lens="attribution_patching", **view)
    assert not app.exception and app.session_state["bench"].view.keep == View.keep
    assert app.session_state["bench"].view.node == "" and not app.session_state["bench"].view.beside


def test_a_chosen_part_behind_the_end_of_the_prompt_gets_a_sentence() -> None:
    query = {"v": "1", "model": "stories", "prompt": "The capital of Peru is", "lens": "information_flow_routes"}
    app = opened("circuits", **query, node="z.1.0@30")
    assert not app.exception and any("stands at token 30" in each.value for each in app.warning)


def test_two_prompts_and_a_place_travel_in_the_link() -> None:
    query = {"v": "1", "model": "stories", "prompt": "The capital of Peru is", "lens": "logit_lens"}
    app = opened("prompts", **query, second="The capital of Cuba is", position="3", layer="2")
    assert not app.exception
    bench = app.session_state["bench"]
    assert (bench.second, bench.position, bench.layer) == ("The capital of Cuba is", 3, 2)
    assert app.session_state["url"]["second"] == ["The capital of Cuba is"]
    assert app.session_state["url"]["position"] == ["3"] and app.session_state["url"]["layer"] == ["2"]


def test_images_and_prompts_each_keep_their_bench() -> None:
    app = opened("heatmaps", v="1", model="scenes", image="scene_ring", lens="grad_cam")
    app.switch_page("pages/prompts.py").run()
    assert isinstance(app.session_state["bench"].sample, Prompt) and not app.exception
    app.text_area(key="prompt-text").set_value("The capital of Chile is").run()
    assert app.session_state["bench"].sample == Prompt("The capital of Chile is")
    app.switch_page("pages/heatmaps.py").run()
    assert app.session_state["bench"].model == "scenes" and not app.exception
    app.switch_page("pages/prompts.py").run()
    assert app.session_state["bench"].sample == Prompt("The capital of Chile is") and not app.exception


def test_a_prompt_from_home_is_followed() -> None:
    app = opened("home")
    app.text_area(key="home-prompt").set_value("One key, but two").run()
    next(each for each in app.button if each.label.startswith("Follow it")).click().run()
    assert app.session_state["bench"].sample == Prompt("One key, but two") and not app.exception


@pytest.mark.parametrize("behaviour", ready())
def test_every_ready_made_prompt_opens(behaviour: str) -> None:
    app = opened("prompts")
    app.button(key=f"ready:{behaviour}:0").click().run()
    assert not app.exception and not app.warning
    assert app.session_state["bench"].sample.text == ready()[behaviour][0]["prompt"]


@pytest.mark.parametrize("text", ["", "x" * 20_000, "word " * 2000])
def test_prompts_that_cannot_be_read_get_one_sentence_and_lose_nothing(text: str) -> None:
    app = opened("prompts")
    before = app.session_state["bench"].sample
    app.text_area(key="prompt-text").set_value(text).run()
    assert not app.exception and len(app.warning) == 1 and app.warning[0].value.endswith(".")
    if len(text) != 10_000:
        assert app.session_state["bench"].sample == before


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible(" a\tb\n") == "␣a⇥b↵" and visible("") == "∅"
    assert visible("\x00\x1b") == "␀␛" and visible("\u202e\u200b") == "⟨202E⟩⟨200B⟩"
    assert visible("שלום 👨\u200d👩") == "שלום␣👨\u200d👩"


def test_heads_are_read_as_people_write_them() -> None:
    assert heads("2.1, L3H0 0.11") == ((2, 1), (3, 0), (0, 11)) and heads("") == ()
    for text in ("2", "a.b", "1.2.3"):
        with pytest.raises(Unsuitable, match="Heads are"):
            heads(text)


@pytest.mark.parametrize("name", some(sorted(gallery())))
def test_every_sample_can_be_looked_at(name: str) -> None:
    app = opened("heatmaps", v="1", model=gallery()[name]["model"], image=name, lens="grad_cam")
    assert not app.exception and not app.warning


def test_undo_goes_back() -> None:
    app = opened("heatmaps", v="1", model="scenes", image="scene_ring", lens="grad_cam")
    before = app.session_state["bench"]
    app.button(key="add:add_noise").click().run()
    assert app.session_state["bench"] != before
    next(each for each in app.button if each.label == "Undo").click().run()
    assert app.session_state["bench"] == before


def test_channels_are_read_as_people_write_them() -> None:
    assert numbers("3, 17, 40-42") == (3, 17, 40, 41, 42)
    assert numbers("") == ()
    for text in ("three", "1-", "4;5", "1-999999"):
        with pytest.raises(Unsuitable):
            numbers(text)


def test_a_text_is_continued_with_and_without_the_changes() -> None:
    change = 'ablate_heads{"heads":[[1,2]]}'
    app = opened("prompts", v="1", model="induction", prompt="The cat sat. The c", lens="logit_lens", do=change)
    next(each for each in app.button if each.label.startswith("Continue")).click().run()
    assert not app.exception
    before, after = (app.session_state["bench"].experiment.before(), app.session_state["bench"].experiment)
    texts = app.session_state["continued"]
    assert texts[before.digest] == "".join(before.stream(24)) and texts[before.digest].startswith("at. cat")
    assert texts[after.digest] == "".join(after.stream(24)) != texts[before.digest]
    shown = [f"The cat sat. The c{texts[each.digest]}".strip() for each in (before, after)]
    assert [each.value for each in app.text] == shown  # as Streamlit shows texts, without spaces at their ends


@pytest.mark.parametrize("query", [
    {"do": 'ablate_heads{"heads":[[9,9]]}'},
    {"do": 'skip_layer{"layer":3,"count":9}'},
    {"lens": 'attention_pattern{"layer":77}'},
    {"lens": 'direct_logit_attribution{"target":{"target":"no such token at all"}}'},
    {"lens": 'next_tokens{"position":999}'},
    {"prompt": "y" * 20_000},
    {"model": "photos"},
    {"lens": "grad_cam"},
])  # fmt: skip
def test_a_link_that_asks_for_what_is_not_there_gets_sentences(query: dict[str, str]) -> None:
    good = {"v": "1", "model": "stories", "prompt": "The capital of Peru is", "lens": "logit_lens"}
    app = opened("prompts", **(good | query))
    assert not app.exception and app.warning
    assert all(each.value.endswith(".") and len(each.value) < 400 for each in app.warning)


def test_the_ledger_answers_for_the_chosen_token() -> None:
    query = {"v": "1", "model": "stories", "prompt": "The capital of Peru is", "lens": "direct_logit_attribution"}
    app = opened("prompts", **query, position="2")
    assert not app.exception
    assert app.session_state["history"][-1].lens.settings["position"] == 2
    assert app.session_state["bench"].lens.settings["position"] is None, "clicking on goes on to answer"


def test_the_layer_of_the_patterns_can_be_chosen_on_the_page() -> None:
    app = opened("prompts", v="1", model="stories", prompt="The capital of Peru is", lens="attention_pattern")
    app.segmented_control(key="prompt-layer").set_value(2).run()
    assert app.session_state["bench"].lens.settings["layer"] == 2 and not app.exception


def test_from_a_prompt_a_photo_or_a_method_for_photos_finds_the_bench_of_photos() -> None:
    app = opened("prompts")
    app.switch_page("pages/methods.py").run()
    app.session_state["method"] = "hires_cam"
    app.run()
    next(each for each in app.button if each.label == "Use it").click().run()
    bench = app.session_state["bench"]
    assert bench.lens.method == "hires_cam" and bench.model == "photos" and not app.exception and not app.warning
    app.switch_page("pages/methods.py").run()
    app.session_state["method"] = "tuned_lens"
    app.run()
    next(each for each in app.button if each.label == "Use it").click().run()
    bench = app.session_state["bench"]
    assert bench.lens.method == "tuned_lens" and bench.model == "stories" and not app.exception
    app.switch_page("pages/home.py").run()
    app.file_uploader(key="home-upload").upload("dog.png", png(), "image/png").run()
    bench = app.session_state["bench"]
    assert bench.model == "photos" and isinstance(bench.sample, Image) and not app.exception


def png() -> bytes:
    buffer = io.BytesIO()
    Image.gallery("chelsea").picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_of_many_columns_the_largest_are_shown() -> None:
    lens = 'direct_logit_attribution{"by":"neuron"}'
    app = opened("prompts", v="1", model="stories", prompt="The capital of Peru is", lens=lens)
    assert not app.exception
    assert any("40 of 322 columns: those with the largest values" in each.value for each in app.caption)
    parts = [np.array([[0.0, 5, 1], [3, 0, 0]])]
    assert _columns(parts, None) == [0, 1, 2]
    assert _columns([np.eye(50)[[7, 3, 45]]], None)[0] == 0 and {3, 7, 45} < set(
        _columns([np.eye(50)[[7, 3, 45]]], None)
    )
    assert _columns([np.zeros((2, 100))], 70) == list(range(50, 90))
