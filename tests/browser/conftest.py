"""Fixtures of the browser tests: `server`, `browser`, `visitors` and `visit`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.harness import DESKTOP, Server, idle, launch

HERE = Path(__file__).parent
Visit = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The app, served for the whole session on a free port with an empty store. `server.address`, `server.log()`."""
    with Server() as running:
        yield running


# Not for the whole session: while it lives, an event loop runs in this thread, and other tests may want one.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with launch() as running:
        yield running


@pytest.fixture(scope="package")
def visitors(browser: Browser) -> list[BrowserContext]:
    """Contexts that are used again: they keep compiled scripts, which take most of a page's first load, and no more."""
    return []


@pytest.fixture
def visit(server: Server, browser: Browser, visitors: list[BrowserContext]) -> Iterator[Visit]:
    """Opens pages, each a new visitor (or, with `beside=page`, a second tab of that one), and waits till idle.

    `visit("/heatmaps?model=photos", size=PHONE, dark=True)`; what the pages' own scripts threw is in `page.thrown`.
    With options the visitor has a context of his own, made with them; others get one without cookies and storage.
    """
    own: list[BrowserContext] = []
    lent: list[BrowserContext] = []

    def newcomer() -> BrowserContext:
        if not visitors:
            context = browser.new_context()
            context.on("close", lambda closed: lent.remove(closed) if closed in lent else None)
            visitors.append(context)
        lent.append(visitors.pop(0))
        return lent[-1]

    def visit(
        path: str = "/", size: tuple[int, int] = DESKTOP, dark: bool = False, beside: Page | None = None,
        wait: bool = True, **options: Any,
    ) -> Page:  # fmt: skip
        if beside is not None:
            context = beside.context
        elif options:
            context = browser.new_context(**options)
            own.append(context)
        else:
            context = newcomer()
        page = context.new_page()
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.thrown = thrown = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(path if "://" in path else server.address + path)
        if wait:
            idle(page)
        return page

    yield visit
    for context in own:
        context.close()
    for context in list(lent):
        if context.pages:
            session = context.new_cdp_session(context.pages[0])
            session.send(
                "Storage.clearDataForOrigin",
                {"origin": server.address, "storageTypes": "cookies,local_storage,indexeddb"},
            )
        for page in context.pages:
            page.close()
        context.clear_cookies()
        context.clear_permissions()
        visitors.append(context)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the server printed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(running, Server):
        report.sections.append(("the end of the server's log", running.log()[-8000:]))
    return report
