"""Every sample input opens, says whose it is, and has its exact mask where it claims one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from interp import zoo
from interp.samples import GALLERY, Image, gallery

sys.path.insert(0, str(Path(__file__).parents[2] / "assets" / "recipes"))

from gallery import SCENES
from scene_generator import CLASSES, make_scene

FRESH = 10_100_000
"""Recipes train on seeds below a million and measure on the first ones from ten million on."""
NAMES = sorted(gallery())


def test_there_are_enough_and_they_are_small() -> None:
    assert len(NAMES) >= 20
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) <= 4e6
    shapes = [Image.gallery(name).picture.size for name in NAMES]
    assert any(width > height for width, height in shapes) and any(width < height for width, height in shapes)


def test_every_file_is_in_the_listing() -> None:
    listed = {entry[key] for entry in gallery().values() for key in ("file", "mask") if entry[key]}
    assert listed | {"gallery.json", "LICENCES.md"} == {path.name for path in GALLERY.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_upright_and_is_described(name: str) -> None:
    entry, image = gallery()[name], Image.gallery(name)
    raw = PIL.Image.open(GALLERY / entry["file"])
    assert raw.getexif().get(0x0112, 1) == 1
    assert max(raw.size) <= 1024 and image.picture.size == raw.size
    for field in ("title", "alt", "licence", "source", "author"):
        assert entry[field].strip()
    assert entry["model"] in zoo.shelf()
    assert image.reference == name and Image.refer(name) == image
    line = next(each for each in (GALLERY / "LICENCES.md").read_text().splitlines() if f"| {entry['file']} |" in each)
    assert all(entry[field] in line for field in ("author", "licence", "source"))
    for licence in entry["licence"].split("; "):
        assert licence.startswith(("CC0", "CC BY 2.0", "public domain", "BSD-3-Clause", "Apache-2.0"))


@pytest.mark.parametrize("name", [name for name in NAMES if gallery()[name]["mask"]])
def test_its_mask_has_its_size_and_marks_something(name: str) -> None:
    image = Image.gallery(name)
    mask = image.object_mask
    assert mask is not None and mask.shape == image.picture.size[::-1]
    assert 0.005 < mask.mean() < 0.5


def test_a_pair_differs_in_its_target_alone() -> None:
    one, two = (np.asarray(Image.gallery(f"scene_pair_{each}").picture, int) for each in "ab")
    masks = [Image.gallery(f"scene_pair_{each}").object_mask for each in "ab"]
    changed = np.abs(one - two).max(2) > 0
    around = np.zeros_like(changed)
    for mask in masks:
        assert mask is not None
        rows, columns = np.nonzero(mask)
        around[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3] = True
    assert changed.any() and not changed[~around].any()


def test_the_scenes_are_as_rendered_and_of_seeds_that_no_model_was_trained_on() -> None:
    for name, _, _, _, arguments in SCENES:
        assert arguments["seed"] > FRESH
        scene, image = make_scene(**arguments), Image.gallery(name)
        assert np.array_equal(np.asarray(image.picture), scene.image)
        assert np.array_equal(image.object_mask, scene.mask)


def test_the_shortcut_model_answers_the_background() -> None:
    model = zoo.load("scenes-shortcut")
    kept, broken = (int(model(Image.gallery(f"shortcut_{each}")).argmax()) for each in ("kept", "broken"))
    assert (CLASSES[kept], CLASSES[broken]) == ("square", "ring")
