"""Every page runs, whatever lies on the bench, and settings become an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from interp import Unsuitable
from interp.methods import METHODS
from interp.samples import gallery
from pages.ui.controls import numbers

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


@pytest.mark.parametrize("page", ["home", "heatmaps", "methods", "models", "history"])
def test_it_opens_without_an_error(page: str) -> None:
    app = opened(page)
    assert not app.exception and not app.warning
    assert app.title


@pytest.mark.parametrize("key", sorted(key for key, m in METHODS.items() if m.family == "cam" and key != "score_cam"))
def test_every_cam_is_shown(key: str) -> None:
    model = "photos-vit" if key == "legrad" else "photos"
    app = opened("heatmaps", v="1", model=model, image="chelsea", lens=key)
    assert not app.exception
    assert app.session_state["bench"].lens.method == key


@pytest.mark.parametrize("key", sorted(key for key, m in METHODS.items() if m.kind == "intervention"))
def test_every_intervention_can_be_added_by_its_button(key: str) -> None:
    app = opened("heatmaps", v="1", model="scenes", image="scene_ring", lens="grad_cam")
    app.button(key=f"add:{key}").click().run()
    assert not app.exception
    chips = app.session_state["bench"].chips
    assert [chip.call.method for chip in chips] == [key]
    app.toggle(key="on:0").set_value(False).run()
    assert app.session_state["bench"].experiment.interventions == ()
    assert app.session_state["bench"].chips[0].call == chips[0].call  # switched off, it keeps its settings
    app.button(key="remove:0").click().run()
    assert app.session_state["bench"].chips == () and not app.exception


@pytest.mark.parametrize("name", sorted(gallery()))
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
