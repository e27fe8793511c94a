"""The Features page: what lies on its bench, what a link holds, and labels of one's own."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from interp import Unsuitable, evidence, figures, sae, zoo
from interp.experiment import Call, Experiment
from interp.results import FeatureList, FeaturePage, Table
from interp.samples import Image, Prompt
from pages.ui import feature, labels, show
from pages.ui.bench import CAPITALS, View, first_feature
from pages.ui.features import marked
from tests.known import grammar
from tests.pages.test_pages import opened

SAE = "stories/resid_post.2"
LENSES = ("feature_page", "feature_search", "feature_lookup", "feature_neighbours", "feature_map")


def test_the_first_feature_promotes_capitals_and_without_it_paris_becomes_french() -> None:
    start = first_feature().experiment
    page = start.run()
    assert isinstance(page, FeaturePage) and page.feature == CAPITALS
    assert {" Stockholm", " Lisbon"} <= set(page.promoted)
    assert page.here[-1] > 0.5 * page.maximum and page.here.argmax() == len(page.here) - 1
    lens, ablated = Call("next_tokens", top=100), Call("ablate_feature", sae=SAE, features=(CAPITALS,))
    before, after = (Experiment(start.model, start.sample, lens, chips).run() for chips in ((), (ablated,)))
    assert isinstance(before, Table) and isinstance(after, Table)
    assert before.rows[0] == " Paris" and before.values[0, 0] > 0.9
    assert after.rows[0] == " French" and after.values[0, 0] > 0.5


@pytest.mark.parametrize("shown", ["activation", "density", "table"])
def test_it_opens_on_its_example_however_all_features_are_shown(shown: str) -> None:
    app = opened("features", v="1", model="stories", prompt="The capital of Peru is", lens="feature_page", shown=shown)
    assert not app.exception and not app.warning
    assert app.session_state["bench"].view.shown == shown


@pytest.mark.parametrize("key", LENSES)
def test_every_lens_of_features_is_shown_before_and_after_a_change(key: str) -> None:
    words = '{"words":"France"}' if key == "feature_search" else ""
    change = f'scale_feature{{"sae":"{SAE}","features":[3],"factor":3.0}}'
    app = opened("features", v="1", model="stories", prompt="The capital of Peru is", lens=key + words, do=change)
    assert not app.exception and not app.warning
    bench = app.session_state["bench"]
    assert bench.lens.method == key and bench.experiment.interventions


def test_what_is_open_beside_a_list_is_in_the_link() -> None:
    query = {"v": "1", "model": "stories", "prompt": "The capital of Peru is", "lens": "feature_lookup"}
    app = opened("features", **query, feature="7", of="stories/resid_post.3", position="4", shown="density")
    assert app.session_state["bench"].view == View(feature=7, of="stories/resid_post.3", shown="density")
    url = app.session_state["url"]
    assert (url["feature"], url["of"], url["position"], url["shown"]) == (
        ["7"], ["stories/resid_post.3"], ["4"], ["density"],
    )  # fmt: skip


def test_the_dial_is_one_chip_on_the_bar() -> None:
    app = opened("features")
    dial = app.slider(key="dial")
    assert dial.value == 1.0
    for value, method in ((0.0, "ablate_feature"), (2.5, "scale_feature")):
        app.slider(key="dial").set_value(value).run()
        assert not app.exception
        assert [chip.call.method for chip in app.session_state["bench"].chips] == [method]
    app.slider(key="dial").set_value(1.0).run()
    assert app.session_state["bench"].chips == ()
    app.button_group(key="dial-kind").set_value("clamp").run()
    app.slider(key="dial").set_value(1.5).run()
    (chip,) = app.session_state["bench"].chips
    assert chip.call == Call("clamp_feature", sae=SAE, features=(CAPITALS,), value=1.5, unit="maximum")
    app.button(key="dial-off").click().run()
    assert app.session_state["bench"].chips == () and not app.exception


def test_model_input_and_changes_come_along_and_go_along() -> None:
    app = opened("prompts", v="1", model="stories", prompt="One key, but two", lens="logit_lens",
                 do='skip_layer{"layer":1}')  # fmt: skip
    app.switch_page("pages/features.py").run()
    bench = app.session_state["bench"]
    assert bench.sample == Prompt("One key, but two") and [c.call.method for c in bench.chips] == ["skip_layer"]
    app.text_input(key="words").set_value("key").run()
    app.button(key="to:prompts").click().run()
    bench = app.session_state["bench"]
    assert bench.lens.method == "logit_lens" and bench.sample == Prompt("One key, but two") and bench.chips
    app.switch_page("pages/features.py").run()
    assert app.session_state["bench"].lens == Call("feature_search", sae=SAE, words="key")


def test_a_prompt_goes_along_to_circuits() -> None:
    app = opened("features")
    app.button(key="to:circuits").click().run()
    assert not app.exception and app.session_state["bench"].lens.method == "information_flow_routes"
    assert app.session_state["bench"].sample == Prompt("The capital of France is")


def test_texts_are_chosen_by_the_features_of_a_task() -> None:
    app = opened("features")
    app.button(key="own-sae").click().run()
    pool = [grammar.document(random.Random(number)) for number in range(40)]
    app.button_group(key="pool-way").set_value("Pasted").run()
    app.text_area(key="pool-pasted").set_value("\n".join(each.replace("\n", " ") for each in pool)).run()
    app.text_area(key="task-texts").set_value("The capital of Peru is Lima.\nThe capital of Iran is Tehran.").run()
    app.slider(key="task-keep").set_value(0.1).run()
    app.button(key="choose").click().run()
    end = time.monotonic() + 60
    while not app.dataframe and time.monotonic() < end:
        time.sleep(0.5)
        app.run()
    assert not app.exception
    (shown,) = app.dataframe
    chosen = list(shown.value["text"])
    countries = [each[0] for each in grammar.COUNTRIES]
    assert len(chosen) == 4 and all(any(each in text for each in countries) for text in chosen)
    assert list(shown.value["similarity"]) == sorted(shown.value["similarity"], reverse=True)


def test_a_model_without_an_sae_is_told_what_to_do() -> None:
    app = opened("features", v="1", model="induction", prompt="a b a", lens="next_tokens")
    app.switch_page("pages/features.py").run()
    app.radio(key="model-choice").set_value("induction").run()
    assert not app.exception and "no SAE for induction" in app.info[0].value


def test_an_unknown_feature_or_sae_gets_one_sentence() -> None:
    base = {"v": "1", "model": "stories", "prompt": "The capital of Peru is"}
    for lens in ('feature_page{"feature":99999}', 'feature_page{"sae":"local:0123456789abcdef"}'):
        app = opened("features", **base, lens=lens)
        assert not app.exception and len(app.warning) == 1 and app.warning[0].value.endswith((".", "\\."))


# -------------------------------------------------------------------------------------------------------------- labels


class State(dict[str, Any]):
    """A visit's state."""


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> State:
    state = State()
    monkeypatch.setattr(labels.st, "session_state", state)
    return state


def test_labels_come_back_from_the_link_and_from_the_file(visit: State) -> None:
    labels.put(SAE, 7, " refusal ", "fires on\nthe colon ␣ <b>")
    labels.put("local:0123456789abcdef", 0, "été", "")
    mine = json.loads(json.dumps(labels.to_json()))
    assert labels.unpack(labels.packed()) == labels.from_json(mine) == labels.own()
    assert labels.of(SAE) == {7: "refusal"}
    labels.put(SAE, 7, "", "")
    assert SAE not in labels.own()


def test_too_many_labels_leave_the_link(visit: State) -> None:
    import hashlib

    for each in range(200):
        labels.put(SAE, each, hashlib.sha256(bytes([each])).hexdigest()[:20], "")
    assert labels.packed() == "" and len(labels.from_json(labels.to_json())[SAE]) == 200


@pytest.mark.parametrize("text", ["", "x", "eNqrVsrJT07", "eJwDAAAAAAE", "[]" * 3000, "é"])
def test_broken_labels_in_a_link_get_a_sentence(visit: State, text: str) -> None:
    with pytest.raises(Unsuitable):
        labels.unpack(text)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"../x":{}}', '{"stories/a":{"x":["",""]}}', '{"stories/a":{"1":[1,""]}}', "[" * 5000]
)
def test_broken_files_of_labels_get_a_sentence(visit: State, text: str) -> None:
    with pytest.raises(Unsuitable):
        labels.from_json(text)


def test_a_bomb_in_a_link_is_not_unpacked(visit: State) -> None:
    import base64
    import zlib

    bomb = base64.urlsafe_b64encode(zlib.compress(b"[" * 10**8, 9)).decode()
    with pytest.raises(Unsuitable):
        labels.unpack(bomb)


def test_labels_in_a_link_are_shown_and_kept_in_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels.st, "session_state", State())
        labels.put(SAE, CAPITALS, "capitals", "my note")
        packed = labels.packed()
    query = {"v": "1", "model": "stories", "prompt": "The capital of Peru is"}
    lens = f'feature_page{{"sae":"{SAE}","feature":{CAPITALS}}}'
    app = opened("features", **query, lens=lens, labels=packed)
    assert app.text_input(key="own-label").value == "capitals" and app.session_state["url"]["labels"] == [packed]
    app.text_input(key="own-note").set_value("another").run()
    assert labels.unpack(app.session_state["url"]["labels"][0]) == {SAE: {CAPITALS: ("capitals", "another")}}


# ------------------------------------------------------------------------------------------------------------ in words


def test_shares_and_contexts_in_words() -> None:
    assert feature.often(0.0, "tokens") == "never fired" and feature.often(float("nan"), "tokens") == ""
    assert feature.often(0.0123, "tokens") == "on 1.2 % of tokens" and feature.percent(1.23) == "123 %"
    tokens = tuple("abcdefghijklmnopqrst")
    assert marked(tokens, 0)[0] == ["a", True] and marked(tokens, 12)[0] == ["…", False]
    assert [piece for piece, fired in marked(tokens, 12) if fired] == ["m"]


@pytest.mark.parametrize("name", ["stories/resid_post.2", "stories/mlp.2"])
def test_the_share_left_out_is_what_the_reconstruction_misses(name: str) -> None:
    import torch

    experiment = Experiment("stories", Prompt("The capital of France is Paris."), Call("next_tokens"))
    model: Any = zoo.load("stories")
    found = sae.load(name)
    with torch.no_grad(), model.record([found.site, found.target]) as seen:
        model(experiment.sample)
    x, y = seen[found.site][0, 1:], seen[found.target][0, 1:]  # without <|end|>
    left = (y - found.decode(found.encode(x), x)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert evidence.left_out(experiment, name) == pytest.approx(float(left), rel=1e-4)


def test_a_photo_is_looked_at_by_patches() -> None:
    if not sae.available(zoo.load("photos")):
        pytest.skip("there is no SAE of photos")
    app = opened("features", v="1", model="photos", image="chelsea", lens="feature_lookup", position="24")
    assert not app.exception and not app.warning
    found = Experiment("photos", Image.gallery("chelsea"), Call("feature_lookup", positions=(24,))).run()
    assert isinstance(found, FeatureList) and found.grid.shape[1:] == (7, 7)


def test_features_as_figures_and_as_small_pictures() -> None:
    base = Experiment("stories", Prompt("The capital of France is"), Call("feature_lookup", sae=SAE, top=3))
    found, page = base.run(), first_feature().experiment.run()
    assert isinstance(found, FeatureList) and isinstance(page, FeaturePage)
    assert list(figures.figure(found).data[0].x) == found.values.tolist()
    assert list(figures.figure(page).data[0].x)[:2] == page.gains[:2].tolist()
    assert show.feature_picture(found, "list").startswith("data:image/")
    assert show.feature_words(page).startswith(f"Feature {CAPITALS}, which promotes Stockholm")
