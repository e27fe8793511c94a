"""What a visitor does with a prompt, in Chromium: click tokens and cells, change a head, two prompts, no markup."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.harness import DESKTOP, PHONE, idle

expect.set_options(timeout=60_000)

MARKUP = "<script>document.title='broken'</script> <img src=x onerror=\"document.title='broken'\"> **bold** [x](y) $a$"
FOCUSED = """() => { let e = document.activeElement;
  while (e?.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;
  return e?.getAttribute("aria-label") ?? "" }"""


def link(prompt: str, lens: str = "logit_lens", model: str = "stories", more: str = "") -> str:
    return f"/prompts?v=1&model={model}&prompt={quote(prompt)}&lens={quote(lens)}{more}"


def tokens(page: Page) -> list[str]:
    return page.locator(".token").all_inner_texts()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "phone"])
def test_a_click_on_a_token_or_cell_makes_everything_answer_for_it(visit: Any, size: Any) -> None:
    page = visit("/prompts", size=size)
    assert tokens(page)[1:4] == ["When", "␣Mary", "␣and"]
    expect(page.locator(".guess").first).to_contain_text("Mary")
    page.locator(".token").nth(4).click()
    idle(page)
    expect(page.locator("h5").first).to_contain_text("John")
    expect(page.locator(".token.selected")).to_have_text("␣John")
    assert "position=4" in page.url
    page.locator('.cell[data-at="1,2"]').first.click()  # the second row from the top is the layer before the last
    idle(page)
    assert "position=2" in page.url and "layer=3" in page.url
    expect(page.locator(".cell.selected")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_strip_and_matrix_by_keyboard_alone(visit: Any) -> None:
    page = visit("/prompts")
    page.locator(".token.selected").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert "gave" in page.evaluate(FOCUSED)
    page.keyboard.press("Enter")
    idle(page)
    expect(page.locator(".token.selected")).to_have_text("␣gave")
    assert "gave" in page.evaluate(FOCUSED), "the focus stays where it was"
    page.locator(".cell.selected").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    idle(page)
    assert "position=10" in page.url and "layer=3" in page.url


def test_a_click_on_a_guess_makes_it_the_target_and_shift_the_foil(visit: Any) -> None:
    page = visit(link("When Mary and John went to the store, John gave a drink to", "direct_logit_attribution"))
    page.locator(".guess").nth(1).click()
    idle(page)
    expect(page.locator(".guess").nth(1)).to_have_class(re.compile("first"))
    page.locator(".guess").nth(0).click(modifiers=["Shift"])
    idle(page)
    expect(page.locator(".guess").nth(0)).to_have_class(re.compile("second"))
    run = page.get_by_role("button", name="Run it")  # a machine that is busy asks before what takes a second
    expect(page.locator(".legend").or_(run).first).to_be_visible()
    if run.count():
        run.click()
    expect(page.locator(".legend").first).to_contain_text("over")


def test_an_ablated_head_shows_before_after_and_difference(visit: Any) -> None:
    page = visit(link("The cat sat. The c", model="induction"))
    expect(page.locator(".guess").first).to_contain_text("a")
    page.get_by_role("button", name=re.compile("Change")).click()
    page.get_by_role("button", name="Ablate heads").click()
    idle(page)
    expect(page.get_by_role("button", name=re.compile("L1H2"))).to_be_visible()
    expect(page.locator(".title")).to_have_text(["Before", "After", "After minus before"])
    expect(page.locator(".guess .before").first).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_text("Difference only").click()
    idle(page)
    expect(page.locator(".title")).to_have_text(["After minus before"])


def test_the_twin_of_a_ready_made_prompt_stands_beside_it(visit: Any) -> None:
    page = visit("/prompts")
    page.get_by_role("button", name=re.compile("Ready-made")).click()
    page.get_by_role("button", name=re.compile("The capital|In .*, the capital|capital of")).first.click()
    idle(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("Its twin")).click()
    idle(page)
    expect(page.locator(".strip")).to_have_count(2)
    one, two = (page.locator(".strip").nth(each).inner_text() for each in (0, 1))
    assert one != two
    other = visit(page.url.split("/", 3)[3].join(["/", ""]))
    expect(other.locator(".strip")).to_have_count(2)


@pytest.mark.parametrize("lens", ["logit_lens", "attention_pattern", "token_attribution", "next_tokens"])
def test_nothing_typed_is_ever_markup(visit: Any, lens: str) -> None:
    page = visit(link(MARKUP, lens))
    assert "".join(tokens(page)).replace("␣", " ").endswith(MARKUP)
    assert page.title() != "broken"
    assert page.locator(".stApp img[src='x']").count() == 0
    assert page.locator("strong", has_text=re.compile("^bold$")).count() == 0


def test_any_script_and_what_cannot_be_seen(visit: Any) -> None:
    page = visit(link("שלום 🦊\n\tx\u202ey"))
    text = "".join(tokens(page)).replace("∅", "")  # where a character takes several tokens, all but the last are empty
    assert "🦊" in text and "↵" in text and "⇥" in text and "⟨202E⟩" in text and "שלום" in text


def test_a_typed_prompt_replaces_the_example_and_an_empty_one_gets_a_sentence(visit: Any) -> None:
    page = visit("/prompts")
    box = page.get_by_label("Prompt", exact=True)
    box.fill("The opposite of hot is")
    box.press("Control+Enter")
    idle(page)
    assert tokens(page)[-1] == "␣is"
    expect(page.locator(".guess").first).to_contain_text("cold")
    box.fill("   ")
    box.press("Control+Enter")
    idle(page)
    expect(page.get_by_text("The prompt is empty; type a few words.")).to_be_visible()
    assert tokens(page)[-1] == "␣is"
