"""What a lens returns: frozen, numpy only, with its units, its sign and how far it is from what it promises."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Residual:
    """How far a result is from what its method promises (completeness, conservation, reconstruction)."""

    value: float
    meaning: str


@dataclass(frozen=True, eq=False)
class Result:
    """What every lens returns. Cost and method are filled in by the lens and take no part in equality."""

    residual: Residual | None = field(default=None, kw_only=True)
    note: str = field(default="", kw_only=True)
    """A sentence for the reader when the result needs one ("the map is negative everywhere")."""
    method: str = field(default="", kw_only=True)
    forwards: float = field(default=0, kw_only=True)
    backwards: float = field(default=0, kw_only=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers, by field."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def facts(self) -> dict[str, Any]:
        """Everything that is not an array, as plain values."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        return {"type": type(self).__name__} | {
            name: dataclasses.asdict(value)
            if dataclasses.is_dataclass(value) and not isinstance(value, type)
            else value
            for name, value in plain.items()
        }

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, Result)
        cost = ("forwards", "backwards", "method")
        mine, theirs = ({k: v for k, v in each.facts().items() if k not in cost} for each in (self, other))
        left, right = self.arrays(), other.arrays()
        # compared as texts, in which a NaN equals a NaN
        return (
            repr(mine) == repr(theirs)
            and left.keys() == right.keys()
            and all(map(_same, left.values(), right.values()))
        )

    __hash__ = None  # type: ignore[assignment]

    def reproduces(self, stored: dict[str, np.ndarray], tolerance: float = 1e-4) -> bool:
        """Whether every number lies within `tolerance` of the scale of the stored ones."""
        mine = self.arrays()
        if mine.keys() != stored.keys() or any(mine[name].shape != stored[name].shape for name in mine):
            return False
        return all(_same(mine[name], old, tolerance) for name, old in stored.items())

    def apart(self, stored: dict[str, np.ndarray]) -> float:
        """The largest difference from stored numbers as a share of their scale; infinite where they are of other
        things."""
        mine = self.arrays()
        if mine.keys() != stored.keys() or any(mine[name].shape != stored[name].shape for name in mine):
            return float("inf")
        largest = 0.0
        for name, old in stored.items():
            if not _same(mine[name], old):
                if old.dtype.kind not in "biuf":
                    return float("inf")
                gaps = np.abs(mine[name].astype(np.float64) - old.astype(np.float64))
                known = np.isfinite(old)
                scale = float(np.abs(old[known]).max(initial=0)) or 1.0
                if not np.array_equal(known, np.isfinite(mine[name])):
                    return float("inf")
                largest = max(largest, float(gaps[known].max(initial=0)) / scale)
        return largest

    def fingerprint(self) -> str:
        """The numbers in 22 characters, for a link: four weighted sums, each array in units of its own scale."""
        parts = [np.zeros(0)]
        for _, each in sorted(self.arrays().items()):
            if each.dtype.kind in "biuf":
                values = np.nan_to_num(each.astype(np.float64).ravel(), posinf=0, neginf=0)
                scale = float(np.abs(values).max(initial=0))
                parts += [values / (scale or 1.0), np.log1p([scale, values.size])]
        numbers = np.concatenate(parts)
        at = np.arange(numbers.size)
        sums = [numbers @ np.cos(at * step + step) / max(numbers.size, 1) ** 0.5 for step in (0.7, 1.9, 2.3, 2.9)]
        return base64.urlsafe_b64encode(np.array(sums, "<f4").tobytes()).decode().rstrip("=")

    def matches(self, fingerprint: str) -> bool:
        """Whether these numbers are those of a fingerprint, but for rounding; False for what is none."""
        try:
            theirs, mine = (
                np.frombuffer(base64.urlsafe_b64decode(f"{each}=="), "<f4")
                for each in (fingerprint, self.fingerprint())
            )
        except ValueError:
            return False
        return theirs.shape == mine.shape and bool((np.abs(theirs - mine) <= 1e-3).all())

    def to_npz(self) -> bytes:
        """The arrays as an NPZ file without pickles; the rest as JSON text in its member `facts`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, facts=np.array(json.dumps(self.facts())), **self.arrays())
        return buffer.getvalue()

    def to_json(self) -> str:
        """Everything as JSON; floats with seven significant digits."""
        numbers = {name: _rounded(value) for name, value in self.arrays().items()}
        return json.dumps(_finite(self.facts() | numbers), allow_nan=False)


def _same(value: np.ndarray, old: np.ndarray, tolerance: float = 0) -> bool:
    """Whether all numbers are equal, or differ by at most `tolerance` of the largest finite one; NaN equals NaN."""
    if value.shape != old.shape:
        return False
    if old.dtype.kind not in "fc" or value.dtype.kind not in "fc":
        return np.array_equal(value, old)
    finite = np.isfinite(old)
    scale = float(np.abs(old[finite]).max(initial=0))
    near = np.abs(value[finite] - old[finite]) <= tolerance * scale
    return bool(near.all()) and np.array_equal(value[~finite], old[~finite], equal_nan=True)


def _rounded(value: np.ndarray) -> Any:
    if value.dtype.kind != "f" or value.ndim == 0:
        return value.tolist()
    return [_rounded(row) for row in value] if value.ndim > 1 else [float(f"{number:.7g}") for number in value]


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class Heatmap(Result):
    """What matters where in an image.

    values: [height, width] on the layer's grid, signed and unscaled. size: [height, width] of the model's input.
    box: where that input lies on the upright original (left, top, right, bottom as fractions of it).
    units: what one unit of `values` means. signed: whether a negative value means evidence against.
    """

    values: np.ndarray
    size: tuple[int, int]
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    target: str = ""
    score: float = float("nan")
    site: str = ""
    units: str = ""
    signed: bool = True

    def at_input(self) -> np.ndarray:
        """The map at the model's input size, [height, width], bilinear (pixel centres aligned, as in torch)."""
        return resize(self.values, self.size)

    def at_original(self, height: int, width: int) -> np.ndarray:
        """The map on the upright original of that size; NaN where the model did not look."""
        left, top, right, bottom = self.box
        x0, x1 = (round(each * width) for each in (left, right))
        y0, y1 = (round(each * height) for each in (top, bottom))
        inside = resize(self.values, (max(y1 - y0, 1), max(x1 - x0, 1)))
        whole = np.full((height, width), np.nan)
        ys, xs = slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width))
        whole[ys, xs] = inside[ys.start - y0 : ys.stop - y0, xs.start - x0 : xs.stop - x0]
        return whole

    def share(self, mask: np.ndarray) -> float:
        """The share of the positive part of the map in `mask` [height, width] of the original; NaN where nothing is."""
        positive = np.nan_to_num(np.maximum(self.at_original(*mask.shape), 0))
        total = float(positive.sum())
        return float(positive[mask.astype(bool)].sum()) / total if total > 0 else float("nan")

    @property
    def finding(self) -> str:
        """The map in words, for those who can't see it."""
        values = self.values
        if not np.isfinite(values).all():
            return "The map has values that are not finite."
        if values.max() <= 0:
            return (
                "The map is zero everywhere."
                if not values.any()
                else "The map is nowhere positive: no evidence for this class."
            )
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        vertical = ("upper", "middle", "lower")[min(int(3 * (row + 0.5) / values.shape[0]), 2)]
        horizontal = ("left", "centre", "right")[min(int(3 * (column + 0.5) / values.shape[1]), 2)]
        positive = np.maximum(values, 0)
        strong = float(positive[positive >= 0.5 * positive.max()].sum() / positive.sum())
        area = float((positive >= 0.5 * positive.max()).mean())
        return f"Peak at the {vertical} {horizontal}; {strong:.0%} of the positive part lies on {area:.0%} of the area."


@dataclass(frozen=True, eq=False)
class TokenScores(Result):
    """One signed score per token. values: [token]. score: what is explained, the logit (difference) of `target`."""

    tokens: tuple[str, ...]
    values: np.ndarray
    target: str = ""
    units: str = ""
    score: float = float("nan")


@dataclass(frozen=True, eq=False)
class TokenGrid(Result):
    """Matrices over rows (layers, heads, queries) and columns (tokens, mostly), one sheet for each quantity or head.

    values: [sheet, row, column], NaN where there is nothing; what a sheet holds, with its unit, is its name.
    choices: per cell, the likeliest tokens; chances: [row, column, choice], their probabilities.
    signed: whether zero is the middle of the scale.
    row_values: [row, name], numbers of a whole row, by `row_names`.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    sheets: tuple[str, ...]
    choices: tuple[tuple[tuple[str, ...], ...], ...] = ()
    chances: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    signed: bool = False
    row_values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    row_names: tuple[str, ...] = ()

    def sheet(self, name: str) -> np.ndarray:
        """The matrix [row, column] of that name."""
        return self.values[self.sheets.index(name)]


@dataclass(frozen=True, eq=False)
class Graph(Result):
    """Parts of a model as nodes with signed values, and weighted edges from one to another.

    nodes: as `interp.sites.Node` writes them, "z.1.2@5" (head 2 of layer 1 at token 5). values: [node].
    edges: [edge, 2], numbers of the source and the target; weights: [edge]; ports: the input of the target that each
    enters by (q, k, v, or "" where it has only one).
    tokens: of the prompt; others: of the prompt that it is compared with, where there is one.
    target: what is explained ("Mary over John"); units: of values and weights.
    direction: "noising" (parts of the clean run are replaced by the corrupted run's), "denoising" (the other way
    round), or "" where nothing is patched. base: the metric of the run that is patched; donor: of the other.
    total: the sum of the magnitudes of all edges (nodes, where there are no edges), those not listed here included.
    """

    nodes: tuple[str, ...]
    values: np.ndarray
    edges: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ports: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    target: str = ""
    units: str = ""
    direction: str = ""
    base: float = float("nan")
    donor: float = float("nan")
    total: float = float("nan")
    beside: np.ndarray = field(default_factory=lambda: np.zeros(0))
    beside_name: str = ""
    bound: float = float("nan")
    confidence: float = float("nan")

    def value(self, node: str) -> float:
        """The value of a node by its name."""
        return float(self.values[self.nodes.index(node)])

    def recovery(self) -> np.ndarray | None:
        """Each value as a share of the way from `base` to `donor`; None where the two are alike."""
        way = self.donor - self.base
        return self.values / way if abs(way) > 1e-6 else None


@dataclass(frozen=True, eq=False)
class FeatureList(Result):
    """Features of one or several SAEs, best first.

    features: [n], numbers; values: [n], what they are ranked by, in `units`; saes: the SAE of each; labels: the tokens
    (classes) that each promotes most. tokens: of the prompt, where one was looked at; grid: [n, token], or
    [n, height, width] on an image, the activations there. density: [n], the share of tokens on which each fires, and
    maximum: [n], of the index (NaN without one). examples: of each, the tokens of one context; marks: [n], which of
    them fired. reasons: in words, why each was found. carried: [n, token], the share of the activation there that was
    transported from an earlier layer, and held_out: [n, 3], the R^2 of reading it so on other texts, with the ends of
    its interval; NaN where nothing fires or is known.
    """

    features: np.ndarray
    values: np.ndarray
    labels: tuple[str, ...] = ()
    units: str = ""
    saes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    grid: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    density: np.ndarray = field(default_factory=lambda: np.zeros(0))
    maximum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    examples: tuple[tuple[str, ...], ...] = ()
    marks: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    reasons: tuple[str, ...] = ()
    carried: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    held_out: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


@dataclass(frozen=True, eq=False)
class FeaturePage(Result):
    """All that an index knows of one feature, and what it does on the sample.

    density: the share of `counted` tokens on which it fires; maximum, mean: of its activations that are not zero.
    edges: [bin + 1], counts: [bin], their histogram. contexts: the tokens of each context, best first within each of
    `groups` (the name of the group of each context); activations: [context, width], NaN behind its end; marks:
    [context], the token that fired. images: a small picture for each context, where the index is of images, and
    grids: [context, height, width], the activations on it.
    promoted, suppressed: tokens or classes, with gains: [n] and losses: [n] of their logits for one unit of activation.
    neighbours: [n], the features with the most similar decoder rows, and cosines: [n]; together: [n], those that fire
    on the same tokens most often, and overlaps: [n] (Jaccard).
    tokens, here: the sample's tokens and the activations on them, [token] or [height, width].
    """

    feature: int
    sae: str
    density: float
    counted: int
    maximum: float
    mean: float
    edges: np.ndarray
    counts: np.ndarray
    contexts: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    activations: np.ndarray
    marks: np.ndarray
    promoted: tuple[str, ...]
    gains: np.ndarray
    suppressed: tuple[str, ...]
    losses: np.ndarray
    neighbours: np.ndarray
    cosines: np.ndarray
    together: np.ndarray
    overlaps: np.ndarray
    tokens: tuple[str, ...]
    here: np.ndarray
    images: tuple[str, ...] = ()
    """PNG or JPEG, base64"""
    grids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))


@dataclass(frozen=True, eq=False)
class Curve(Result):
    """y over x; several series share x. x [point], y [series, point]."""

    x: np.ndarray
    y: np.ndarray
    series: tuple[str, ...]
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True, eq=False)
class Table(Result):
    """Named columns of numbers: values [row, column]."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    units: str = ""


@dataclass(frozen=True, eq=False)
class Text(Result):
    """A piece of text."""

    text: str


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation with pixel centres aligned and the border repeated (torch's align_corners=False)."""

    def weights(old: int, new: int) -> np.ndarray:
        at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (at - low)
        matrix[np.arange(new), high] += at - low
        return matrix

    return weights(values.shape[0], size[0]) @ values.astype(np.float64) @ weights(values.shape[1], size[1]).T
