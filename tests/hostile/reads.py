"""How each kind of hostile thing is read, and a run of all under an audit hook: `python -m tests.hostile.reads`."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from interp import Unsuitable, direction_files, sae, snapshot, storage, store, zoo
from interp.experiment import Call, Experiment
from interp.samples import Image, Prompt
from interp.texts import Texts
from pages.ui import labels
from tests.hostile import files, images, texts


def model() -> Any:
    return zoo.load("stories")


def _texts(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_bytes(data)
        for _ in Texts(path, "", 2**17).groups():
            pass


def _numbers(data: bytes) -> None:
    store.unpacked(data, 64 * 2**20)


def _snapshot(change: dict[str, Any]) -> None:
    name, data = snapshot._written({**files.SNAPSHOT, **change}, {"forwards": 1, "backwards": 1, "version": "1"})
    storage.shared().put(snapshot._place(name), data)
    snapshot.read(name)


def _spec(text: str) -> None:
    from interp.__main__ import run

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(text, errors="surrogatepass")
        try:
            run(path)
        except RecursionError as problem:
            raise AssertionError("too deep") from problem


def _link(text: str) -> None:
    found = Experiment.from_url(text)
    found.check()
    if found.model == "stories":
        found.run()


def _forward(text: str) -> None:
    Experiment("stories", Prompt(text), _LENS).run()


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Everything, by name, and what reads it."""
    for name, data in files.DIRECTIONS.items():
        yield f"direction/{name}", lambda d=data: direction_files.imported(d, "x", model())  # type: ignore[misc]
    for name, folder in files.SAES.items():
        yield f"sae/{name}", lambda f=folder: sae.keep_files(f)  # type: ignore[misc]
    for name, data in files.NUMBERS.items():
        yield f"numbers/{name}", lambda d=data: _numbers(d)  # type: ignore[misc]
    for name, change in files.SNAPSHOTS.items():
        yield f"snapshot/{name}", lambda c=change: _snapshot(c)  # type: ignore[misc]
    for name in (
        "",
        "../../etc/passwd",
        "a" * 20,
        "A" * 20,
        "é" * 20,
        "a" * 10**6,
        "\x00" * 20,
        "aaaaaaaaaaaaaaaaaaa/",
    ):
        yield f"snapshot/named {name[:24]!r}", lambda n=name: snapshot.read(n)  # type: ignore[misc]
    for name, data in files.TEXTS.items():
        yield f"texts/{name}", lambda d=data: _texts(d)  # type: ignore[misc]
    for name, data in files.LABELS.items():
        yield f"labels/{name}", lambda d=data: labels.from_json(d)  # type: ignore[misc]
    for name, text in files.PACKED.items():
        yield f"packed labels/{name}", lambda t=text: labels.unpack(t)  # type: ignore[misc]
    for name, text in texts.PROMPTS.items():
        yield f"prompt/{name}", lambda t=text: _forward(t)  # type: ignore[misc]
    for name, text in texts.LINKS.items():
        yield f"link/{name}", lambda t=text: _link(t)  # type: ignore[misc]
    for name, text in texts.SPECS.items():
        yield f"json/{name}", lambda t=text: Experiment.from_json(t)  # type: ignore[misc]
        yield f"spec/{name}", lambda t=text: _spec(t)  # type: ignore[misc]
    for name in images.IMAGES:
        if not any(
            word in name
            for word in ("bomb", "largest", "noise", "million", "thousand", "giant", " MB", "header", "many texts")
        ):
            yield f"image/{name}", lambda n=name: Image.open(images.IMAGES[n](), n)  # type: ignore[misc]


_LENS = Call("logit_lens")

# -------------------------------------------------------------------------------------------------------- the hook

NEVER = (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "subprocess.Popen", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class", "os.chown", "os.link", "os.symlink",
    "os.putenv", "urllib.Request", "webbrowser.open", "ctypes.dlopen",
)  # fmt: skip
CHANGES = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.chmod": 2, "os.rename": 2, "os.truncate": None, "os.utime": 3,
    "shutil.rmtree": None, "shutil.move": None, "shutil.copyfile": None,
}  # fmt: skip
"""What changes the disk, and which argument is the folder that the path is in, where one is given by number."""
READS = ("os.listdir", "os.scandir", "glob.glob")


def watch(own: list[Path], read: list[Path]) -> list[str]:
    """Note from now on whatever is done beside reading below `read` and writing below `own`."""
    seen: list[str] = []
    roots = [str(each.resolve()) for each in own], [str(each.resolve()) for each in (*own, *read)]

    def below(path: Any, allowed: list[str], folder: Any = -1) -> bool:
        if isinstance(path, int) or path is None:
            return True
        try:
            path = os.fsdecode(path)
            inside = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else ""
            whole = os.path.realpath(os.path.join(inside, path))
        except ValueError:  # a NUL: no such file
            return True
        return any(whole == root or whole.startswith(root + os.sep) for root in allowed)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in NEVER:
            seen.append(f"{event} {args!r}"[:300])
        elif event == "open":
            path, mode, flags = args
            writes = any(letter in (mode or "") for letter in "wax+")
            writes = writes or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not below(path, roots[0] if writes else roots[1]):
                seen.append(f"{'write' if writes else 'read'} {path!r}"[:300])
        elif event in CHANGES:
            at = CHANGES[event]
            if not below(args[0], roots[0], -1 if at is None else args[at]):
                seen.append(f"{event} {args!r}"[:300])
        elif event in READS and not below(args[0] if args[0] is not None else ".", roots[1]):
            seen.append(f"{event} {args!r}"[:300])

    sys.addaudithook(hook)
    return seen


def main() -> None:
    """Go through every so manyth case under the hook; print what was seen, what broke, and what tries are seen."""
    model(), zoo.load("photos")
    _forward("warm")
    root = Path(__file__).resolve().parents[2]
    own = [Path(os.environ["ACTISCOPE_STORE"]), Path(tempfile.gettempdir())]
    read = [
        root,
        Path(sys.prefix),
        Path(sys.base_prefix) / "lib",
        Path("/proc/self"),
        Path("/proc/cpuinfo"),
        Path("/dev/null"),
        Path("/dev/urandom"),
    ]
    wrong, slow, count = [], [], 0
    seen = watch(own, [*read, Path(f"/proc/{os.getpid()}")])
    for name, do in itertools.islice(cases(), 0, None, int(sys.argv[1])):
        begun, count = time.process_time(), count + 1
        before = len(seen)
        try:
            do()
        except Unsuitable as reason:
            if not 0 < len(str(reason)) <= 700:
                wrong.append(f"{name}: a sentence of {len(str(reason))} characters")
        except Exception as problem:
            wrong.append(f"{name}: {type(problem).__name__}: {str(problem)[:200]}")
        if (took := time.process_time() - begun) > 2:
            slow.append(f"{name}: {took:.1f} s")
        seen[before:] = [f"{name}: {each}" for each in seen[before:]]
    found = list(seen)
    tries: list[Callable[[], Any]] = [
        lambda: open("/etc/passwd").close(), lambda: open(root / "README.md", "a").close(), lambda: os.listdir("/etc"),
        lambda: pickle.load(io.BytesIO(b"cos\ngetcwd\n.")), lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
    ]  # fmt: skip
    for each in tries:
        with contextlib.suppress(OSError):
            each()
    print(json.dumps({"cases": count, "seen": found, "wrong": wrong, "slow": slow, "tried": len(seen) - len(found)}))


if __name__ == "__main__":
    main()
