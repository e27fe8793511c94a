"""What it takes to open each hostile image, in a fork of its own: `python -m tests.hostile.measure NAME...`."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from pathlib import Path

from interp import Unsuitable
from interp.samples import Image
from tests.hostile.images import IMAGES


def child(names: list[str]) -> None:
    """Open each in a fork of this process, and print what it took ."""
    for name in names:
        sys.stdout.flush()
        if not (pid := os.fork()):
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            data = IMAGES[name]()
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before, begun = _memory("VmRSS"), time.process_time()
            try:
                size = Image.open(data).size
                said = f"opened {max(size)}"
            except Unsuitable as reason:
                said = f"refused {reason}"
            print(_memory("VmHWM") - before, time.process_time() - begun, name, said, sep="|", flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            print(0, 0, name, f"died of {status}", sep="|", flush=True)


def _memory(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    child(sys.argv[1:])
