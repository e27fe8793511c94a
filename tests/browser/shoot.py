"""Full-page screenshots of the app, wide and narrow, light and dark.

    python tests/browser/shoot.py OUTDIR [PATH ...] [--port PORT]

Starts a server, or uses the one on PORT. Prints for each picture how long the page took to settle, and what is wrong on
it: errors shown to the visitor or thrown by its scripts, and content that is wider than the screen.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, Page

from tests.browser.harness import DESKTOP, PHONE, Server, idle, launch

# Streamlit scrolls these boxes instead of the page, so a full-page screenshot would show only what is on the screen.
TALL = """() => Math.max(...[...document.querySelectorAll(
  '[data-testid="stMain"], [data-testid="stSidebarContent"]')].map(box => box.scrollHeight), 0)"""
WIDE = """() => { const box = document.querySelector('[data-testid="stMain"]') ?? document.body;
  return box.scrollWidth - box.clientWidth; }"""
MOST = 12_000


def shoot(browser: Browser, address: str, size: tuple[int, int], dark: bool, to: Path, wait: str, pause: float) -> str:
    width, height = size
    scheme = "dark" if dark else "light"
    with browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(f"thrown: {error}"))
        begun = time.perf_counter()
        page.goto(address)
        settle(page, wait, wrong)
        took = time.perf_counter() - begun
        for _ in range(3):  # a taller screen can make room for more
            tall = min(max(height, page.evaluate(TALL)), MOST)
            if page.viewport_size == {"width": width, "height": tall}:
                break
            page.set_viewport_size({"width": width, "height": tall})
            settle(page, "", wrong)
        page.wait_for_timeout(pause * 1000)
        shown = page.locator('[data-testid="stException"], [data-testid="stAlertContentError"]').all_inner_texts()
        wrong += dict.fromkeys(" ".join(text.split()) for text in shown)
        if (over := page.evaluate(WIDE)) > 1:
            wrong.append(f"{over} px wider than the screen")
        page.screenshot(path=to)
    return " · ".join([f"{to.name}: {took:.1f} s, {width} x {tall}", *wrong])


def settle(page: Page, wait: str, wrong: list[str]) -> None:
    try:
        idle(page)
        if wait:
            page.wait_for_selector(wait, timeout=60_000)
            idle(page)
    except Exception as error:
        wrong.append(str(error).splitlines()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("paths", nargs="*", default=["/"], metavar="PATH", help="with its query, as in '/heatmaps?v=1'")
    parser.add_argument("--port", type=int, help="of a server that runs already")
    parser.add_argument("--app", help="another script than app.py")
    parser.add_argument("--wait", default="", metavar="SELECTOR", help="wait for this too, as in 'text=Reproduced'")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds to wait before each picture")
    parser.add_argument("--only", default="", help="1440, 390, light, dark, or two of them: 390-dark")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    looks = [(size, dark) for size in (DESKTOP, PHONE) for dark in (False, True)]
    with nullcontext() if args.port else Server(args.app) as server, launch() as browser:
        address = f"http://127.0.0.1:{args.port}" if server is None else server.address
        for path in args.paths:
            path = "/" + path.lstrip("/")
            name = re.sub(r"[^\w.-]+", "-", path).strip("-")[:60] or "home"
            for size, dark in looks:
                look = f"{size[0]}-{'dark' if dark else 'light'}"
                if args.only and not set(args.only.split("-")) <= set(look.split("-")):
                    continue
                to = args.folder / f"{name}-{look}.png"
                print(shoot(browser, address + path, size, dark, to, args.wait, args.pause), flush=True)
        if server is not None and "Traceback" in server.log():
            print("The server's log:", server.log()[-4000:], sep="\n")


if __name__ == "__main__":
    main()
