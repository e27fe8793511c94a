"""What a visitor does with features, in Chromium: search, look, turn the dial, label, bring an SAE, index it, share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from interp import sae, zoo
from tests.browser.harness import DESKTOP, PHONE, idle
from tests.tiny import random_sae

expect.set_options(timeout=60_000)

PROMPT = "The capital of France is"


def link(lens: str, prompt: str = PROMPT, more: str = "") -> str:
    return f"/features?v=1&model=stories&prompt={quote(prompt)}&lens={quote(lens)}{more}"


def labels(page: Page) -> list[str]:
    return page.locator(".list .open").evaluate_all("rows => rows.map(row => row.dataset.feature)")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "phone"])
def test_the_page_opens_on_a_finished_example(visit: Any, size: Any) -> None:
    page = visit("/features", size=size)
    expect(page.get_by_text("Where it fires most")).to_be_visible()
    expect(page.get_by_text("Turn its dial to 0")).to_be_visible()
    expect(page.locator(".root[data-points='1024']")).to_have_count(1)
    assert page.locator(".bars li").count() == 16 and page.locator(".contexts li").count() >= 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not page.thrown


def test_a_word_finds_features_and_a_click_opens_one(visit: Any) -> None:
    page = visit("/features")
    page.get_by_role("textbox", name="Search the features").fill("review")
    page.keyboard.press("Enter")
    expect(page.locator(".list .open").first).to_be_visible()
    found = labels(page)
    assert len(found) >= 5
    page.locator(".list .open").nth(1).click()
    page.wait_for_url(re.compile(f"feature={found[1]}"))
    expect(page.locator(".row.selected .open")).to_have_attribute("data-feature", found[1])
    assert labels(page) == found, "the list stays"
    other = visit(page.url)
    assert labels(other) == found
    expect(other.locator(".row.selected .open")).to_have_attribute("data-feature", found[1])
    page.locator(".like").first.click()
    page.wait_for_url(re.compile("feature_neighbours"))
    page.get_by_role("button", name="Back to the map").click()
    expect(page.locator("canvas")).to_be_visible()
    assert not page.thrown


def test_a_token_lists_what_fires_there(visit: Any) -> None:
    page = visit("/features")
    page.locator(".strip .token").nth(4).click()
    page.wait_for_url(re.compile("position=4"))
    expect(page.get_by_text("token 4")).to_be_visible()
    first = labels(page)
    page.get_by_role("radio", name="Attribution").or_(page.get_by_role("button", name="Attribution")).first.click()
    page.wait_for_url(re.compile("attribution"))
    idle(page, quiet=0.5)
    assert labels(page) and labels(page) != first and not page.thrown
    page.locator(".strip .token").nth(4).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("position=5"))


def test_the_map_by_keyboard(visit: Any) -> None:
    page = visit("/features")
    canvas = page.locator("canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip .name")).to_contain_text("#")
    number = re.match(r"#(\d+)", page.locator(".tip .name").inner_text())
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"feature%22%3A{number[1]}%7D" if number else "none"))
    page.get_by_text("Table", exact=True).click()
    expect(page.locator('[data-testid="stDataFrame"]')).to_be_visible()
    assert not page.thrown


def test_the_dial_changes_what_comes_next_and_is_on_the_bar(visit: Any) -> None:
    page = visit("/features")
    expect(page.locator(".guess.first .name")).to_contain_text("Paris")
    dial = page.get_by_role("slider", name=re.compile("0 ablates"))
    dial.focus()
    page.keyboard.press("Home")
    page.wait_for_url(re.compile("ablate_feature"))
    expect(page.locator(".guess.first .name")).to_contain_text("French")
    expect(page.locator(".st-key-bar").get_by_role("button", name="Ablate features: #")).to_be_visible()
    page.get_by_role("button", name="Continue the text").click()
    expect(page.get_by_text("Before", exact=True)).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".guess.first .name")).to_contain_text("Paris")
    assert not page.thrown


def test_a_text_is_coloured_as_one_types_and_markup_stays_text(visit: Any) -> None:
    page = visit("/features")
    box = page.get_by_label("Try it on a text")
    box.press_sequentially("The capital of Peru is <img src=x onerror=\"document.title='broken'\">", delay=5)
    expect(page.locator(".out")).to_contain_text("onerror")
    expect(page.locator(".out .token[style*='background']").first).to_be_visible()
    assert page.title() != "broken" and not page.thrown


def test_a_label_is_in_the_link_and_on_the_list(visit: Any) -> None:
    page = visit("/features")
    page.get_by_role("textbox", name="Your label").fill("<b>capitals</b>")
    page.keyboard.press("Tab")
    page.wait_for_url(re.compile("labels="))
    idle(page)
    other = visit(page.url)
    expect(other.get_by_role("textbox", name="Your label")).to_have_value("<b>capitals</b>")
    other.get_by_text("Fires on the prompt", exact=True).click()
    expect(other.locator(".label.own").first).to_have_text("<b>capitals</b>")


def written(folder: Path, width: int = 64, model: str = "stories", **more: Any) -> list[str]:
    folder.mkdir()
    metadata = {"hook_name": "blocks.1.hook_resid_post", "model_name": model, **more}
    random_sae(folder, "topk", width, 48, k=6, metadata=metadata)
    return [str(folder / name) for name in (sae.CONFIG, sae.WEIGHTS)]


def test_ones_own_sae_is_refused_in_a_sentence_added_and_indexed(visit: Any, tmp_path: Path) -> None:
    width = sae.load("stories/resid_post.2").d_in
    page = visit("/features")
    page.get_by_role("button", name="Your own").click()
    files = page.locator('.st-key-own input[type="file"]').first

    def add(paths: list[str]) -> None:
        files.set_input_files(paths)
        idle(page, quiet=0.4)
        page.get_by_role("button", name="Add it").click()

    for paths, sentence in (
        (written(tmp_path / "narrow", width - 1), re.compile(f"reads {width - 1} numbers")),
        (written(tmp_path / "other", width, "gpt2"), "made for gpt2"),
    ):
        add(paths)
        expect(page.get_by_text(sentence).first).to_be_visible()
    page.get_by_text("It was made for stories").click()
    idle(page, quiet=0.4)
    add(written(tmp_path / "third", width, "my-model"))
    page.wait_for_url(re.compile("local%3A"))
    expect(page.get_by_text("has no index yet")).to_be_visible()
    page.get_by_text("From a file", exact=True).click()
    lines = "\n".join(f"The key to box {each} is old, and so is the car near the house." for each in range(20_000))
    page.locator('input[type="file"]').last.set_input_files(
        {"name": "texts.txt", "mimeType": "text/plain", "buffer": lines.encode()}
    )
    build = page.get_by_role("button", name="Build the index")
    build.click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(build).to_be_visible()
    page.get_by_text("Pasted", exact=True).click()
    page.get_by_label("Texts, one on each line").fill("The key is old.\nThe box is old.\nThe car is old.")
    page.keyboard.press("Control+Enter")
    idle(page, quiet=0.5)
    build.click()
    expect(page.get_by_text("Where it fires most").or_(page.get_by_text("never fired on"))).to_be_visible()
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)


def test_a_photo_is_asked_patch_by_patch(visit: Any) -> None:
    if not sae.available(zoo.load("photos")):
        pytest.skip("there is no SAE of photos")
    page = visit("/features?v=1&model=photos&image=chelsea&lens=feature_lookup")
    expect(page.locator(".map .cells button")).to_have_count(49)
    page.locator(".map .cells button").nth(24).click()
    page.wait_for_url(re.compile("position=24"))
    expect(page.locator(".list .thumb img").first).to_be_visible()
    expect(page.locator(".pictures img").first).to_be_visible()
    assert not page.thrown


def test_a_prompt_too_long_gets_one_sentence_and_loses_nothing(visit: Any) -> None:
    page = visit(link("feature_lookup"))
    page.get_by_role("textbox", name="The prompt that they fire on").fill("word " * 1500)
    page.keyboard.press("Enter")
    expect(page.locator('[data-testid="stAlert"]').first).to_contain_text("tokens")
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
