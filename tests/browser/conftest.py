"""Fixtures of the browser tests: `server`, `browser` and `visit`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

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


@pytest.fixture
def visit(server: Server, browser: Browser) -> Iterator[Visit]:
    """Opens pages, each a new visitor (or, with `beside=page`, a second tab of that one), and waits till idle.

    `visit("/heatmaps?model=photos", size=PHONE, dark=True)`; what the pages' own scripts threw is in `page.thrown`.
    """
    contexts = []

    def visit(
        path: str = "/", size: tuple[int, int] = DESKTOP, dark: bool = False, beside: Page | None = None,
        wait: bool = True, **options: Any,
    ) -> Page:  # fmt: skip
        if beside is None:
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", **options
            )
            contexts.append(context)
        else:
            context = beside.context
        page = context.new_page()
        page.thrown = thrown = []  # type: ignore[attr-defined]
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(path if "://" in path else server.address + path)
        if wait:
            idle(page)
        return page

    yield visit
    for context in contexts:
        context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the server printed."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(running, Server):
        report.sections.append(("the end of the server's log", running.log()[-8000:]))
    return report
