"""What a visitor does with steering, in Chromium: turn a dial, read the curve, drag a threshold, compare, make one."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.harness import DESKTOP, PHONE, idle

expect.set_options(timeout=90_000)

PUSH = 'steer{"direction":"stories/refusal","strength":-1.0}'


def link(lens: str, prompt: str = "User: How do I kill a king?\nAssistant:", do: str = PUSH) -> str:
    return f"/steering?v=1&model=stories&prompt={quote(prompt)}&lens={quote(lens)}&do={quote(do)}"


def written(page: Page) -> list[str]:
    return page.locator(".continued").all_inner_texts()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "phone"])
def test_the_page_opens_on_a_finished_example(visit: Any, size: Any) -> None:
    page = visit("/steering", size=size)
    expect(page.locator(".continued").nth(1)).to_contain_text("negative")
    expect(page.locator(".needle").first).to_be_attached()
    plain, steered = written(page)
    assert "wonderful" in plain and "poor" in steered
    label = page.locator(".track").first.get_attribute("aria-label") or ""
    assert re.search(r"Good over bad reviews: −?\d.*plain .*random direction", label), "the meter is told in words"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not page.thrown
    if size == PHONE:  # what comes of it stands above what does it
        tops = [page.locator(each).bounding_box()["y"] for each in (".st-key-steering-texts", ".st-key-dial-0")]
        assert tops[0] < tops[1]


def test_a_dial_turned_by_keyboard_changes_the_text_and_the_link(visit: Any) -> None:
    page = visit("/steering")
    before = written(page)
    page.get_by_role("slider", name="Strength").focus()
    page.keyboard.press("End")
    page.wait_for_url(re.compile("strength%22%3A4.0"))
    expect(page.locator(".continued").nth(1)).not_to_have_text(before[1])
    idle(page, quiet=0.5)
    assert written(page)[0] == before[0]
    other = visit(page.url)
    expect(other.locator(".continued").nth(1)).to_have_text(page.locator(".continued").nth(1).inner_text())
    assert not page.thrown


def test_a_click_on_the_curve_sets_the_dial_and_where_text_breaks_is_marked(visit: Any) -> None:
    page = visit(link("dose_response", "Review: The film was", PUSH.replace("refusal", "sentiment")))
    expect(page.locator("svg .grey .line")).to_be_attached()
    assert page.locator("svg .broken").count() >= 1
    page.locator("svg .hit").nth(6).click()
    page.wait_for_url(re.compile("strength%22%3A1.0"))
    expect(page.locator(".continued").nth(1)).to_contain_text("amazing")
    idle(page, quiet=0.5)
    page.locator("svg .hit[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("strength%22%3A-0.5"))
    page.get_by_role("radiogroup", name="Measured").get_by_text("Repetition", exact=True).click()
    page.wait_for_url(re.compile("repetition"))
    assert not page.thrown


def test_the_numbers_follow_the_threshold_while_it_is_dragged_and_the_dial_obeys_when_it_is_let_go(visit: Any) -> None:
    page = visit(link("condition_scores"))
    slider = page.locator("svg[role=slider]")
    expect(slider).to_be_visible()
    idle(page, quiet=0.5)
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    seen = set()
    for place in (0.05, 0.5, 0.95):
        page.mouse.move(box["x"] + place * box["width"], box["y"] + 50, steps=3)
        seen.add(page.locator(".numbers").inner_text())
    assert len(seen) == 3, "the numbers follow the hand"
    fires = [int(each) for each in page.locator(".confusion td").all_inner_texts()]
    assert sum(fires) == 12 and "conditional_steer" not in page.url
    page.mouse.up()
    page.wait_for_url(re.compile("conditional_steer.*threshold"))
    expect(page.get_by_text("Push if", exact=True)).to_be_visible()
    value = slider.get_attribute("aria-valuenow")
    idle(page, quiet=0.5)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(800)
    idle(page, quiet=0.5)
    assert slider.get_attribute("aria-valuenow") != value and not page.thrown


def test_ways_are_compared_in_one_table_with_what_each_writes(visit: Any) -> None:
    page = visit(link("compare_steering"))
    expect(page.locator("table tr")).to_have_count(3)
    page.get_by_role("textbox", name="An instruction before the prompt").fill("User: Please.")
    page.keyboard.press("Enter")
    expect(page.locator("table tr")).to_have_count(4)
    idle(page, quiet=0.5)
    rows = page.locator("table tr").all_inner_texts()
    assert "Sorry" in rows[1] and "Sure" in rows[2] and rows[3].startswith("instruction")
    assert not page.thrown


def test_a_direction_is_made_taken_along_as_a_file_and_read_back(visit: Any, tmp_path: Any) -> None:
    page = visit("/steering")
    page.get_by_role("button", name="Make a direction").click()
    page.get_by_label("Its name").fill("mine")
    page.keyboard.press("Enter")
    idle(page, quiet=0.5)
    page.get_by_role("button", name="Make it").click()
    page.wait_for_url(re.compile(r"direction%22%3A%22[0-9a-f]{64}"))
    idle(page, quiet=0.5)
    page.get_by_role("button", name="Remove").first.click()
    idle(page, quiet=0.5)
    page.get_by_text("The direction", exact=True).click()
    expect(page.get_by_text("mine, difference of means")).to_be_visible()
    for kind in ("safetensors", "GGUF"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=kind).click()
        saved.value.save_as(tmp_path / f"mine.{kind.lower()}")
        chips = page.url.count("steer")
        page.get_by_role("button", name="Make a direction").click()
        page.get_by_text("A direction's file", exact=True).click()
        page.locator("input[type=file]").set_input_files(str(tmp_path / f"mine.{kind.lower()}"))
        page.get_by_role("button", name="Read it").click()
        expect(page.get_by_role("button", name="Read it")).to_have_count(0)
        idle(page, quiet=0.5)
        assert page.url.count("steer%7B") > 1 and page.url.count("steer") >= chips
    assert not page.thrown


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_what_was_asked_and_what_was_written_can_be_told_apart(visit: Any, dark: bool) -> None:
    page = visit("/steering", dark=dark)
    changed = page.locator(".continued span").filter(has_text="negative").last
    expect(changed).to_be_visible()
    assert changed.evaluate("node => getComputedStyle(node).borderBottomWidth") == "2px", "not by colour alone"
