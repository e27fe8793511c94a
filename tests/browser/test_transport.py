"""What a visitor does with transport, in Chromium: choose a pair, a feature, a token; change; fit; share."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.harness import DESKTOP, PHONE, idle

expect.set_options(timeout=60_000)

PROMPT = "The capital of France is"


def link(lens: str = "transported_features", model: str = "stories", more: str = "") -> str:
    return f"/transport?v=1&model={model}&prompt={quote(PROMPT)}&lens={quote(lens)}{more}"


def cell(page: Page, row: int, column: int) -> Any:
    return page.locator(f'.cell[data-at="{row},{column}"]').first


def listed(page: Page) -> list[str]:
    return page.locator(".lists .open").evaluate_all("rows => rows.map(row => row.dataset.feature)")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "phone"])
def test_the_page_opens_on_a_finished_example(visit: Any, size: Any) -> None:
    page = visit("/transport", size=size)
    expect(page.get_by_text("Life of feature #")).to_be_visible()
    expect(page.locator(".grid .cell b")).to_have_count(10)
    assert page.locator(".stage .lane.carried").count() >= 3 and page.locator(".stage .spark").count() >= 3
    expect(page.locator(".curve svg")).to_be_visible()
    label = page.get_by_role("grid").first.get_attribute("aria-label") or ""
    assert re.search(r"highest from .* to .*, 0\.\d\d; lowest from", label), "the picture is told in words"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not page.thrown


def test_a_cell_chooses_the_pair_by_mouse_and_by_keyboard(visit: Any) -> None:
    page = visit("/transport")
    cell(page, 0, 3).click()
    expect(page.get_by_text("From the embedding to layer 3")).to_be_visible()
    page.wait_for_url(re.compile("resid_post.3"))
    idle(page, quiet=0.5)
    cell(page, 0, 3).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_text("From layer 0 to layer 3")).to_be_visible()
    idle(page, quiet=0.5)
    first = listed(page)
    other = visit(page.url)
    expect(cell(other, 1, 3)).to_have_class(re.compile("selected"))
    assert listed(other) == first and not page.thrown


def test_the_staircase_is_coloured_by_what_one_asks_for(visit: Any) -> None:
    page = visit("/transport")
    cell(page, 1, 1).click()
    expect(page.get_by_text("From layer 0 to layer 1")).to_be_visible()
    idle(page, quiet=0.5)
    page.get_by_text("Size", exact=True).click()
    page.wait_for_url(re.compile("colour=size"))
    expect(cell(page, 1, 1).locator("b")).to_have_text(re.compile(r"^\d{1,3}$"))
    other = visit(page.url)
    expect(cell(other, 1, 1).locator("b")).to_have_text(cell(page, 1, 1).locator("b").inner_text())


def test_a_feature_shows_its_life_and_a_token_what_fires_there(visit: Any) -> None:
    page = visit("/transport")
    chosen = page.locator(".lists .row:not(.selected) .open").first
    number = chosen.get_attribute("data-feature")
    chosen.click()
    page.wait_for_url(re.compile(f"feature={number}(&|$)"))
    expect(page.get_by_text(f"Life of feature #{number}")).to_be_visible()
    page.locator("button.token").nth(4).click()
    page.wait_for_url(re.compile("position=4"))
    expect(page.get_by_text("(token 4)")).to_be_visible()
    idle(page, quiet=0.5)
    page.locator("button.token").nth(4).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("position=5"))
    idle(page, quiet=0.5)
    other = visit(page.url)
    expect(other.get_by_text(f"Life of feature #{number}")).to_be_visible()
    expect(other.get_by_text("(token 5)")).to_be_visible()
    assert listed(other) == listed(page) and not page.thrown


def test_a_lane_and_its_row_light_up_together_and_a_click_on_it_opens_the_feature(visit: Any) -> None:
    page = visit("/transport")
    row = page.locator(".lists .row:not(.selected) .open").first
    number = row.get_attribute("data-feature")
    row.hover()
    expect(page.locator(f'.stage .lane[data-feature="{number}"]').first).to_have_class(re.compile("lit"))
    page.locator(f'.stage .lane[data-feature="{number}"] .hit').first.dispatch_event("click")
    page.wait_for_url(re.compile(f"feature={number}(&|$)"))


def test_replacing_by_the_transport_is_a_change_on_the_bar_with_before_and_after(visit: Any) -> None:
    page = visit("/transport")
    cell(page, 0, 2).click()
    expect(page.get_by_text("From the embedding to layer 2")).to_be_visible()
    idle(page, quiet=0.5)
    page.locator(".st-key-replace button").first.click()
    page.wait_for_url(re.compile("do=transport_replace"))
    expect(page.locator(".panel")).to_have_text(["Before", "After"])
    expect(page.get_by_text("thick: after your changes, thin: before")).to_be_visible()
    assert page.locator(".guess.first .name").inner_text().strip("␣") != "Paris"
    other = visit(page.url)
    expect(other.locator(".panel")).to_have_count(2)
    assert other.locator(".guess .name").all_inner_texts() == page.locator(".guess .name").all_inner_texts()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".panel")).to_have_count(0)
    expect(page.locator(".guess.first .name")).to_contain_text("Paris")
    idle(page, quiet=0.5)
    page.locator(".st-key-steer button").first.click()
    page.wait_for_url(re.compile("do=steer_upstream"))
    expect(page.locator(".panel")).to_have_count(2)
    assert not page.thrown


def test_operators_are_fitted_from_ones_own_texts_stopped_and_used(visit: Any) -> None:
    page = visit(link("transport_efficiency", "induction"))
    expect(page.get_by_text("There are no transport operators")).to_be_visible()
    page.get_by_text("From a file", exact=True).click()
    upload = page.locator('.st-key-own input[type="file"]')
    for name, data, sentence in (
        ("texts.txt", b"\xff\xfe\x00", "no text in UTF-8"),
        ("texts.jsonl", b'{"text": "one"}\n{"text": 2}\n', "Line 2 of this file is no text"),
        ("texts.jsonl", b'{"text": "one"\n', "Line 1 of this file is no JSON"),
    ):
        upload.set_input_files({"name": name, "mimeType": "text/plain", "buffer": data})
        expect(page.get_by_text(sentence)).to_be_visible()
    lines = "\n".join(f'{{"text": "The cat {n} sat. The cat {n} ran, and so did the cow."}}' for n in range(9000))
    upload.set_input_files({"name": "many.jsonl", "mimeType": "text/plain", "buffer": lines.encode()})
    button = page.get_by_role("button", name="Fit them")
    expect(page.get_by_text("forwards")).to_be_visible()  # the cost is known before
    button.click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(button).to_be_visible()
    page.get_by_text("Pasted", exact=True).click()
    page.get_by_label("Texts, one on each line").fill("\n".join(["The cat sat.", "The cow ran."] * 20))
    page.keyboard.press("Control+Enter")
    expect(page.get_by_text("These texts are too few for induction")).to_be_visible()
    idle(page, quiet=0.5)
    button.click()
    expect(page.locator(".cell").first).to_be_visible(timeout=90_000)
    expect(page.get_by_text("an efficiency takes")).to_be_visible()
    idle(page, quiet=0.5)
    page.get_by_text("Efficiency", exact=True).click()
    expect(page.locator(".cell.none")).to_have_count(3)
    assert "an efficiency takes" in (page.locator(".cell.none").first.get_attribute("title") or "")
    page.wait_for_url(re.compile("operators"))
    expect(page.get_by_text("There is no SAE for")).to_be_visible()
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    assert not page.thrown


def test_a_link_to_operators_that_are_not_here_says_what_to_do(visit: Any) -> None:
    page = visit(link('transport_efficiency{"operators":"' + "0" * 64 + '"}'))
    expect(page.get_by_text("operators that are not kept here")).to_be_visible()
    expect(page.get_by_role("button", name="Fit them")).to_be_visible()
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
