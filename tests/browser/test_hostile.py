"""Hostile texts on the pages, in Chromium: nothing runs, nothing is loaded from elsewhere, no text becomes markup."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Page, expect

from pages.ui import labels
from tests import tiny
from tests.browser.harness import PHONE, Server, idle
from tests.hostile.images import saved, small
from tests.hostile.texts import MARKUP, PROMPTS

expect.set_options(timeout=30_000)

WATCH = """() => { window.broken = []; window.addEventListener('securitypolicyviolation',
  event => broken.push(`${event.violatedDirective} ${event.blockedURI}`)); }"""
# every element, in shadow roots too, that came of a payload: handlers, frames, addresses
GROWN = """() => { const found = [];
  const walk = root => { for (const element of root.querySelectorAll('*')) {
    for (const { name, value } of element.attributes)
      if (/^on/.test(name) || name === 'srcdoc' || (/^(src|href|action|srcset|style)$/.test(name)
          && /outside\\.invalid|javascript:|fired/.test(value)))
        found.push(`<${element.localName} ${name}="${value.slice(0, 80)}">`);
    if (/^(script|style)$/.test(element.localName) && /fired|outside\\.invalid/.test(element.textContent))
      found.push(`<${element.localName}>`);
    if (element.shadowRoot) walk(element.shadowRoot);
  } };
  walk(document); return found; }"""
WHOLE = "\n".join(MARKUP.values())
ODD = "\n".join(PROMPTS[name] for name in (
    "bidi overrides", "zero width", "zalgo", "families", "control characters", "special tokens", "right to left",
    "escape sequences",
))[:2400]  # fmt: skip


class Watched:
    """A visitor's page, and what it asked for elsewhere."""

    def __init__(self, visit: Any, server: Server, **options: Any) -> None:
        self.server = server
        self.page: Page = visit("/healthz", wait=False, **options)
        self.page.add_init_script(f"({WATCH})()")
        self.asked: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: (self.asked.append("dialog " + dialog.message), dialog.dismiss()))

    def go(self, path: str) -> Page:
        self.page.goto(self.server.address + path)
        idle(self.page, timeout=120)
        self.check(path[:80])
        return self.page

    def history(self) -> None:
        """The history of this very visit."""
        self.page.get_by_role("link", name="History").first.click()
        self.page.wait_for_url(re.compile("history"))
        idle(self.page, timeout=120)
        self.check("history")

    def check(self, where: str) -> None:
        """Nothing ran, nothing was asked for elsewhere, nothing grew, nothing sticks out."""
        page, own = self.page, urlsplit(self.server.address).netloc
        assert page.evaluate("window.fired") is None, where
        assert page.evaluate(GROWN) == [], where
        assert page.evaluate("window.broken") == [], where
        elsewhere = [url for url in self.asked if urlsplit(url).netloc not in ("", own)]
        assert elsewhere == [], where
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth - innerWidth") <= 1, where
        expect(page.get_by_test_id("stException")).to_have_count(0)
        assert page.thrown == [], where  # type: ignore[attr-defined]


def link(page: str, **parts: str) -> str:
    whole = {"v": "1", "model": "stories", **parts}
    return f"/{page}?" + "&".join(f"{key}={quote(value)}" for key, value in whole.items())


def packed(label: str) -> str:
    """The labels of a link, with a payload as label and note of a feature."""
    text = json.dumps({"stories/resid_post.2": {"705": [label[:60], label[:600]]}})
    data = base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
    assert labels.unpack(data)
    return data


def test_the_watch_sees_what_it_has_to(visit: Any, server: Server) -> None:
    """The payloads are alive: put into a page as markup, they are seen to run, or to be stopped by its policy."""
    watched = Watched(visit, server)
    watched.go("/methods")
    alive = "\n".join(text for name, text in MARKUP.items() if "refresh" not in name and "base" not in name)
    watched.page.evaluate("text => { document.body.insertAdjacentHTML('beforeend', text) }", alive)
    watched.page.wait_for_timeout(300)
    assert watched.page.evaluate(GROWN)
    assert watched.page.evaluate("window.fired === 1 || broken.length > 0")
    assert any("outside.invalid" in each for each in watched.asked) or watched.page.evaluate("broken.length > 0")


def test_hostile_texts_on_the_pages(visit: Any, server: Server) -> None:
    watched = Watched(visit, server)
    pair = json.dumps(
        [WHOLE[:900], WHOLE[:900].replace("red", "tan", 1), MARKUP["script"], MARKUP["image of elsewhere"]]
    )
    watched.go(link("prompts", prompt=WHOLE[:2000], lens="logit_lens", second=ODD))
    watched.go(link("circuits", pair=pair, lens="attribution_patching", group=WHOLE[:40] + ":z.0.0@1"))
    watched.go(link("features", prompt=WHOLE[:500], lens='feature_page{"sae":"stories/resid_post.2","feature":705}',
                    labels=packed(MARKUP["image with onerror"])))  # fmt: skip
    watched.go(link("steering", prompt=WHOLE[:400], lens="side_effects",
                    do='steer{"direction":"stories/sentiment","layer":2,"strength":-0.5}'))  # fmt: skip
    words = json.dumps({"sae": "stories/resid_post.2", "words": MARKUP["image of elsewhere"]})
    watched.go(link("features", prompt=WHOLE[:300], lens="feature_search" + words))
    watched.history()
    watched.page.get_by_role("button", name=re.compile("Feature search")).first.click()
    expect(watched.page.get_by_text("outside.invalid").first).to_be_visible()
    watched.check("a card of the history")


def test_hostile_links_get_a_sentence_and_no_markup(visit: Any, server: Server) -> None:
    watched = Watched(visit, server)
    for parts in (
        {"prompt": "a", "lens": WHOLE[:300]},
        {"prompt": "a", "lens": "logit_lens", "model": MARKUP["image of elsewhere"]},
        {"image": MARKUP["image of elsewhere"], "lens": "grad_cam", "model": "photos"},
        {"prompt": "a", "lens": "logit_lens" + json.dumps({"target": {"target": MARKUP["image of elsewhere"]}})},
        {"prompt": "a", "lens": "logit_lens" + json.dumps({MARKUP["html image of elsewhere"]: 1})},
    ):  # fmt: skip
        page = watched.go(link("prompts" if "prompt" in parts else "heatmaps", **parts))
        expect(page.get_by_test_id("stAlert").first).to_be_visible()


def test_a_hostile_model_and_the_name_of_a_file(visit: Any, server: Server, tmp_path: Path) -> None:
    model = tiny.vision("resnet")
    folder = tmp_path / "made by a stranger"
    model._network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = [*MARKUP.values(), *(PROMPTS[each][:60] for each in ("zalgo", "bidi overrides", "very long token"))]
    config["id2label"] = {key: names[int(key) % len(names)] + key for key in config["id2label"]}
    config["label2id"] = {name: int(key) for key, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(WHOLE)
    watched = Watched(visit, server)
    page = watched.go("/models")
    page.get_by_role("textbox", name=re.compile("Hugging Face id")).fill(str(folder))
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Look it up").click()
    page.wait_for_timeout(500)
    idle(page, timeout=120)
    watched.check("models")
    if page.get_by_role("heading", level=1).inner_text() != "Heatmaps":
        page.get_by_role("link", name="Heatmaps").first.click()
        page.wait_for_url(re.compile("heatmaps"))
        idle(page, timeout=120)
    expect(page.locator(".guess").first).to_be_visible()
    guesses = " ".join(page.locator(".guess").all_inner_texts())
    assert any(name[:12] in guesses for name in names), guesses
    watched.check("its classes")
    upload = tmp_path / "![x](outside.invalid) <img src=x onerror=top.fired=1>.png"
    upload.write_bytes(saved(small().resize((64, 64)), "PNG"))
    page.locator('input[type="file"]').first.set_input_files(str(upload))
    idle(page)
    watched.check("an upload")
    watched.history()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("size", [None, PHONE], ids=["wide", "phone"])
def test_every_payload_as_a_prompt(visit: Any, server: Server, size: Any) -> None:
    watched = Watched(visit, server, **({} if size is None else {"size": size}))
    for text in PROMPTS.values():
        if "\x00" not in text and text == text.encode(errors="replace").decode():
            watched.go(link("prompts", prompt=text[:3000], lens="logit_lens"))
