"""What a visitor does with a circuit, in Chromium: weigh, choose, change, compare, group, share; bad pairs; speed."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.harness import DESKTOP, PHONE, Server, idle

expect.set_options(timeout=60_000)

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def link(clean: str, corrupted: str, lens: str = "edge_attribution_patching", model: str = "stories", answer: str = "",
         foil: str = "", more: str = "") -> str:  # fmt: skip
    pair = quote(json.dumps([clean, corrupted, answer, foil]))
    return f"/circuits?v=1&model={model}&pair={pair}&lens={quote(lens)}{more}"


def ids(page: Page) -> list[str]:
    return page.locator(".node").evaluate_all("nodes => nodes.map(node => node.dataset.id)")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["wide", "phone"])
def test_the_page_opens_on_a_finished_circuit_and_a_click_asks_for_a_part(visit: Any, size: Any) -> None:
    page = visit("/circuits", size=size)
    expect(page.locator('.node[data-id="z.1.1@14"]')).to_have_class(re.compile("selected"))
    expect(page.get_by_text("Promotes:")).to_be_visible()
    assert "z.1.1@14" in ids(page) and page.locator(".token.other").count() >= 1
    page.locator('.node[data-id="mlp_out.0@10"]').click()
    expect(page.get_by_text("MLP 0 · MLP of layer 0 at")).to_be_visible()
    idle(page)
    assert "node=mlp_out.0" in page.url
    expect(page.get_by_text("Neurons (AtP")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth") and not page.thrown


def test_a_part_is_patched_and_metric_tokens_and_graph_follow(visit: Any) -> None:
    page = visit("/circuits")
    page.get_by_role("button", name="Patch from the other prompt").click()
    expect(page.get_by_text(re.compile("^after .*clean prompt"))).to_be_visible()
    expect(page.get_by_text("Next:")).to_contain_text("John")
    idle(page)
    before = ids(page)
    page.get_by_text("Difference", exact=True).click()
    page.wait_for_url(re.compile("side=difference"))
    idle(page, quiet=0.6)
    assert ids(page) != before
    other = visit(page.url)
    assert ids(other) == ids(page), "the link holds all of it"


@pytest.mark.slow
def test_every_weighting_answers(visit: Any) -> None:
    page = visit("/circuits")
    for name in ("Flow", "AtP", "AtP*", "EAP-IG", "Exact patching", "Head detectors", "Neuron detectors"):
        choice = page.get_by_role("button", name=name, exact=True).or_(page.get_by_role("radio", name=name, exact=True))
        choice.first.click()
        idle(page, quiet=0.6)
        if (run := page.get_by_role("button", name="Run it")).count():
            expect(page.get_by_text("forwards")).to_be_visible()  # the cost is known before
            run.click()
        shown = '[data-testid="stDataFrame"]' if "detectors" in name else ".node >> nth=2"
        expect(page.locator(shown)).to_be_visible()
        idle(page)
        expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    assert not page.thrown


def test_pins_groups_and_the_weighting_beside_are_in_the_link(visit: Any) -> None:
    more = "&node=z.1.1%4014&pin=z.1.1%4014,mlp_out.0%4010&group=copier:z.1.1%4014,mlp_out.1%4014&beside=atp_star"
    page = visit(link(CLEAN, CORRUPTED, "attribution_patching", answer=" Mary", foil=" John", more=more))
    assert page.locator(".node.pinned").count() == 2
    expect(page.locator('.hull[data-group="copier"]')).to_have_count(1)
    expect(page.get_by_text("rank correlation")).to_be_visible()
    page.locator('.close[data-ungroup="copier"]').click()
    expect(page.locator(".hull")).to_have_count(0)
    idle(page)
    assert "group=" not in page.url and "pin=" in page.url


def test_the_graph_by_keyboard_and_its_json(visit: Any) -> None:
    page = visit("/circuits")
    node = page.locator('.node[data-id="z.1.1@14"]')
    node.focus()
    page.keyboard.press("p")
    expect(page.locator(".node.pinned")).to_have_count(1)
    with page.expect_download() as found:
        page.get_by_role("button", name="JSON of what is shown").click()
    shown = json.loads(found.value.path().read_text())
    assert sorted(shown["nodes"]) == sorted(ids(page)) and shown["direction"] == "noising"
    assert len(shown["edges"]) == int(page.locator(".root[data-edges]").first.get_attribute("data-edges") or 0)


@pytest.mark.parametrize(
    ("clean", "corrupted", "answer", "foil", "sentence"),
    [
        (CLEAN, CLEAN + " the", " Mary", " John", "equally many"),
        (CLEAN, CLEAN, " Mary", " John", "nothing to patch"),
        (CLEAN, CORRUPTED, " Mary and John", " John", "no single token"),
        (CLEAN, CORRUPTED, " Mary", " Mary", "same token"),
    ],
)
def test_a_bad_pair_gets_one_sentence(
    visit: Any, clean: str, corrupted: str, answer: str, foil: str, sentence: str
) -> None:
    page = visit(link(clean, corrupted, answer=answer, foil=foil))
    expect(page.get_by_text(sentence).first).to_be_visible()
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)


def test_markup_in_a_pair_stays_text(visit: Any) -> None:
    nasty = "<img src=x onerror=\"document.title='broken'\"> **b** [x](y)"
    page = visit(link(nasty + " cat", nasty + " dog", answer=" is", foil=" was"))
    assert page.title() != "broken" and not page.thrown


def test_a_large_graph_is_drawn_and_answers_at_once(browser: Any) -> None:
    """300 nodes and 1,000 edges: 2 s and 400 ms are aimed at, five times as much is allowed."""
    from pathlib import Path

    with Server(Path(__file__).with_name("graph_app.py")) as server:
        page = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
        page.goto(server.address)
        page.wait_for_selector('.root[data-nodes="300"]')
        idle(page)
        drawn = float(page.locator(".root[data-drawn]").get_attribute("data-drawn"))
        assert page.locator(".root").get_attribute("data-edges") == "1000"
        page.locator('[data-tool="in"]').click()
        zoom = page.locator(".world").get_attribute("transform")
        taken = []
        for name in ids(page)[150:153]:
            start = time.perf_counter()
            page.locator(f'.node[data-id="{name}"]').dispatch_event("click")
            page.get_by_text(f"answered: {name}").wait_for()
            taken.append(time.perf_counter() - start)
        took = min(taken)
        print(f"\ndrawn in {drawn:.0f} ms, a click answered in {1000 * took:.0f} ms")
        assert drawn < 10_000 and took < 2.0
        assert page.locator(".world").get_attribute("transform") == zoom, "zoom is kept"
        expect(page.locator(".node.selected")).to_have_count(1)
        page.close()
