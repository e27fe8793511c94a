"""Superpixels: connected patches of one colour, by k-means over colour and place (SLIC)."""

import math
from itertools import product

import numpy as np
from jaxtyping import Float, Int, UInt8

COMPACTNESS = 10.0
"""How many units of Lab colour weigh as much as the distance between the first centres."""
ROUNDS = 10


def superpixels(picture: UInt8[np.ndarray, "height width 3"], number: int) -> Int[np.ndarray, "height width"]:
    """Divide a picture into about `number` patches; the labels count from 0.

    The picture starts as a grid of cells. In each round the centres are the means of their pixels, in colour and place,
    and every pixel joins the nearest of nine: those that began as its own cell and as the cells around it. (SLIC
    searches a window around each centre instead.) In the end each patch keeps its largest connected part, and what is
    left joins the patches it touches.
    """
    features = _features(picture, number)
    height, width, size = features.shape
    rows, columns = _grid(height, width, number)
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    near = [
        (np.clip(row + down, 0, rows - 1)[:, None] * columns + np.clip(column + right, 0, columns - 1)).ravel()
        for down, right in AROUND
    ]
    flat = np.ascontiguousarray(features.reshape(-1, size).T)
    labels = (row[:, None] * columns + column).ravel()
    centres = np.zeros((size, rows * columns))
    for _ in range(ROUNDS):
        count = np.bincount(labels, minlength=rows * columns)
        for centre, feature in zip(centres, flat, strict=True):
            np.divide(np.bincount(labels, feature, rows * columns), count, out=centre, where=count > 0)
        best = np.full(height * width, np.inf)
        for each in near:
            distance = np.zeros(height * width)
            for centre, feature in zip(centres, flat, strict=True):
                distance += (centre[each] - feature) ** 2
            closer = distance < best
            best[closer], labels[closer] = distance[closer], each[closer]
    return _joined(labels.reshape(height, width))


AROUND = list(product((-1, 0, 1), repeat=2))


def _grid(height: int, width: int, number: int) -> tuple[int, int]:
    """Rows and columns of nearly square cells, about `number` of them."""
    rows = min(max(round(math.sqrt(number * height / width)), 1), height)
    return rows, min(max(round(number / rows), 1), width)


def _features(picture: UInt8[np.ndarray, "height width 3"], number: int) -> Float[np.ndarray, "height width 5"]:
    """Lab colour and place of each pixel, scaled so that plain distance weighs them as SLIC does."""
    height, width = picture.shape[:2]
    scale = COMPACTNESS / math.sqrt(height * width / number)
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), 2)
    return np.concatenate([_lab(picture), scale * places], 2)


def _lab(picture: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width 3"]:
    """CIE L*a*b* (D65) of sRGB."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[picture]
    xyz = linear @ SRGB_TO_XYZ.T / SRGB_TO_XYZ.sum(1)
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29), 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 2)


SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""IEC 61966-2-1; white is the sum of its columns."""


def _joined(labels: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """Every label made connected (4 neighbours), and counted from 0."""
    parts = _parts(labels)
    size = np.bincount(parts.ravel(), minlength=parts.size)
    # the largest part of each label, of equals the first: sorted by label, then from large to small
    firsts = np.flatnonzero(size)
    owner = labels.ravel()[firsts]
    order = np.lexsort((firsts, -size[firsts], owner))
    kept = firsts[order][np.unique(owner[order], return_index=True)[1]]
    out = np.where(np.isin(parts, kept), labels, -1)
    while (out < 0).any():
        before = np.pad(out, 1, constant_values=-1)
        for neighbour in (before[:-2, 1:-1], before[1:-1, :-2], before[1:-1, 2:], before[2:, 1:-1]):
            out = np.where(out < 0, neighbour, out)
    return np.unique(out, return_inverse=True)[1].reshape(out.shape)


def _parts(labels: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """For each pixel the number of the first pixel of its connected part: trees that are hooked onto each other."""
    number = np.arange(labels.size).reshape(labels.shape)
    right, down = labels[:, :-1] == labels[:, 1:], labels[:-1] == labels[1:]
    one = np.concatenate([number[:, :-1][right], number[:-1][down]])
    other = np.concatenate([number[:, 1:][right], number[1:][down]])
    root = number.ravel()
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        if (low == high).all():
            return root.reshape(labels.shape)
        np.minimum.at(root, high, low)
        while (root[root] != root).any():
            root = root[root]


def superpixels_reference(picture: UInt8[np.ndarray, "height width 3"], number: int) -> Int[np.ndarray, "height width"]:
    """The same, pixel by pixel."""
    features = _features(picture, number)
    height, width, size = features.shape
    rows, columns = _grid(height, width, number)
    pixels = list(product(range(height), range(width)))
    cell = {(y, x): (y * rows // height, x * columns // width) for y, x in pixels}
    label, centre = dict(cell), dict[tuple[int, int], list[float]]()
    for _ in range(ROUNDS):
        for each in set(label.values()):
            mine = [features[p] for p in pixels if label[p] == each]
            centre[each] = [sum(float(feature[k]) for feature in mine) / len(mine) for k in range(size)]
        for p in pixels:
            around = [(cell[p][0] + down, cell[p][1] + right) for down, right in AROUND]
            label[p] = min(
                (each for each in around if each in centre),
                key=lambda each: sum((centre[each][k] - float(features[p][k])) ** 2 for k in range(size)),
            )

    def touching(p: tuple[int, int]) -> list[tuple[int, int]]:
        return [(p[0] + down, p[1] + right) for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0))]

    out: dict[tuple[int, int], tuple[int, int]] = {}
    for each in set(label.values()):
        left, parts = [p for p in pixels if label[p] == each], list[list[tuple[int, int]]]()
        while left:
            part = [left[0]]
            for p in part:
                part += [q for q in touching(p) if q in left and q not in part]
            parts.append(part)
            left = [p for p in left if p not in part]
        for p in max(parts, key=len):
            out[p] = each
    while len(out) < len(pixels):
        found = {p: [out[q] for q in touching(p) if q in out] for p in pixels if p not in out}
        out |= {p: labels[0] for p, labels in found.items() if labels}
    names = sorted(set(out.values()))
    return np.array([names.index(out[p]) for p in pixels]).reshape(height, width)
