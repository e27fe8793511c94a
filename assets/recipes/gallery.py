"""Makes the gallery: rendered scenes with their masks, and photos that may be shipped, with their licences.

    pip install scikit-image scikit-learn matplotlib
    python assets/recipes/gallery.py --photos FOLDER --out assets/gallery

FOLDER holds the photos named in PHOTOS under "wikimedia" (download them from the page given there, or take them from
Debian's package gcompris-qt-data 3.1, which ships them at 1024 px); the others come with the libraries above.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import PIL.Image
from scene_generator import Scene, make_scene

LONGEST = 1024
NOTICE = {
    "cat_motorcycle": "One picture, two questions: the map moves from the cat to the motorcycle with the class asked about.",
    "shortcut_kept": "The model says square, and is right for the wrong reason: what it looks at is the background's colour.",
    "shortcut_broken": "The same square on another class's colour: the answer follows the background, not the shape.",
    "scene_pair_a": "Its twin in the gallery differs in nothing but the shape; compare where the two maps lie.",
}
"""What to notice in an example."""
COMMONS = "https://commons.wikimedia.org/wiki/File:"

# name, title, alt, author, licence, source; the source says where the picture comes from
PHOTOS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("chelsea", "Cat", "The face of a tabby cat, close up, looking to the right", "Stefan van der Walt", "CC0", "scikit-image: chelsea"),
    ("astronaut", "Astronaut", "A smiling astronaut in an orange suit before a flag and a model of the shuttle", "NASA (Eileen Collins)", "public domain", "scikit-image: astronaut"),
    ("coffee", "Coffee", "A cup of coffee on a red saucer with a spoon, on a wooden table", "Rachel Michetti", "CC0", "scikit-image: coffee"),
    ("motorcycle", "Motorcycle", "A red motorcycle in a workshop", "Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein", "Middlebury Stereo 2014, as distributed by scikit-image", "scikit-image: stereo_motorcycle"),
    ("rocket", "Rocket", "A rocket on its launch pad at dusk", "SpaceX", "CC0", "scikit-image: rocket"),
    ("palace", "Summer palace", "A pavilion of the Summer Palace in Beijing above a lake", "danielbuechele", "CC BY 2.0", "scikit-learn: china.jpg"),
    ("dahlia", "Dahlia", "An orange dahlia against dark leaves", "vultilion", "CC BY 2.0", "scikit-learn: flower.jpg"),
    ("hopper", "Grace Hopper", "Portrait of Grace Hopper in uniform before a flag", "James S. Davis, U.S. Navy", "public domain", "matplotlib: grace_hopper.jpg"),
    ("moose", "Moose", "A bull moose lying in a meadow before dark trees", "Ryan Hagerty, U.S. Fish and Wildlife Service", "public domain", f"{COMMONS}Male_Moose.jpg"),
    ("panda", "Panda", "A giant panda sitting on a log", "Aaron Logan", "CC BY 1.0", f"{COMMONS}Lightmatter_panda.jpg"),
    ("polar_bear", "Polar bear", "A polar bear walking across snow and willows", "Arturo de Frias Marques", "CC BY-SA 4.0", f"{COMMONS}Polar_Bear_AdF.jpg"),
    ("lemur", "Lemurs", "Two ring-tailed lemurs on rocks before green leaves", "Sannse", "CC BY-SA 3.0", f"{COMMONS}Ring_tailed_lemur_and_twins.jpg"),
    ("koala", "Koala", "A koala climbing a tree", "David Iliff", "CC BY-SA 3.0", f"{COMMONS}Koala_climbing_tree.jpg"),
    ("chameleon", "Chameleon", "A chameleon on a branch, hard to tell from the leaves", "Laika ac", "CC BY-SA 2.0", f"{COMMONS}Chameleon_(16139192778).jpg"),
)  # fmt: skip

# name, title, alt, model, arguments of make_scene
SCENES: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("scene_star", "Star", "", "scenes", {"seed": 11, "label": 3}),
    ("scene_heart", "Heart", "", "scenes", {"seed": 15, "label": 7}),
    ("scene_ring", "Ring", "", "scenes", {"seed": 13, "label": 5}),
    ("scene_cross", "Cross", "", "scenes", {"seed": 20, "label": 4}),
    ("scene_pair_a", "Pair: a circle", "one of a pair that differs in nothing but the shape", "scenes", {"seed": 32, "label": 0}),
    ("scene_pair_b", "Pair: a square", "one of a pair that differs in nothing but the shape", "scenes", {"seed": 32, "label": 0, "change": {"shape": "square"}}),
    ("shortcut_kept", "Shortcut kept", "the background has the colour of the class", "scenes-shortcut", {"seed": 9, "label": 1, "change": {"ground_hue": 0.125}}),
    ("shortcut_broken", "Shortcut broken", "the background has the colour of another class", "scenes-shortcut", {"seed": 9, "label": 1, "change": {"ground_hue": 0.625}}),
)  # fmt: skip


def photo(name: str, folder: Path) -> PIL.Image.Image:
    """The picture of an entry of PHOTOS."""
    source = next(entry[5] for entry in PHOTOS if entry[0] == name)
    library, _, item = source.partition(": ")
    if library == "scikit-image":
        import skimage.data

        found = getattr(skimage.data, item)()
        return PIL.Image.fromarray(found[0] if isinstance(found, tuple) else found).convert("RGB")
    if library == "scikit-learn":
        from sklearn.datasets import load_sample_image

        return PIL.Image.fromarray(load_sample_image(item))
    if library == "matplotlib":
        import matplotlib.cbook

        return PIL.Image.open(matplotlib.cbook.get_sample_data(item, asfileobj=False)).convert("RGB")
    return PIL.Image.open(next(folder.glob(f"{name}.*"))).convert("RGB")


def beside(left: PIL.Image.Image, right: PIL.Image.Image, height: int = 420) -> PIL.Image.Image:
    """Two photos side by side, each cut around its middle to the same size."""
    width = round(height * 1.05)
    both = PIL.Image.new("RGB", (2 * width, height))
    for index, each in enumerate((left, right)):
        scale = max(width / each.width, height / each.height)
        size = (round(each.width * scale), round(each.height * scale))
        x, y = (size[0] - width) // 2, (size[1] - height) // 2
        both.paste(each.resize(size, PIL.Image.Resampling.LANCZOS).crop((x, y, x + width, y + height)), (index * width, 0))
    return both


def described(scene: Scene, what: str) -> str:
    """The alt text of a rendered scene."""
    target, *others = scene.things
    rest = " and ".join(f"a {each.shape}" for each in others)
    return f"A {target.texture} {target.shape} among {rest}, on {scene.ground}" + (f"; {what}" if what else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    pictures = {entry[0]: photo(entry[0], options.photos) for entry in PHOTOS}
    pair = ("cat_motorcycle", "Cat and motorcycle", "A cat's face at the left, a red motorcycle at the right, side by side",
            "see chelsea and motorcycle", "as the two photos", "two photos of this gallery, side by side")  # fmt: skip
    pictures["cat_motorcycle"] = beside(pictures["chelsea"], pictures["motorcycle"])
    for name, title, alt, author, licence, source in (pair, *PHOTOS):
        picture = pictures[name]
        picture.thumbnail((LONGEST, LONGEST), PIL.Image.Resampling.LANCZOS)
        picture.save(options.out / f"{name}.jpg", quality=86, optimize=True)
        entries.append({"name": name, "file": f"{name}.jpg", "mask": None, "model": "photos", "title": title, "alt": alt,
                        "licence": licence, "source": source, "author": author, "notice": NOTICE.get(name, "")})  # fmt: skip
    for name, title, what, model, arguments in SCENES:
        scene = make_scene(**arguments)
        PIL.Image.fromarray(scene.image).save(options.out / f"{name}.png", optimize=True)
        PIL.Image.fromarray(scene.mask.astype(np.uint8) * 255).save(options.out / f"{name}_mask.png", optimize=True)
        entries.append({"name": name, "file": f"{name}.png", "mask": f"{name}_mask.png", "model": model, "title": title,
                        "alt": described(scene, what), "licence": "Apache-2.0", "source": "rendered by assets/recipes/scene_generator.py",
                        "author": "Actiscope", "notice": NOTICE.get(name, "")})  # fmt: skip
    (options.out / "gallery.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    lines = ["# Licences of the gallery", "", "Photos are scaled to at most 1024 pixels a side and otherwise as their authors made them.", "",
             "| file | picture | author | licence | source |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [f"| {each['file']} | {each['title']} | {each['author']} | {each['licence']} | {each['source']} |" for each in entries]
    (options.out / "LICENCES.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
