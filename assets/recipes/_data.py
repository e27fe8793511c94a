"""The photos that the recipes train on, read from two files; where they come from publicly is said in `SOURCES`.

The files hold, without pickles: `x` all JPEG bytes one after another, `off` where each begins (n + 1), `y` the class,
`box` x0 y0 x1 y1 in pixels or -1, `split` (0 train, 1 validation), `names` of the classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

SOURCES = {
    "tinyimagenet30_64.npz": "Tiny ImageNet (CS231n), its 200 classes merged into 30; ImageNet terms, for research",
    "caltech101_112.npz": "Caltech-101 (Li, Andreeto, Ranzato, Perona 2022) at 112 px, every tenth held out; CC BY 4.0",
}

# Classes of Caltech-101 that belong to one of the 30, and those that make classes of their own.
CALTECH = {
    "dog": "dalmatian", "cat": "garfield", "big cat": "Leopards cougar_body cougar_face wild_cat", "bear": "panda",
    "elephant": "elephant", "hoofed animal": "gerenuk llama okapi",
    "bird": "emu flamingo flamingo_head ibis pigeon rooster",
    "fish": "bass", "butterfly": "butterfly", "insect": "ant dragonfly mayfly", "car": "car_side",
    "boat": "ferry ketch schooner", "tower": "minaret", "fruit": "strawberry", "pizza": "pizza", "ball": "soccer_ball",
    "umbrella": "umbrella", "teapot": "ewer",
    "airplane": "airplanes",
    "motorbike": "Motorbikes", "person": "Faces Faces_easy",
    "flower": "sunflower lotus water_lilly",
    "clock": "watch", "chair": "chair windsor_chair",
    "musical instrument": "accordion electric_guitar grand_piano mandolin saxophone euphonium",
    "helicopter": "helicopter",
}  # fmt: skip


@dataclass(frozen=True)
class Photos:
    """JPEG bytes with labels, in one numbering of the classes."""

    jpegs: list[bytes]
    labels: np.ndarray
    held_out: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.jpegs)

    def picture(self, index: int) -> PIL.Image.Image:
        return PIL.Image.open(io.BytesIO(self.jpegs[index])).convert("RGB")


def load(folder: Path) -> tuple[Photos, Photos]:
    """The merged classes of Tiny ImageNet, and the photos of Caltech-101 that have one of the classes."""
    tiny, caltech = (np.load(folder / name) for name in SOURCES)
    names = [str(each) for each in tiny["names"]]
    names += [each for each in CALTECH if each not in names]
    source = {old: new for new, olds in CALTECH.items() for old in olds.split()}
    number = np.array([names.index(source[str(old)]) if str(old) in source else -1 for old in caltech["names"]])
    return (
        Photos(_jpegs(tiny), tiny["y"].astype(np.int64), tiny["split"] == 1, tuple(names)),
        _kept(Photos(_jpegs(caltech), number[caltech["y"]], caltech["split"] == 1, tuple(names))),
    )


def _jpegs(file: np.lib.npyio.NpzFile) -> list[bytes]:
    data, start = file["x"].tobytes(), file["off"]
    return [data[start[i] : start[i + 1]] for i in range(len(start) - 1)]


def _kept(photos: Photos) -> Photos:
    keep = np.flatnonzero(photos.labels >= 0)
    return Photos([photos.jpegs[i] for i in keep], photos.labels[keep], photos.held_out[keep], photos.names)
