"""Sharing in Chromium: a short link, a view inside another page, and files that open without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from pages.ui import export
from tests.browser.harness import idle
from tests.pages.test_pages import opened
from tests.pages.test_sharing import EVIL, PAGES

DRAWN = """() => [...document.querySelectorAll("[data-component]")].map(
  place => [place.shadowRoot.querySelector(".root").childElementCount, place.getBoundingClientRect().height])"""


def watched(page: Page) -> list[str]:
    """What a page asks for over a network, complains of, or opens."""
    found: list[str] = []
    page.on("dialog", lambda dialog: (found.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: found.append(f"thrown {error}"))
    page.on("console", lambda said: found.append(said.text) if said.type in ("error", "warning") else None)
    page.on("request", lambda asked: found.append(asked.url) if asked.url.startswith(("http", "ws")) else None)
    return found


@pytest.mark.parametrize(
    "name", [each if each == "steering" else pytest.param(each, marks=pytest.mark.slow) for each in PAGES]
)
def test_a_file_shows_a_page_without_a_network(name: str, browser: Browser, tmp_path: Path) -> None:
    app = opened(name)
    parts, about = app.session_state["page-shown"].parts, app.session_state["page-shown"].about
    file = tmp_path / "page.html"
    file.write_bytes(export.page(*about, parts, EVIL, "https://actiscope.example/"))
    assert file.stat().st_size < 3_000_000
    with browser.new_context(offline=True, viewport={"width": 1000, "height": 800}) as context:
        page = context.new_page()
        wrong = watched(page)
        page.goto(file.as_uri())
        page.wait_for_selector("footer")
        drawn = page.evaluate(DRAWN)
        mounted = [each for each, _ in parts.values() if each not in ("html", "table", *export.ASKING)]
        assert len(drawn) == len(mounted) > 0 and all(count and height > 20 for count, height in drawn), drawn
        expect(page.locator("h1")).to_have_text(EVIL)
        if name == "heatmaps":  # what can be done inside the figure still can
            page.locator(".map").first.hover()
            expect(page.locator(".tip").first).to_contain_text("of scale")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 22, 20)"
        with page.expect_download() as got:
            page.get_by_text("The experiment as JSON").click()
        assert got.value.path().read_text().startswith("{")
        assert not wrong


def test_a_short_link_with_a_hostile_title_leads_to_its_view(visit: Any) -> None:
    page = visit(f"/prompts?v=1&model=stories&prompt={quote(EVIL)}&lens=logit_lens")
    wrong = watched(page)
    page.get_by_role("button", name=re.compile("Link")).click()
    body = page.locator('[data-testid="stPopoverBody"]')
    body.get_by_role("textbox", name="Title").fill(EVIL)
    body.get_by_role("textbox", name="Title").press("Enter")
    idle(page)
    body.get_by_text("Make a short link").click()
    code = body.locator('[data-testid="stCode"]', has_text="/s/")
    expect(code).to_be_visible()
    link = code.inner_text().strip()
    answer = page.request.get(link + ".png")
    assert answer.headers["content-type"] == "image/png" and answer.body()[:4] == b"\x89PNG"
    there = visit(link, wait=False)
    wrong += watched(there)
    there.wait_for_url(re.compile(r"/prompts\?"))
    expect(there.get_by_text("Reproduced: the same numbers")).to_be_visible()
    assert not there.thrown and not [each for each in wrong if "dialog" in each or "thrown" in each]
    assert quote(EVIL[:9], safe="") in there.url


def test_a_view_inside_another_page_is_the_figure_alone_and_stays_so(visit: Any, server: Any) -> None:
    page = visit("/prompts?embed=true", size=(800, 480))
    expect(page.locator(".token").first).to_be_visible()
    expect(page.get_by_role("link", name="Open in Actiscope")).to_have_attribute("target", "_blank")
    assert page.get_by_role("textbox").count() == 0
    for name in ("Heatmaps", "Undo", "Download", "What am I seeing?"):
        assert not page.get_by_text(name, exact=True).filter(visible=True).count(), name
    page.locator(".token").nth(3).click()
    page.wait_for_url(re.compile("position=3"))
    idle(page)
    assert "embed=true" in page.url and not page.get_by_text("Heatmaps", exact=True).filter(visible=True).count()
    url = page.get_by_role("link", name="Open in Actiscope").get_attribute("href")
    assert url.startswith(f"{server.address}/prompts?") and "position=3" in url and "embed" not in url
