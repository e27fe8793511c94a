"""What is deployed, as far as it runs without Docker: lint, the entrypoint on a read-only disk, nginx in front."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import expect
from websockets.sync.client import connect

from interp import settings
from tests.browser.harness import ROOT, Server, idle, launch

DEPLOY, SMALL = ROOT / "deploy", Path(__file__).with_name("small.py")
HADOLINT = Path(sys.executable).with_name("hadolint")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(address: str, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(address, headers={name.replace("_", "-"): text for name, text in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def wait_for(address: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        assert process.poll() is None, f"it ended by itself: {process.returncode}"
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint comes with requirements-dev.txt on Linux only")
def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    found = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_image_is_hosted_runs_as_nobody_special_and_writes_only_where_it_may() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", text).splitlines()
    last = {line.split()[0]: line for line in lines if line and not line.startswith("#")}
    assert (
        last["USER"] == "USER 1000" and last["STOPSIGNAL"] == "STOPSIGNAL SIGTERM" and last["VOLUME"] == "VOLUME /data"
    )
    assert "/healthz" in last["HEALTHCHECK"] and "HOSTED=1" in last["ENV"]
    assert last["ENTRYPOINT"] == 'ENTRYPOINT ["/app/deploy/entrypoint.sh"]'
    assert os.access(DEPLOY / "entrypoint.sh", os.X_OK)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "!deploy/entrypoint.sh" in ignored and ".git" in ignored and "tests" in ignored
    assert "torch==" in (ROOT / "requirements.txt").read_text(), "the build reads the version there"


@pytest.mark.parametrize("index", ["", "https://wheels.example/cpu"])
def test_torch_is_of_one_version_and_from_the_index_that_is_given(index: str, tmp_path: Path) -> None:
    """The RUN line of the Dockerfile itself, with a pip that only says what it is told."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    command = next(line[4:] for line in text.splitlines() if line.startswith("RUN pip"))
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\n')
    pip.chmod(0o755)
    environment = os.environ | {"TORCH_INDEX": index, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ran = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    first, second = ran.stdout.splitlines()
    assert first.endswith("torch==2.13.0") and second.endswith("-r requirements.txt")
    assert (f"--index-url {index} " in first) if index else ("index" not in first)


@contextmanager
def entrypoint(data: Path, port: int, *, locked: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The image's entrypoint; `locked`: on a disk that is read-only but for its data and /tmp, without privileges."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "DATA": str(data), "PORT": str(port)}
    environment |= {"HOSTED": "1", "ADDRESS": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    command = [str(DEPLOY / "entrypoint.sh")]
    if locked:
        script = (
            "set -e; mount --make-rprivate /; mount --bind / /; mkdir -p /tmp; mount --bind $DATA /mnt; "
            "mount -o remount,ro,bind /; mount -t tmpfs none /tmp; export DATA=/mnt; "
            'exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"'
        )
        command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    with (data.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def can_lock() -> bool:
    if ROOT.is_relative_to("/tmp"):  # which the process gets anew
        return False
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        return False
    return subprocess.run(["unshare", "--mount", "mount", "--make-rprivate", "/"], capture_output=True).returncode == 0


@pytest.mark.parametrize("visited", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.browser])])
@pytest.mark.skipif(not can_lock(), reason="only a privileged user can make the disk read-only for one process")
def test_the_entrypoint_serves_from_a_read_only_disk_and_writes_only_its_data(visited: bool, tmp_path: Path) -> None:
    data, port = tmp_path / "data", free()
    data.mkdir()
    with entrypoint(data, port, locked=True) as process:
        wait_for(f"http://127.0.0.1:{port}/healthz", process)
        if visited:
            wait_for(f"http://127.0.0.1:{port}/readyz", process, 120)
            with launch() as browser:
                page = browser.new_page()
                page.goto(f"http://127.0.0.1:{port}/heatmaps")
                idle(page)
                expect(page.get_by_role("heading", name="What does the model look at?")).to_be_visible()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    written = {path.relative_to(data).parts[0] for path in data.rglob("*")}
    assert written <= {"home", "store", "hf"} and "home" in written
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "started" in [line.get("event") for line in lines]
    assert not [line for line in lines if line["level"] in ("error", "critical")], lines


def test_the_entrypoint_says_which_folder_it_needs(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    with entrypoint(tmp_path / "data", free(), locked=False) as process:
        assert process.wait(20) == 1
    assert "mount a volume there" in (tmp_path / "log").read_text()


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
@pytest.mark.browser
def test_a_journey_through_nginx(tmp_path: Path) -> None:
    env = {"HOSTED": "1", "ACTISCOPE_PROXIES": "1", "ACTISCOPE_ADDRESS_VISITORS": "3", "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(SMALL, env)) for _ in range(2)]
        port = free()
        text = (DEPLOY / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
        text = text.replace("/tmp/", f"{tmp_path}/").replace("one:8501", f"127.0.0.1:{servers[0].port}")
        (tmp_path / "nginx.conf").write_text(text.replace("two:8501", f"127.0.0.1:{servers[1].port}"))
        command = [
            str(NGINX),
            "-p",
            str(tmp_path),
            "-c",
            str(tmp_path / "nginx.conf"),
            "-e",
            str(tmp_path / "error.log"),
        ]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        process = subprocess.Popen([*command, "-g", "daemon off;"])
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/healthz", process)
        with launch() as browser:
            page = browser.new_page()
            page.goto(f"{address}/?q={'x' * 20_000}")
            idle(page)
            page.get_by_label("Text").fill("through a proxy")
            page.get_by_label("Text").press("Enter")
            expect(page.get_by_text("seen through a proxy")).to_be_visible()
            page.locator("input[type=file]").set_input_files(
                {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"}
            )
            expect(page.get_by_text("a.txt")).to_be_visible()
            until = time.monotonic() + 10
            while not (uploads := sum("upload_file" in each.log() for each in servers)) and time.monotonic() < until:
                time.sleep(0.05)
            assert uploads == 1, "one server has the visit"
        assert answers(f"{address}/metrics")[0] == answers(f"{address}/readyz")[0] == 404
        # whatever a visitor writes there, it is one address, which may have three sessions
        sessions = [
            stack.enter_context(
                connect(
                    f"ws://127.0.0.1:{port}/_stcore/stream",
                    subprotocols=["streamlit"],  # type: ignore[list-item]
                    additional_headers={"X-Forwarded-For": f"203.0.113.{number}"},
                    user_agent_header="one browser",
                )
            )
            for number in range(4)
        ]
        with pytest.raises(Exception, match="1013"):
            for _ in range(2):
                sessions[3].recv(timeout=5)


def test_compose_gives_every_server_the_same_store_and_believes_nginx() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    upstreams = re.findall(r"server (\w+):8501", (DEPLOY / "nginx.conf").read_text())
    assert upstreams == ["one", "two"]
    for name in upstreams:
        variables = services[name]["environment"]
        known = settings.read({key: str(value) for key, value in variables.items()})
        assert known.hosted and known.proxies == 1 and known.shared.startswith("s3://actiscope/")
        names = {f"ACTISCOPE_{field.upper()}" for field in vars(known)} | {"HOSTED"}
        assert {key for key in variables if not key.startswith("AWS_")} <= names, "a variable that nobody reads"
        assert services[name]["read_only"] and services[name]["cap_drop"] == ["ALL"]


def test_the_readme_of_the_space_names_the_port_of_the_image() -> None:
    _, front, _ = (DEPLOY / "spaces" / "README.md").read_text().split("---", 2)
    found = yaml.safe_load(front)
    assert found["sdk"] == "docker" and f"EXPOSE {found['app_port']}" in (ROOT / "Dockerfile").read_text()
    assert len(found["short_description"]) <= 60


def test_the_readme_holds_the_settings_as_they_are() -> None:
    text = settings.README.read_text()
    assert settings.written(text) == text, "run `make catalogue`"
    assert settings.table() in text
