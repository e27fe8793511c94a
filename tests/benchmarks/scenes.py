"""How much of each map lies on the object: `python -m tests.benchmarks.scenes [--number 100] [--write]`.

Over rendered scenes with exact masks that `scenes` was not trained on, the share of a map's positive part that
lies inside the mask of the object that makes the class, beside maps that know nothing. Prints a table in Markdown;
`--write` puts it between the scenes marks of README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

import numpy as np

from assets.recipes.scene_generator import Scene, make_scene
from interp import zoo
from interp.methods import METHODS
from interp.methods.change.randomize_weights import randomize_weights
from interp.model import VisionModel
from interp.results import Heatmap, resize
from interp.samples import Image
from tests.benchmarks.speed import write

FIRST = 20_000_000
"""Seeds from 10,000,000 on are never trained on; these are not what the recipe validates on either."""
RANDOM, CENTRE, AREA = "uniform random map", "Gaussian at the centre", "the same everywhere (the object's area)"
UNTRAINED = "Grad-CAM of a network with random weights"


def held_out(number: int) -> Iterator[tuple[Image, Scene]]:
    """Scenes without the background's hint, each with its class and masks."""
    for seed in range(FIRST, FIRST + number):
        scene = make_scene(seed)
        yield Image.of(scene.image, f"scene {seed}", scene.mask), scene


def share(values: np.ndarray, mask: np.ndarray) -> float:
    """The share of the positive part inside the mask; NaN without any."""
    positive = np.maximum(values, 0)
    return float(positive[mask].sum() / positive.sum()) if positive.sum() > 0 else float("nan")


def blind(scene: Scene, grid: tuple[int, int], seed: int) -> dict[str, float]:
    """What maps get that have not seen the image: as fine as the layer's grid where that matters."""
    height, width = scene.mask.shape
    random = resize(np.random.default_rng(seed).random(grid), (height, width))
    y, x = (np.arange(n) / (n - 1) - 0.5 for n in (height, width))
    centre = np.exp(-(y[:, None] ** 2 + x**2) / (2 * 0.25**2))
    return {
        RANDOM: share(random, scene.mask),
        CENTRE: share(centre, scene.mask),
        AREA: float(scene.mask.mean()),
    }


def shares(model: VisionModel, keys: Iterable[str], number: int, site: str | None = None) -> dict[str, list[float]]:
    """For each method by name, and each blind map, the share of every scene."""
    found: dict[str, list[float]] = {}
    for index, (image, scene) in enumerate(held_out(number)):
        grid = (0, 0)
        for key in keys:
            method = METHODS[key]
            settings = {"site": site} if any(each.name == "site" for each in method.controls) else {}
            if method.refuses(model) or (site is not None and not settings):
                continue
            map_: Heatmap = method(model, image, target=scene.label, **settings)
            grid = (map_.values.shape[0], map_.values.shape[1])
            found.setdefault(method.name, []).append(map_.share(scene.mask))
        with randomize_weights(model, image, site="input", seed=index):
            map_ = METHODS["grad_cam"](model, image, target=scene.label, site=site)
        found.setdefault(UNTRAINED, []).append(map_.share(scene.mask))
        for name, value in blind(scene, grid, index).items():
            found.setdefault(name, []).append(value)
        model.forget()
    return found


def cell(values: list[float] | None) -> str:
    """Mean and standard error in percent, and how many maps had no positive part."""
    if values is None:
        return ""
    good = np.array([value for value in values if np.isfinite(value)])
    blank = len(values) - len(good)
    error = good.std(ddof=1) / np.sqrt(len(good)) if len(good) > 1 else float("nan")
    text = f"{100 * good.mean():.1f} ± {100 * error:.1f}"
    return text + (f" ({blank} blank)" if blank else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    model = zoo.load("scenes")
    assert isinstance(model, VisionModel)
    keys = [key for key, method in METHODS.items() if method.family == "cam"]
    last, middle = model.spatial_sites()[-1], model.spatial_sites()[-2]
    columns = {str(site): shares(model, keys, options.number, str(site)) for site in (last, middle)}
    columns[str(last)] |= {
        name: values for name, values in shares(model, ["cam"], options.number).items() if name == METHODS["cam"].name
    }
    controls = [UNTRAINED, CENTRE, RANDOM, AREA]
    found = columns[str(last)]
    rows = sorted((name for name in found if name not in controls), key=lambda name: -float(np.nanmean(found[name])))
    lines = [
        f"Share of the map's positive part inside the exact mask of the object, in percent, over {options.number} "
        f"rendered scenes that `scenes` has not seen: mean ± standard error.",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "--:|" * len(columns),
        *(
            f"| {row} | " + " | ".join(cell(each.get(row)) for each in columns.values()) + " |"
            for row in rows + controls
        ),
    ]
    text = "\n".join(lines)
    print(text)
    if options.write:
        write(text, "scenes")


if __name__ == "__main__":
    main()
