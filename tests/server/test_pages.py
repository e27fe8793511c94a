"""The app's own pages under the headers of the server, in Chromium: nothing that they need is forbidden."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.harness import Server, idle, launch

PAGES = ("", "heatmaps", "pixels", "prompts", "circuits", "features", "transport", "steering", "methods", "models")
WATCH = """window.violations = []; document.addEventListener('securitypolicyviolation',
  each => window.violations.push(`${each.violatedDirective} ${each.blockedURI}`));"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


@pytest.mark.browser
@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[] if each == "circuits" else pytest.mark.slow) for each in PAGES]
)
def test_a_page_needs_nothing_that_the_policy_forbids(server: Server, chromium: Browser, name: str) -> None:
    with chromium.new_context() as context:
        page, asked = context.new_page(), list[str]()
        page.add_init_script(WATCH)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{server.address}/{name}")
        idle(page, timeout=120)
        assert page.evaluate("window.violations") == []
        elsewhere = [url for url in asked if not url.startswith((server.address, "data:", "blob:"))]
        assert not elsewhere, "a page asks nobody else for anything"


@pytest.mark.browser
def test_the_policy_is_in_force(server: Server, chromium: Browser) -> None:
    """What an attacker would do is refused, or the test above would say nothing."""
    with chromium.new_context() as context:
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(server.address + "/methods")
        page.wait_for_selector('[data-testid="stApp"]')
        page.evaluate("""() => {
          const script = document.createElement('script'); script.textContent = 'window.inline = true';
          document.body.append(script);
          const image = new Image(); image.src = 'https://elsewhere.example/x.png'; document.body.append(image);
          const frame = document.createElement('iframe'); frame.src = image.src; document.body.append(frame);
          document.body.insertAdjacentHTML('beforeend', '<img src=x onerror="window.attribute = true">');
          fetch('https://elsewhere.example/').catch(() => {});
        }""")
        expected = {"script-src-elem", "img-src", "frame-src", "script-src-attr", "connect-src"}
        for _ in range(100):
            found = {each.split()[0] for each in page.evaluate("window.violations")}
            if found >= expected:
                break
            page.wait_for_timeout(50)
        assert found >= expected
        assert page.evaluate("[window.inline, window.attribute]") == [None, None]


@pytest.mark.slow
def test_a_hosted_server_gets_warm_by_itself_without_a_fault() -> None:
    with Server(env={"HOSTED": "1"}) as hosted:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{hosted.address}/readyz", timeout=5) as answer:
                    assert json.load(answer)["ready"]
                    break
            except OSError:
                time.sleep(0.2)
        lines = [json.loads(line) for line in hosted.log().splitlines() if line.startswith("{")]
        assert "warm" in [line.get("event") for line in lines]
        assert not [line for line in lines if line["level"] == "error"]
