"""The Models page: what a model of the hub is before it is downloaded, its bytes, Cancel; what a server offers."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from interp import hub as real
from interp import settings, zoo
from pages.ui import downloads
from tests.hub import COMMITS, Hub, Ill, serving
from tests.pages.test_pages import opened
from tests.test_hub import made
from tests.test_zoo import save

hub = pytest.fixture(serving)


@pytest.fixture(autouse=True)
def nothing_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test's visitor has the same name."""
    monkeypatch.setattr(downloads, "_coming", {})


MAIN = COMMITS["main"]


def button(app: AppTest, words: str) -> Any:
    return next((each for each in app.button if words in each.label), None)


def texts(app: AppTest) -> str:
    return " ".join(each.value for kind in (app.markdown, app.caption, app.warning, app.info) for each in kind)


def until(app: AppTest, there: Any, seconds: float = 60) -> None:
    start = time.monotonic()
    while not there():
        assert time.monotonic() - start < seconds and not app.exception, texts(app)
        time.sleep(0.1)
        app.run()


def look_up(app: AppTest, name: str) -> AppTest:
    app.text_input(key="own").set_value(name).run()
    return button(app, "Look it up").click().run()


def test_a_model_is_looked_up_downloaded_stopped_and_used(hub: Hub) -> None:
    save(hub.root / "owner/good", "gpt2")
    hub.ills["owner/good"] = Ill(pause=0.05)
    app = look_up(opened("models"), "owner/good")
    card = zoo.look("owner/good")
    assert f"**{real.said(card.bytes)}**, {len(card.files)} files" in texts(app) and "licence apache" in texts(app)
    assert "commit 01234567" in texts(app) and not hub.weights
    button(app, "Download").click().run()
    until(app, lambda: (one := downloads._coming.get(card.name)) and one.progress and one.progress.done > 3000, 20)
    button(app, "Cancel").click().run()
    until(app, lambda: button(app, "Download") is not None)
    assert not zoo.here(card.name)
    hub.ills.clear()
    button(app, "Download").click().run()
    until(app, lambda: zoo.here(card.name))
    until(app, lambda: app.session_state["bench"].model == card.name)
    assert not app.exception and f"owner%2Fgood%40{MAIN}" in app.session_state["bench"].experiment.to_url()
    app = opened("models")
    assert "owner/good@01234567" in texts(app).replace("\\", "")
    assert app.button(key=f"delete:{card.name}").disabled, "a model in memory"
    zoo._loaded.clear()
    zoo._alive.clear()
    app.run()
    app.button(key=f"delete:{card.name}").click().run()
    assert not real.kept() and not zoo.here(card.name) and not app.exception


def test_a_link_to_a_model_that_is_not_here_asks_first(hub: Hub) -> None:
    save(hub.root / "owner/good", "gpt2")
    app = opened("prompts", v="1", model="owner/good", prompt="abc", lens="logit_lens")
    assert not hub.weights and "not on this machine yet" in texts(app) and not app.exception
    button(app, "Download").click().run()
    until(app, lambda: button(app, "Continue the text") is not None)
    assert len(hub.weights) == 1 and app.session_state["bench"].model == "owner/good"


def test_what_can_not_be_had_is_said(hub: Hub) -> None:
    made(hub, model_type="bert")
    app = look_up(opened("models"), "owner/good")
    assert "is a bert" in app.warning[0].value and not app.exception
    for name in ("owner/none", "../x", "**x**<b>", "~/x"):
        assert len(look_up(app, name).warning) == 1 and not app.exception
        assert "**x**" not in app.warning[0].value
    app = opened("prompts", v="1", model="owner/none", prompt="abc", lens="logit_lens")
    assert "no repository" in texts(app) and not app.exception


@pytest.mark.parametrize("offered", ["owner/good@main, owner/other", ""])
def test_a_server_offers_what_its_settings_name(offered: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    made(hub)
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, hosted=True, hub=offered))
    app = opened("models")
    assert not app.text_input and not app.exception
    if not offered:
        assert not app.selectbox and not button(app, "Look it up")
        return
    assert app.selectbox(key="own-offered").options == ["owner/good@main", "owner/other"]
    app.selectbox(key="own-offered").select("owner/good@main").run()
    assert button(app, "Download") is not None and not hub.weights
    app.selectbox(key="own-offered").select("owner/other").run()
    assert "no repository" in texts(app) and not app.exception
