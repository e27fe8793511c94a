"""The rendered scenes are exact and the models on them do what their cards say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import zoo
from interp.samples import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "assets" / "recipes"))

from scene_generator import CLASSES, OTHERS, SHAPES, make_scene  # noqa: E402

FRESH = 20_000_000
"""No recipe draws seeds from here on."""


@pytest.mark.parametrize("seed", [1, 2, 77])
def test_a_seed_makes_one_scene(seed: int) -> None:
    one, two, other = make_scene(seed), make_scene(seed), make_scene(seed + 1)
    assert np.array_equal(one.image, two.image) and one.things == two.things
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("seed", range(12))
def test_another_colour_of_the_target_changes_the_pixels_it_covers_and_no_others(seed: int) -> None:
    scene = make_scene(seed)
    painted = make_scene(seed, change={"hue": (scene.things[0].hue + 0.4) % 1})
    changed = (scene.image != painted.image).any(2)
    assert not changed[scene.coverage == 0].any()
    assert changed[scene.coverage == 1].mean() > 0.98  # a stripe may be as dark in both
    assert np.array_equal(scene.mask, scene.coverage >= 0.5)


@pytest.mark.parametrize("seed", range(12))
def test_another_background_changes_no_pixel_that_is_covered(seed: int) -> None:
    scene, other = make_scene(seed), make_scene(seed, change={"ground": "gradient", "ground_hue": 0.3})
    covered = np.any([each for each in scene.objects], axis=0) & (scene.coverage == 1)
    assert np.array_equal(scene.image[covered], other.image[covered])


@pytest.mark.parametrize("correlation", [0.0, 1.0])
def test_another_shape_changes_the_target_and_nothing_around_it(correlation: float) -> None:
    for seed in range(10):
        scene = make_scene(seed, correlation=correlation)
        other = make_scene(seed, correlation=correlation, change={"shape": CLASSES[(scene.label + 1) % 8]})
        changed = (scene.image != other.image).any(2)
        assert changed.any() and not changed[np.maximum(scene.coverage, other.coverage) == 0].any()


def test_a_change_of_what_a_scene_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no colour to change"):
        make_scene(1, change={"colour": 0.5})


def test_exactly_one_target_and_it_is_the_label() -> None:
    for seed in range(200):
        scene = make_scene(seed)
        assert scene.things[0].shape == CLASSES[scene.label]
        assert all(each.shape in OTHERS for each in scene.things[1:])
        assert len(scene.things) in (2, 3, 4)
        assert not np.logical_and.reduce([scene.objects[0], np.any(scene.objects[1:], axis=0)]).any()


def test_every_shape_lies_in_its_circle_so_that_nothing_is_cut_off() -> None:
    at = np.linspace(-1.5, 1.5, 601)
    u, v = np.meshgrid(at, at)
    for name, inside in SHAPES.items():
        assert np.hypot(u, v)[inside(u, v)].max() <= 1.05, name


def test_the_correlation_is_that_of_the_background_with_the_class() -> None:
    told = [make_scene(seed, correlation=1.0) for seed in range(50)]
    assert all(scene.ground_hue == scene.label / 8 for scene in told)
    free = np.array([make_scene(seed).ground_hue - make_scene(seed).label / 8 for seed in range(50)])
    assert (np.abs(free) > 0.02).mean() > 0.8


def accuracy(name: str, number: int, correlation: float) -> float:
    model = zoo.load(name)
    right = 0
    for start in range(0, number, 50):
        scenes = [make_scene(FRESH + start + each, correlation=correlation) for each in range(50)]
        logits = model([Image.of(scene.image) for scene in scenes])
        right += int((logits.argmax(1) == torch.tensor([scene.label for scene in scenes])).sum())
    return right / number


@pytest.mark.slow
def test_scenes_reads_fresh_scenes() -> None:
    assert accuracy("scenes", 400, 0.0) >= 0.98


def test_the_shortcut_model_falls_when_the_background_no_longer_tells() -> None:
    kept, broken = accuracy("scenes-shortcut", 100, 1.0), accuracy("scenes-shortcut", 100, 0.0)
    assert kept >= 0.95
    assert broken <= 0.5
