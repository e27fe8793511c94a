"""What a visitor does on the Pixels page, in Chromium."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.harness import idle
from tests.browser.test_journeys import code_of

expect.set_options(timeout=60_000)


def strip(page: Page) -> str:
    """The evidence strip."""
    return page.get_by_test_id("stCaptionContainer").filter(has_text="residual").first.inner_text()


def residual(page: Page) -> float:
    found = re.search(r"residual ([0-9.e+-]+)", strip(page))
    assert found
    return float(found[1])


def test_another_reference_gives_another_map_that_adds_up_too(visit: Any) -> None:
    page = visit("/pixels")
    overlay = page.locator(".map .over").first
    before = overlay.get_attribute("src")
    assert residual(page) < 1e-4
    page.get_by_role("button", name=re.compile("^The reference: black|black")).first.click()
    idle(page)
    expect(overlay).not_to_have_attribute("src", before)
    assert residual(page) < 1e-4
    assert "black" in page.url and page.thrown == []


def test_captums_answer_stands_beside_ours_with_the_reason(visit: Any) -> None:
    page = visit("/pixels")
    page.get_by_text("Does it add up?").click()
    idle(page)
    expect(page.get_by_text(re.compile(r"In Captum · ")).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"Captum has no rule here for")).first).to_be_visible()
    assert page.get_by_test_id("stException").count() == 0


def test_a_link_to_pixels_opens_the_same_map_elsewhere(visit: Any) -> None:
    page = visit("/pixels")
    page.get_by_role("button", name=re.compile("white")).first.click()
    idle(page)
    first = strip(page)
    link = code_of(page)
    assert "/pixels?" in link and "white" in link
    other = visit(link[link.index("/pixels") :])
    assert residual(other) == float(re.search(r"residual ([0-9.e+-]+)", first)[1])  # type: ignore[index]
    expect(other.get_by_text("Reproduced: the same numbers").first).to_be_visible()


def test_the_papers_experiments_run(visit: Any) -> None:
    page = visit("/pixels")
    for name, text in (
        ("One digit into another", "How far the log-odds move"),
        ("Motifs in DNA", "area under the ROC"),
    ):
        page.get_by_text(name, exact=True).click()
        expect(page.get_by_text(re.compile(text)).first).to_be_visible(timeout=60_000)
        idle(page)
        assert page.get_by_test_id("stException").count() == 0


def test_views_and_another_page_keep_the_experiment(visit: Any) -> None:
    page = visit("/pixels")
    unit = page.locator("div.legend").first
    expect(unit).to_contain_text("logit per pixel")
    page.get_by_text("How maps are drawn").click()
    page.get_by_text("patches", exact=True).click()
    expect(unit).to_contain_text("logit per patch")
    idle(page)
    page.get_by_role("link", name="Heatmaps").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("What does the model look at?")
    idle(page)
    assert "grad_cam" in page.url and page.thrown == []
