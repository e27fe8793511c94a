"""The Transport page: its first sight, what a link holds, what its buttons put on the bar, texts of one's own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from interp import Unsuitable, zoo
from interp.experiment import Call, Experiment
from interp.results import FeatureList, TokenGrid
from interp.samples import Prompt
from interp.sites import Site
from pages.ui import operators
from pages.ui import transport as page
from pages.ui.bar import in_words
from pages.ui.bench import CAPITALS, View, first_transport
from tests.pages.test_pages import opened

SAE = "stories/resid_post.2"
LINK = {"v": "1", "model": "stories", "prompt": "The capital of Peru is"}
LENSES = ("transport_efficiency", "transported_features", "feature_life", "transport_check")


def texts(app: AppTest) -> str:
    return " ".join(each.value for kind in (app.markdown, app.caption, app.info, app.warning) for each in kind)


def test_the_first_sight_is_what_its_caption_says() -> None:
    start = first_transport().experiment
    found = start.run()
    assert isinstance(found, FeatureList)
    verdicts = {int(number): page._kind(found, at) for at, number in enumerate(found.features)}
    assert verdicts[879] == "carried" and verdicts[CAPITALS] == "made"
    life = Experiment(start.model, start.sample, Call("feature_life", sae=SAE, feature=CAPITALS)).run()
    assert isinstance(life, TokenGrid)
    there = dict(zip(life.rows, life.row_values[:, 1] > 0.5, strict=True))
    assert there == {"embed": False, "0": False, "1": True, "2": True, "3": False}
    app = opened("transport")
    assert not app.exception and not app.warning
    assert page.NOTICE in texts(app) and life.note.partition(" (")[0] in texts(app)


@pytest.mark.parametrize("key", LENSES)
def test_every_lens_of_transport_is_shown_before_and_after_a_change(key: str) -> None:
    change = 'transport_replace{"source":{"site":"resid_pre.0"},"target":{"site":"resid_post.1"}}'
    app = opened("transport", **LINK, lens=key, do=change)
    assert not app.exception and not app.warning
    bench = app.session_state["bench"]
    assert bench.lens.method == key and bench.experiment.interventions


def test_a_pair_in_the_link_decides_whose_features_are_shown() -> None:
    app = opened("transport", **LINK, lens="transport_efficiency", between="embed>3", colour="size", feature="7")
    assert not app.exception and not app.warning
    assert app.session_state["bench"].view == View(feature=7, between="embed>3", colour="size")
    assert "From the embedding to layer 3" in texts(app)
    asked = {each.lens for each in app.session_state["history"]}
    assert Call("transported_features", sae="stories/resid_post.3", source=Site("resid_pre", 0)) in asked
    url = app.session_state["url"]
    assert (url["between"], url["colour"], url["feature"]) == (["embed>3"], ["size"], ["7"])


def test_without_an_sae_in_the_link_the_models_own_decides_the_target() -> None:
    app = opened("transport", **LINK, lens="transported_features", position="3")
    assert not app.exception and not app.warning
    assert "From layer 1 to layer 2" in texts(app) and "What fires at layer 2" in texts(app)
    app = opened("transport", **LINK, lens="transport_efficiency", between="0>1", position="3")
    assert "(token 3)" in texts(app).replace("\\", "")


@pytest.mark.parametrize("between", ["3>embed", "2>2", "9>77", "<b>>1", "1"])
def test_a_pair_that_is_none_falls_back_to_one(between: str) -> None:
    app = opened("transport", **LINK, lens="transport_efficiency", between=between, colour="red", rank="-4")
    assert not app.exception and not app.warning
    view = app.session_state["bench"].view
    assert (view.colour, view.rank) == (View.colour, 0)
    assert any(each.value.startswith("##### From ") for each in app.markdown)


def test_a_source_after_the_layer_of_the_sae_gives_way_to_the_layer_before_it() -> None:
    lens = 'transported_features{"sae":"stories/resid_post.1","source":{"site":"resid_post.3"}}'
    app = opened("transport", **LINK, lens=lens)
    assert not app.exception and app.warning
    assert all(each.value.endswith(".") for each in app.warning)


def test_a_lower_rank_explains_less_and_goes_along_to_what_replaces() -> None:
    app = opened("transport")
    app.select_slider(key="rank-of-maps").set_value("4").run()
    assert not app.exception and app.session_state["bench"].view.rank == 4
    start = first_transport().experiment
    whole, low = (
        Experiment(start.model, start.sample, Call("transport_efficiency", rank=rank)).run() for rank in (0, 4)
    )
    assert isinstance(whole, TokenGrid) and isinstance(low, TokenGrid)
    shown, full = (float(each.sheet("transported")[1, 3]) for each in (low, whole))
    assert shown < full and f"**{100 * shown:.0f} %**" in texts(app)
    app.button(key="replace").click().run()
    (chip,) = app.session_state["bench"].chips
    assert chip.call == Call("transport_replace", source=Site("resid_post", 0), target=Site("resid_post", 2), rank=4)
    assert app.session_state["url"]["rank"] == ["4"]


def test_a_feature_is_steered_and_replaced_by_buttons_that_make_chips() -> None:
    app = opened("transport")
    app.slider(key=f"steer:{SAE}:{CAPITALS}").set_value(-4.0).run()
    app.button(key="steer").click().run()
    app.button(key="replace-alone").click().run()
    assert not app.exception
    steered, replaced = (chip.call for chip in app.session_state["bench"].chips)
    assert steered == Call("steer_upstream", source=Site("resid_post", 0), sae=SAE, feature=CAPITALS, by=-4.0)
    assert replaced == Call("transport_replace", source=Site("resid_post", 0), target=Site("resid_post", 2), sae=SAE,
                            features=(CAPITALS,))  # fmt: skip


def test_another_policy_without_operators_says_so_and_offers_to_fit_them() -> None:
    app = opened("transport", **(LINK | {"model": "induction"}), lens='transport_efficiency{"policy":"previous"}')
    assert not app.exception and "read the token before" in texts(app)
    assert any(each.label == "Fit them" for each in app.button)


def test_another_model_leaves_behind_what_was_the_last_ones() -> None:
    lens = f'transported_features{{"sae":"{SAE}","source":{{"site":"resid_post.1"}},"operators":"{"0" * 64}"}}'
    app = opened("transport", **LINK, lens=lens, feature="7")
    app.radio(key="model-choice").set_value("induction").run()
    assert not app.exception
    bench = app.session_state["bench"]
    assert bench.model == "induction" and bench.view == View()
    assert bench.lens.settings["sae"] == bench.lens.settings["operators"] == ""
    assert "no transport operators for induction" in texts(app)


def test_a_prompt_and_its_changes_come_along_from_other_pages() -> None:
    app = opened("prompts", **LINK, lens="logit_lens", do='skip_layer{"layer":1}')
    app.switch_page("pages/transport.py").run()
    assert not app.exception
    bench = app.session_state["bench"]
    assert bench.sample == Prompt(LINK["prompt"]) and [each.call.method for each in bench.chips] == ["skip_layer"]
    app.button(key="to:features").click().run()
    assert app.session_state["bench"].lens == Call("feature_page", sae=SAE, feature=CAPITALS)
    assert app.session_state["bench"].sample == Prompt(LINK["prompt"])


def test_a_prompt_that_is_too_long_gets_one_sentence() -> None:
    app = opened("transport", **(LINK | {"prompt": "word " * 1900}), lens="transported_features")
    assert not app.exception and len(app.warning) == 1 and app.warning[0].value.endswith(".")


def test_the_bar_says_what_is_replaced() -> None:
    model = zoo.load("stories")
    whole = Call("transport_replace", source=Site("resid_pre", 0), target=Site("resid_post", 2))
    assert in_words(whole, model) == "Replace by the transport: into block 0, out of layer 2"
    assert in_words(whole.but(sae=SAE, features=(7,)), model).startswith("Replace by the transport: #7 of resid_post.2")


def listing(numbers: list[int], grid: Any, reasons: list[str], r2: list[float]) -> FeatureList:
    grid = np.array(grid, float)
    held = np.array([[each, each - 0.1, each + 0.1] for each in r2])
    return FeatureList(
        np.array(numbers), grid.max(1), grid=grid, reasons=tuple(reasons), carried=np.where(grid > 0, 0.5, np.nan),
        held_out=held, tokens=("a", "b"), labels=("x",) * len(numbers),
    )  # fmt: skip


def test_what_a_change_silenced_stays_on_the_list() -> None:
    before = listing([3, 5, 8], [[4, 0], [0, 2], [1, 1]], ["carried", "made", "open"], [0.9, 0.1, 0.5])
    after = listing([5, 9], [[0, 1], [3, 3]], ["made", "made"], [0.1, -0.4])
    items = page._items(zoo.load("stories"), SAE, ["a", "b"], [before, after])
    assert [each["feature"] for each in items] == [3, 8, 9, 5], "carried from the best down, made from the worst up"
    notes = {each["feature"]: each["note"] for each in items}
    assert "4 before, silent now" in notes[3] and "activation 2 → 1" in notes[5] and notes[9].endswith("activation 3")
    assert items[2]["value"] == "R² −0.40 (−0.50 to −0.30)"
    assert [page.minus(each) for each in (-0.004, 0.0, -0.006)] == ["0.00", "0.00", "−0.01"]
    alone = page._items(zoo.load("stories"), SAE, ["a", "b"], [after])
    assert [each["feature"] for each in alone] == [9, 5]


def test_a_mark_stands_where_a_feature_fires_and_says_what_was_there() -> None:
    found = listing([3, 5], [[4, 0], [0, 2]], ["carried", "made"], [0.9, 0.1])
    marks = page._marks(found, ["a", "b"], 4.0)
    assert [(each["feature"], each["token"], each["size"], each["carried"]) for each in marks] == [
        (3, 0, 1.0, 0.5), (5, 1, 0.5, 0.5),
    ]  # fmt: skip
    assert marks[1]["note"] == "#5 at b: 2, 50 % was there"


def test_lines_of_a_file_are_texts_or_get_a_sentence() -> None:
    assert operators._read(b"eins\n\nzwei\n", False) == ["eins", "", "zwei"]
    lines = [json.dumps({"text": "one", "id": 3}), "", json.dumps("two")]
    assert operators._read("\n".join(lines).encode(), True) == ["one", "two"]
    for data, jsonl, sentence in (
        (b"\xff\xfe", False, "UTF-8"), (b" \n", True, "empty"), (b'"a"\n{"text": 3}', True, "Line 2"),
        (b"[" * 100_000, True, "Line 1"), (b'{"txt": "a"}', True, "Line 1"),
    ):  # fmt: skip
        with pytest.raises(Unsuitable, match=sentence):
            operators._read(data, jsonl)


def test_too_few_texts_are_told_how_many_it_takes() -> None:
    app = opened("transport", **(LINK | {"model": "induction"}), lens="transport_efficiency")
    app.button_group(key="fit-way").set_value("Pasted").run()
    app.text_area(key="fit-pasted").set_value("The cat sat.\nThe cow ran.").run()
    assert not app.exception
    width = zoo.load("induction").config.hidden_size  # type: ignore[attr-defined]
    said = texts(app)
    assert f"the {width} directions" in said and f"{20 * width / 0.8:,.0f} tokens of text" in said
    assert "24 tokens: about 2 forwards" in said


def test_the_catalogue_leads_to_the_page_with_its_lens() -> None:
    app = opened("methods")
    app.session_state["method"] = "feature_life"
    app.run()
    next(each for each in app.button if each.label == "Use it").click().run()
    assert not app.exception and not app.warning
    assert app.session_state["bench"].lens.method == "feature_life"
    assert app.session_state["bench"].lens.settings["sae"] == SAE, "what both lenses have goes along"
