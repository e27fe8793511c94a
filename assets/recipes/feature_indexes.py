"""Makes the feature indexes that lie beside the embedded SAEs: where each feature fires, and what it promotes.

    pip install -r requirements.txt
    python assets/recipes/feature_indexes.py --work WORK [--photos FOLDER] [stories/resid_post.2 ...]

Without names, of every SAE in assets/saes that has none. Those of language models are made over 20,000 documents of
grammar.py, drawn with another seed than any that a model or an SAE was trained on (some of the short ones are the same
all the same: the language has only so many); those of image models over the held-out photos of Caltech-101 that show
one of the 38 classes (--photos, the files of _data.py; CC BY 4.0), of which those that stand in contexts are kept at
64 px. About half a minute each. A run that was cut off goes on from what it left in WORK.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import _data
import grammar
import PIL.Image

from interp import feature_index, progress, sae, zoo
from interp.model import VisionModel
from interp.samples import TextSet

DOCUMENTS, SEED = 20_000, 1_000_006
PHOTOS = "held-out photos of Caltech-101 (Li, Andreeto, Ranzato, Perona 2022; CC BY 4.0)"


def documents() -> TextSet:
    """Texts of the language that `stories` speaks."""
    rng = random.Random(SEED)
    return TextSet(tuple(grammar.document(rng) for _ in range(DOCUMENTS)))


def photos(folder: Path) -> Iterator[tuple[PIL.Image.Image, str]]:
    """The held-out photos with the names of their classes."""
    _, caltech = _data.load(folder)
    for index in caltech.held_out.nonzero()[0]:
        yield caltech.picture(index), caltech.names[caltech.labels[index]]


def make(name: str, folder: Path | None) -> None:
    """Build the index of the SAE of that name and put it beside its weights."""
    model, found = zoo.load(name.split("/")[0]), sae.load(name)
    if isinstance(model, VisionModel):
        if folder is None:
            raise SystemExit(f"{name} needs --photos")
        index = feature_index.build(model, found, photos(folder), name=PHOTOS)
    else:
        index = feature_index.build(model, found, documents(), name="20,000 stories")
    place = sae.SHELF / name / "index.safetensors"
    shutil.copyfile(index.path, place)
    dead = int((index.count == 0).sum())
    print(
        f"{name}: {index.n_tokens:,} tokens, {index.density.sum():.1f} features on each, {dead} of {index.n_features} "
        f"never; {place.stat().st_size / 2**20:.2f} MB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    asked = parser.parse_args()
    os.environ["ACTISCOPE_STORE"] = str(asked.work)
    lacking = [
        f"{each.parent.parent.name}/{each.parent.name}"
        for each in sorted(sae.SHELF.glob("*/*/cfg.json"))
        if not (each.parent / "index.safetensors").exists()
    ]
    with progress.watch(lambda each: print(f"{each.label}: {each.done} of {each.total}", end="\r", flush=True)):
        for name in asked.names or lacking:
            make(name, asked.photos)
