"""Rendered scenes with exact masks: one target shape decides the class, other things lie around. Needs numpy alone.

    scene = make_scene(seed=7)          # scene.image, scene.label, scene.mask ...
    pair = make_scene(seed=7), make_scene(seed=7, change={"texture": "dots"})

Everything is drawn from the seed in a fixed order, so a scene with one attribute changed differs in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZE = 96
"""Side of a scene in pixels."""
FINE = 3
"""Samples per pixel and axis; their mean is the coverage of a pixel."""
CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "heart")
OTHERS = ("bar", "corner", "ellipse", "blob")
TEXTURES = ("plain", "stripes", "dots", "checks", "gradient", "noise")
GROUNDS = ("noise", "gradient", "stripes", "clouds")
CHANGES = ("shape", "texture", "hue", "ground", "ground_hue")
"""What a counterfactual may replace."""

Grid = np.ndarray


def _star(u: Grid, v: Grid) -> Grid:
    angle = np.arctan2(u, -v) % (2 * np.pi / 5) - np.pi / 5
    # between the tip (radius 1) and the notch (radius 0.42) the edge is a straight line
    tip, notch = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]), np.array([0.42, 0.0])
    x, y = np.hypot(u, v) * np.cos(angle), np.abs(np.hypot(u, v) * np.sin(angle))
    return (x - notch[0]) * (tip[1] - notch[1]) - (y - notch[1]) * (tip[0] - notch[0]) < 0


def _heart(u: Grid, v: Grid) -> Grid:
    x, y = 1.4 * u, -1.4 * v + 0.12
    return (x**2 + y**2 - 1) ** 3 - 1.4 * x**2 * y**3 < 0


def _blob(u: Grid, v: Grid) -> Grid:
    angle = np.arctan2(v, u)
    return np.hypot(u, v) < 0.72 + 0.16 * np.cos(2 * angle + 1) + 0.1 * np.cos(3 * angle + 2)


SHAPES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": lambda u, v: np.hypot(u, v) < 0.9,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.7,
    "triangle": lambda u, v: (v < 0.55) & (-v + 1.732 * np.abs(u) < 1.0) & (v > -1),
    "star": _star,
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 0.95),
    "ring": lambda u, v: (np.hypot(u, v) < 0.95) & (np.hypot(u, v) > 0.55),
    "crescent": lambda u, v: (np.hypot(u, v) < 0.95) & (np.hypot(u - 0.45, v) > 0.75),
    "heart": _heart,
    "bar": lambda u, v: (np.abs(u) < 0.93) & (np.abs(v) < 0.2),
    "corner": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) < 0.7) & ~((u > -0.3) & (v < 0.3)),
    "ellipse": lambda u, v: np.hypot(u, v / 0.42) < 0.95,
    "blob": _blob,
}


@dataclass(frozen=True)
class Thing:
    """One object: what it is, where (centre and radius in pixels), turned by `angle`, and how it is painted."""

    shape: str
    x: float
    y: float
    radius: float
    angle: float
    texture: str
    hue: float
    box: tuple[float, float, float, float]
    """left, top, right, bottom as fractions of the scene"""


@dataclass(frozen=True)
class Scene:
    """image: uint8 [96, 96, 3]. label: number of the class. mask: bool [96, 96], pixels at least half covered by the
    target; coverage: the share of each pixel that it covers. objects: the masks of all things, the target first."""

    image: np.ndarray
    label: int
    mask: np.ndarray
    coverage: np.ndarray
    objects: tuple[np.ndarray, ...]
    things: tuple[Thing, ...]
    ground: str
    ground_hue: float


def make_scene(
    seed: int, label: int | None = None, correlation: float = 0.0, change: Mapping[str, Any] | None = None
) -> Scene:
    """Render the scene of a seed.

    Args:
        label: the class; drawn from the seed unless given.
        correlation: probability that the background's hue is the one that belongs to the class (hue = label / 8).
        change: attributes of the target (`texture`, `hue`, `shape`) or the scene (`ground`, `ground_hue`) to replace.

    Raises:
        ValueError: `change` names something else.
    """
    if unknown := set(change or {}) - set(CHANGES):
        raise ValueError(f"A scene has no {', '.join(sorted(unknown))} to change, only {', '.join(CHANGES)}.")
    rng, change = np.random.default_rng([seed, 71]), dict(change or {})
    label = int(rng.integers(8)) if label is None else (rng.integers(8), label)[1]
    belongs = label / 8  # of the class as drawn: another shape must not bring another background with it
    if "shape" in change:
        label = CLASSES.index(change["shape"])
    ground, free_hue = str(rng.choice(GROUNDS)), float(rng.random())
    told = rng.random() < correlation
    ground = change.get("ground", ground)
    ground_hue = change.get("ground_hue", belongs if told else free_hue)
    number = int(rng.integers(2, 5))
    things: list[Thing] = []
    while len(things) < number:
        first = not things
        shape = CLASSES[label] if first else str(rng.choice(OTHERS))
        radius = float(rng.uniform(13, 22) if first else rng.uniform(9, 16))
        texture, hue, angle = str(rng.choice(TEXTURES)), float(rng.random()), float(rng.uniform(0, 2 * np.pi))
        if first:
            texture, hue = change.get("texture", texture), change.get("hue", hue)
        for _ in range(60):
            x, y = rng.uniform(radius, SIZE - radius, 2)
            if all(np.hypot(x - each.x, y - each.y) > 1.05 * (radius + each.radius) for each in things):
                box = ((x - radius) / SIZE, (y - radius) / SIZE, (x + radius) / SIZE, (y + radius) / SIZE)
                things.append(Thing(shape, float(x), float(y), radius, angle, texture, hue, box))
                break
        else:
            number -= 1
    paint = np.random.default_rng([seed, 72])
    image = _ground(ground, ground_hue, paint)
    masks = []
    for thing in things:
        coverage, colours = _thing(thing, np.random.default_rng([seed, 73, len(masks)]))
        image = image * (1 - coverage[..., None]) + colours * coverage[..., None]
        masks.append(coverage)
    pixels = (image * 255).round().clip(0, 255).astype(np.uint8)
    objects = tuple(each >= 0.5 for each in masks)
    return Scene(pixels, label, objects[0], masks[0], objects, tuple(things), ground, float(ground_hue))


def _thing(thing: Thing, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coverage [96, 96] and colours [96, 96, 3] of one object."""
    at = (np.arange(SIZE * FINE) + 0.5) / FINE
    x, y = (at[None, :] - thing.x) / thing.radius, (at[:, None] - thing.y) / thing.radius
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    inside = SHAPES[thing.shape](cos * x + sin * y, -sin * x + cos * y)
    coverage = inside.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3))
    light = rng.uniform(0.72, 0.95)
    bright, dark = _rgb(thing.hue, 0.75, light), _rgb(thing.hue, 0.85, 0.42 * light)
    place = np.arange(SIZE) + 0.5
    u, v = np.broadcast_arrays(place[None, :] - thing.x, place[:, None] - thing.y)
    period = rng.uniform(5, 8)
    pattern = {
        "plain": np.ones_like(u),
        "stripes": ((u + v) % period < period / 2).astype(float),
        "dots": (np.hypot(u % period - period / 2, v % period - period / 2) > period / 3.2).astype(float),
        "checks": ((u % period < period / 2) ^ (v % period < period / 2)).astype(float),
        "gradient": np.clip((v / thing.radius + 1) / 2, 0, 1),
        "noise": rng.random((SIZE, SIZE)),
    }[thing.texture]
    return coverage, dark + (bright - dark) * pattern[..., None]


def _ground(kind: str, hue: float, rng: np.random.Generator) -> np.ndarray:
    """A background [96, 96, 3] of one hue, paler than the objects."""
    at = np.arange(SIZE) / SIZE
    x, y = np.broadcast_arrays(at[None, :], at[:, None])
    turn, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.2)
    along = x * np.cos(turn) + y * np.sin(turn)
    coarse = rng.random((7, 7))
    pattern = {
        "noise": rng.random((SIZE, SIZE)),
        "gradient": (along - along.min()) / np.ptp(along),
        "stripes": (along % period < period / 2).astype(float),
        "clouds": _smooth(coarse),
    }[kind]
    low, high = _rgb(hue, 0.45, 0.45), _rgb(hue, 0.35, 0.68)
    return low + (high - low) * pattern[..., None]


def _smooth(coarse: np.ndarray) -> np.ndarray:
    """Bilinear enlargement to the size of a scene."""
    at = np.linspace(0, len(coarse) - 1.001, SIZE)
    low, part = at.astype(int), at - at.astype(int)
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV to RGB, all from 0 to 1."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
