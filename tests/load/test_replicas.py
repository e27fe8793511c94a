"""A link made on one replica opens on another, and after a restart, as the same experiment with its numbers."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from playwright.sync_api import Page, expect

from tests import s3
from tests.browser.harness import Server, idle, launch

CIRCUIT = "/circuits"
SAME = "Reproduced: the same numbers as when the link was made"


@pytest.mark.load
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_links_between_replicas(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        where = str(tmp_path / "shared") if kind == "folder" else stack.enter_context(s3.serving()).url
        shared = {
            "ACTISCOPE_SHARED": where, "HOSTED": "1", "ACTISCOPE_ADDRESS_RATE": "0",
            "AWS_ACCESS_KEY_ID": s3.KEY_ID, "AWS_SECRET_ACCESS_KEY": s3.SECRET,
        }  # fmt: skip
        browser = stack.enter_context(launch())

        def visit(server: Server, path: str) -> Page:
            page = browser.new_context().new_page()
            page.goto(server.address + path)
            idle(page, timeout=180)
            return page

        first = stack.enter_context(Server(env=shared))
        second = stack.enter_context(Server(env=shared))
        links = [_photo(visit(first, "/heatmaps"), tmp_path), _short(visit(first, CIRCUIT))]
        first.__exit__(None, None, None)  # with its store, which was its own
        with Server(env=shared) as third:
            for server in (second, third):
                for link, sights in links:
                    page = visit(server, "/s/" + link)
                    expect(page.get_by_text(SAME)).to_be_visible(timeout=120_000)
                    assert _sights(page) == sights


def _photo(page: Page, folder: Path) -> tuple[str, Any]:
    """Upload a photo, hide a part of it, and make a short link."""
    picture = PIL.Image.effect_mandelbrot((320, 240), (-2.0, -1.2, 0.7, 1.2), 60).convert("RGB")
    picture.save(folder / "mine.png")
    page.locator("input[type=file]").first.set_input_files(folder / "mine.png")
    expect(page.get_by_role("button", name=re.compile("mine.png"))).to_be_visible(timeout=60_000)
    idle(page)
    page.get_by_role("button", name=re.compile("Change")).click()
    page.get_by_role("button", name="Hide region").click()
    page.keyboard.press("Escape")
    idle(page, timeout=120)
    return _short(page, photo=True)


def _short(page: Page, photo: bool = False) -> tuple[str, Any]:
    """The id of a short link to what a page shows, and that."""
    sights = _sights(page)
    page.get_by_role("button", name=re.compile("Link")).click()
    if photo:
        page.get_by_text("Keep this photo on this server").click()
    page.get_by_role("button", name="Make a short link").click()
    address = page.get_by_text(re.compile(r"/s/[a-z2-7]{20}")).first
    expect(address).to_be_visible(timeout=60_000)
    found = re.search(r"/s/([a-z2-7]{20})", address.inner_text())
    assert found
    return found[1], sights


def _sights(page: Page) -> list[str]:
    """What maps and graphs say of themselves."""
    return [str(each.get_attribute("aria-label")) for each in page.locator(".map, .graph svg, svg.graph").all()]
