"""Makes the gallery: rendered scenes with their masks, and photos that may be shipped, with their licences.

    pip install scikit-image scikit-learn matplotlib
    apt-get download gcompris-qt-data && dpkg-deb -x gcompris-qt-data_3.1*.deb unpacked
    python assets/recipes/gallery.py --packed unpacked/usr/share/gcompris-qt/rcc --out assets/gallery

Photos come with the libraries above and with Debian's gcompris-qt-data. Authors and licences of the latter are those of
the README beside the photos: the package's own copyright file still describes the photos of an earlier version.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import sys
import zlib
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
    ("motorcycle", "Motorcycle", "A red motorcycle in a workshop", "Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein", "BSD-3-Clause, as part of scikit-image, which names no other terms", "scikit-image: stereo_motorcycle"),
    ("rocket", "Rocket", "A rocket on its launch pad at dusk", "SpaceX", "public domain", "scikit-image: rocket"),
    ("palace", "Summer palace", "A pavilion of the Summer Palace in Beijing above a lake", "danielbuechele", "CC BY 2.0", "scikit-learn: china.jpg"),
    ("dahlia", "Dahlia", "An orange dahlia against dark leaves", "vultilion", "CC BY 2.0", "scikit-learn: flower.jpg"),
    ("hopper", "Grace Hopper", "Portrait of Grace Hopper in uniform before a flag", "James S. Davis, U.S. Navy", "public domain", "matplotlib: grace_hopper.jpg"),
    ("dog", "Dog", "A German shepherd standing in dry grass, its tongue out", "Hans Kemperman", "public domain", f"{COMMONS}German-shepherd-4040871920._(2).jpg"),
    ("jaguar", "Jaguars", "Two jaguars at play on rocks", "Frieda Bredesen", "CC0", f"{COMMONS}Two_Jaguar_Sisters.jpg"),
    ("duck", "Duck", "A white duck at the edge of dark water", "Bernard Spragg", "CC0", f"{COMMONS}Aylesbury_Duck._(9373723157).jpg"),
    ("sheep", "Sheep", "A sheep in a meadow, facing us", "Rob Mitchell", "CC0", f"{COMMONS}Sheep_(33625876592).jpg"),
    ("eiffel_tower", "Eiffel Tower", "The Eiffel Tower under a blue sky, trees to both sides", "Tognopop", "public domain", f"{COMMONS}Eiffel_Tower_20051010.jpg"),
    ("pont_du_gard", "Pont du Gard", "A Roman aqueduct of three rows of arches across a wooded valley", "Mimova", "public domain", f"{COMMONS}Pontdugard.jpg"),
    ("moose", "Moose", "A bull moose lying in a meadow before dark trees", "Ryan Hagerty, U.S. Fish and Wildlife Service", "public domain", f"{COMMONS}Male_Moose.jpg"),
    ("panda", "Panda", "A giant panda sitting behind a ledge of stone", "Jeff Kubina", "public domain", f"{COMMONS}Giant_Panda_2004-03-2.jpg"),
    ("polar_bear", "Polar bear", "A polar bear walking across snow and willows", "anonymous", "public domain", f"{COMMONS}Churchill_Wildlife_Management_Area_polar_bear30.JPG"),
    ("lemur", "Lemurs", "Two ring-tailed lemurs on a birch log before green leaves", "Mathias Appel", "CC0", f"{COMMONS}Lemur_(37122852696).jpg"),
    ("koala", "Koala", "A koala in the fork of a tree", "BurningWell", "public domain", f"{COMMONS}Koala_Perth_Zoo.jpg"),
    ("chameleon", "Garden lizard", "A scaly garden lizard climbing a twig among bright green leaves", "Nilesh1104", "public domain", f"{COMMONS}GARDEN_CHAMELEON.jpeg"),
)  # fmt: skip

PACKED = {
    **{name: ("explore_farm_animals", name) for name in ("dog", "duck", "sheep")},
    **{name: ("explore_world_animals", name) for name in ("jaguar", "moose", "panda", "polar_bear", "lemur", "koala", "chameleon")},
    "eiffel_tower": ("explore_monuments", "eiffelTower"), "pont_du_gard": ("explore_monuments", "pontduGard"),
}  # fmt: skip
"""In which file of gcompris-qt-data a photo is, and what it is called there."""

# name, title, alt, the photos at the left and at the right
PAIRS: tuple[tuple[str, str, str, str, str], ...] = (
    ("cat_motorcycle", "Cat and motorcycle", "A cat's face at the left, a red motorcycle at the right, side by side", "chelsea", "motorcycle"),
    ("dog_duck", "Dog and duck", "A German shepherd at the left, a white duck at the right, side by side", "dog", "duck"),
)  # fmt: skip

# name, title, alt, model, arguments of make_scene; seeds that no recipe trains or measures on
SCENES: tuple[tuple[str, str, str, str, dict[str, Any]], ...] = (
    ("scene_star", "Star", "", "scenes", {"seed": 50_000_038}),
    ("scene_heart", "Heart", "", "scenes", {"seed": 50_000_025}),
    ("scene_ring", "Ring", "", "scenes", {"seed": 50_000_097}),
    ("scene_cross", "Cross", "", "scenes", {"seed": 50_000_044}),
    ("scene_pair_a", "Pair: a circle", "one of a pair that differs in nothing but the shape", "scenes", {"seed": 50_000_032}),
    ("scene_pair_b", "Pair: a square", "one of a pair that differs in nothing but the shape", "scenes", {"seed": 50_000_032, "change": {"shape": "square"}}),
    ("shortcut_kept", "Shortcut kept", "the background has the colour of the class", "scenes-shortcut", {"seed": 50_000_061, "change": {"ground_hue": 0.125}}),
    ("shortcut_broken", "Shortcut broken", "the background has the colour of another class", "scenes-shortcut", {"seed": 50_000_061, "change": {"ground_hue": 0.625}}),
)  # fmt: skip


def packed(folder: Path, activity: str, wanted: str) -> bytes:
    """A file out of a Qt resource file, a tree of names whose leaves point to bytes."""
    data = (folder / f"{activity}.rcc").read_bytes()
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    node = 22 if version >= 2 else 14

    def find(number: int) -> bytes | None:
        at = tree + number * node
        name, flags = struct.unpack(">IH", data[at : at + 6])
        if flags & 2:
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            return next((found for each in range(first, first + count) if (found := find(each))), None)
        length = struct.unpack(">H", data[names + name : names + name + 2])[0]
        start = names + name + 6
        if data[start : start + 2 * length].decode("utf-16-be") != wanted:
            return None
        start = contents + struct.unpack(">I", data[at + 10 : at + 14])[0]
        held = data[start + 4 : start + 4 + struct.unpack(">I", data[start : start + 4])[0]]
        return zlib.decompress(held[4:]) if flags & 1 else held

    found = find(0)
    if found is None:
        raise FileNotFoundError(f"{activity}.rcc has no {wanted}")
    return found


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
    activity, item = PACKED[name]
    return PIL.Image.open(io.BytesIO(packed(folder, activity, f"{item}.webp"))).convert("RGB")


def beside(left: PIL.Image.Image, right: PIL.Image.Image, height: int = 420) -> PIL.Image.Image:
    """Two photos side by side, each cut around its middle to the same size."""
    width = round(height * 1.05)
    both = PIL.Image.new("RGB", (2 * width, height))
    for index, each in enumerate((left, right)):
        scale = max(width / each.width, height / each.height)
        size = (round(each.width * scale), round(each.height * scale))
        x, y = (size[0] - width) // 2, (size[1] - height) // 2
        both.paste(
            each.resize(size, PIL.Image.Resampling.LANCZOS).crop((x, y, x + width, y + height)), (index * width, 0)
        )
    return both


def described(scene: Scene, what: str) -> str:
    """The alt text of a rendered scene."""
    target, *others = scene.things
    texture = {"stripes": "striped", "dots": "dotted", "checks": "checked", "gradient": "shaded", "noise": "speckled"}
    ground = {"stripes": "striped", "gradient": "shaded", "noise": "speckled", "clouds": "clouded"}
    seen = [each.shape for each in others]
    rest = [f"two {name}s" if seen.count(name) == 2 else f"three {name}s" if seen.count(name) == 3
            else f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in dict.fromkeys(seen)]  # fmt: skip
    among = " and ".join((", ".join(rest[:-1]), rest[-1]) if len(rest) > 1 else rest)
    alt = f"A {texture.get(target.texture, target.texture)} {target.shape} beside {among}, on a {ground[scene.ground]} background"
    return alt + (f"; {what}" if what else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packed", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    pictures = {entry[0]: photo(entry[0], options.packed) for entry in PHOTOS}
    licences = {entry[0]: entry[4] for entry in PHOTOS}
    pairs = []
    for name, title, alt, left, right in PAIRS:
        pictures[name] = beside(pictures[left], pictures[right])
        pairs.append((name, title, alt, f"see {left} and {right}", f"{licences[left]}; {licences[right]}",
                      "two photos of this gallery, cut and put side by side"))  # fmt: skip
    for name, title, alt, author, licence, source in (pairs[0], *PHOTOS[:5], *pairs[1:], *PHOTOS[5:]):
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
    lines = ["# Licences of the gallery", "", "Photos are scaled to at most 1024 pixels a side and otherwise as their authors made them, but for those side by side.", "",
             "| file | picture | author | licence | source |", "|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {each['file']} | {each['title']} | {each['author']} | {each['licence']} | {each['source']} |"
        for each in entries
    ]
    (options.out / "LICENCES.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
