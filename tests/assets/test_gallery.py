"""Every sample input opens, says whose it is, and has its exact mask where it claims one."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from interp import zoo
from interp.samples import GALLERY, Image, gallery

NAMES = sorted(gallery())


def test_there_are_enough_and_they_are_small() -> None:
    assert len(NAMES) >= 16
    assert sum(path.stat().st_size for path in GALLERY.iterdir()) < 6e6


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
    assert entry["file"] in (GALLERY / "LICENCES.md").read_text()


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


def test_no_picture_is_a_training_image() -> None:
    for name in NAMES:
        picture = PIL.Image.open(io.BytesIO(Image.gallery(name).data))
        assert picture.size != (64, 64)
