"""How long the CAMs take on one thread, in forwards: `python -m tests.benchmarks.speed [--long] [--write]`.

Prints a table in Markdown, beside pytorch-grad-cam and torchcam where `make peers` has installed them; `--long` adds
what takes minutes, `--write` puts the table between the bench marks of README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import interp  # sets what torch reads at its import

# isort: split
import numpy as np
import torch
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from interp.methods import METHODS
from interp.model import VisionModel
from interp.samples import Image
from interp.sites import Site
from tests.benchmarks import network
from tests.benchmarks.clock import long_ratio, ratios

ROOT = Path(interp.__file__).parent.parent
ONE_PASS = ("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "hires_cam", "layer_cam", "eigen_cam")


class Subject:
    """Our model, the same network without us, and one image."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.plain, self.pixels = network.resnet18(), network.pixels()
        processor = ViTImageProcessorPil(size={"height": 224, "width": 224})
        self.model = VisionModel(network.resnet18(), processor, "ResNet-18 size, random")
        noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
        self.sample = Image.of(noise)

    def fresh(self, *keys: str, **settings: object) -> Callable[[], object]:
        """Call these methods one after another on an image that was prepared for the network but never analysed."""

        def run() -> object:
            self.model.forget()
            self.model.inputs(self.sample)
            return [METHODS[key](self.model, self.sample, target=1, **settings) for key in keys]

        return run

    def floors(self) -> dict[str, Callable[[], object]]:
        return {
            "forward": lambda: network.forward(self.plain, self.pixels),
            "forward + gradient at the last stage": lambda: network.forward_and_gradient(self.plain, self.pixels),
        }

    def fastest_forward(self, rounds: int = 3) -> tuple[Callable[[], object], int]:
        """The batch and memory format with the shortest forward per image, and how many images it holds."""
        options: dict[str, Callable[[], object]] = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            for batch in (1, 2, 4, 8, 16):
                x = self.pixels.expand(batch, -1, -1, -1).contiguous(memory_format=layout)
                options[f"{layout} {batch}"] = lambda x=x: network.forward(self.plain, x)
        times = ratios(options, rounds)
        best = min(times, key=lambda name: times[name] / int(name.split()[1]))
        return options[best], int(best.split()[1])


def ours(rounds: int, score: bool) -> dict[str, float]:
    """Times in forwards."""
    subject = Subject()
    names = {key: METHODS[key].name for key in (*ONE_PASS, "finer_cam", "cf_cam")}
    things = subject.floors() | {name: subject.fresh(key) for key, name in names.items()}
    things["Grad-CAM to Eigen-CAM above, one after another"] = subject.fresh(*ONE_PASS)
    things["Smooth Grad-CAM++, n = 4"] = subject.fresh("smooth_grad_cam_plus_plus", n=4)
    things["Ablation-CAM, 512 channels"] = subject.fresh("ablation_cam")
    table = ratios(things, rounds)
    subject.fresh(*ONE_PASS)()
    switched = {
        "forward": things["forward"],
        "another method on the same image": lambda: METHODS["hires_cam"](subject.model, subject.sample, target=1),
    }
    table |= ratios(switched, rounds)
    if score:
        table["Score-CAM, 512 channels"] = long_ratio(things["forward"], subject.fresh("score_cam"))
    return table


def score_cam_overhead(rounds: int) -> tuple[float, int]:
    """Score-CAM's time over that of (live channels + 1) of the fastest forwards found, and the live channels.

    At stage 0, whose 64 channels take seconds and not a minute; what a forward costs does not depend on the stage.
    """
    subject = Subject()
    forwards, batch = subject.fastest_forward()
    site = Site("stage", 0)
    live = int(METHODS["score_cam"](subject.model, subject.sample, target=1, site=site).forwards) - 1
    times = ratios(
        {
            "fastest": lambda: [forwards() for _ in range((live + 1) // batch)],
            "score": subject.fresh("score_cam", site=site),
        },
        rounds,
    )
    return times["score"] * ((live + 1) // batch * batch) / (live + 1), live


def peers(rounds: int, long: bool) -> dict[str, dict[str, float]]:
    """The same of the other libraries, timed in their own environment; empty where that is not installed."""
    python = ROOT / ".venv-bench" / "bin" / "python"
    if not python.exists():
        return {}
    command = [str(python), "-m", "tests.benchmarks.peers", str(rounds), *(["--long"] if long else [])]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        print(answer.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return {}
    return json.loads(answer.stdout.splitlines()[-1])


def markdown(columns: dict[str, dict[str, float]]) -> str:
    """One row for each thing that was timed, one column for each library."""
    rows = list(columns["Actiscope"])
    lines = ["| in forwards of one image | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for row in rows:
        cells = [f"{column[row]:.3g}" if row in column else "" for column in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(text: str, mark: str) -> None:
    """Put `text` between <!-- mark --> and <!-- /mark --> in README.md."""
    path = ROOT / "README.md"
    page = path.read_text()
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> None:
    long = "--long" in sys.argv
    columns = {"Actiscope": ours(9, long)} | peers(9, long)
    overhead, live = score_cam_overhead(3)
    text = (
        "A random network of the size of ResNet-18 at 224 px, one thread, a prepared image; medians of runs taken in "
        "turns, as multiples of one plain forward of the same process.\n\n"
        + markdown(columns)
        + f"\n\nScore-CAM takes {overhead:.2f} x ({live} live channels + 1) of the fastest forward found."
    )
    print(text)
    if "--write" in sys.argv:
        write(text, "bench")


if __name__ == "__main__":
    main()
