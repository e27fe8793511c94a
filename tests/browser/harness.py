"""A server of its own, Chromium, and knowing when a page has settled: shared by the tests and `shoot.py`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
DESKTOP, PHONE = (1440, 900), (390, 844)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# True once the page has been connected, idle and complete for `quiet` ms on end; False after `limit` ms.
SETTLED = """([quiet, limit]) => new Promise(resolve => {
  const begun = performance.now(); let since = null;
  const app = () => document.querySelector('[data-testid="stApp"]');
  const calm = () => app()?.dataset.testScriptState === 'notRunning'
    && app()?.dataset.testConnectionState === 'CONNECTED'
    && !document.querySelector('[data-testid="stSkeleton"], [data-stale="true"]')
    && document.fonts.status === 'loaded' && [...document.images].every(image => image.complete);
  const look = () => {
    const now = performance.now();
    since = calm() ? since ?? now : null;
    if (since !== null && now - since >= quiet) resolve(true);
    else if (now - begun > limit) resolve(false);
    else setTimeout(look, 20);
  };
  look();
})"""


def chromium() -> str:
    """The path of an installed Chromium or Chrome."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise FileNotFoundError("The browser tests need Chromium: install it (Debian: apt-get install chromium).")
    return found


@contextmanager
def launch() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


def idle(page: Page, quiet: float = 0.2, timeout: float = 150) -> None:
    """Wait until `page` has been connected, with no script running and every image loaded, for `quiet` seconds on end.

    Just after a click the page is still idle: where a test knows what will change, let it wait for that first.
    """
    page.wait_for_selector('[data-testid="stApp"]', timeout=timeout * 1000)
    if not page.evaluate(SETTLED, [quiet * 1000, timeout * 1000]):
        app = page.locator('[data-testid="stApp"]')
        script, connection = (app.get_attribute(f"data-test-{what}-state") for what in ("script", "connection"))
        raise TimeoutError(f"{page.url} did not settle in {timeout:g} s: script {script}, connection {connection}")


class Server:
    """`streamlit run` on a free port, with a store of its own, until the `with` block ends.

    `log()` is what it has printed; `address` is where it answers.
    """

    def __init__(self, app: str | Path | None = None, env: dict[str, str] | None = None, timeout: float = 150) -> None:
        self.app = Path(app or os.environ.get("ACTISCOPE_APP") or ROOT / "app.py").resolve()
        self.extra, self.timeout = env or {}, timeout

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="actiscope-"))
        self.store = self.folder / "store"
        own = {"ACTISCOPE_STORE": str(self.store), "HF_HUB_OFFLINE": "1"}
        own |= {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1", "STREAMLIT_LOGGER_ENABLE_RICH": "false"}
        options = {"port": self.port, "address": "127.0.0.1", "headless": "true", "fileWatcherType": "none"}
        command = [sys.executable, "-m", "streamlit", "run", str(self.app)]
        command += [f"--server.{name}={value}" for name, value in options.items()]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | own | self.extra, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            if self.process.poll() is None:
                os.killpg(self.process.pid, sign)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self, begin: int = 0) -> str:
        return (self.folder / "log").read_bytes()[begin:].decode(errors="replace")

    def _wait(self) -> None:
        for _ in range(int(self.timeout * 20)):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended by itself ({self.process.returncode}):\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"no answer from the server in {self.timeout:g} s:\n{self.log()}")
