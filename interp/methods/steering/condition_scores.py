from typing import Annotated, Any

import numpy as np

from interp import Unsuitable
from interp.directions import Direction
from interp.method import DirectionName, Range, Unset, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._conditions import CAST, Fires, at_last, kind_of, opened, prompt_means, similarity, told
from interp.model import LanguageModel
from interp.results import Curve
from interp.samples import Contrast, Prompt

Array = np.ndarray


def texts(model: LanguageModel, sample: Any = None, **_: Any) -> tuple[float, float]:
    """A forward for each text."""
    return (len(sample.positive) + len(sample.negative) if isinstance(sample, Contrast) else 1), 0


@lens("Condition", CAST, needs=no_blocks, cost=texts)
def condition_scores(
    model: LanguageModel,
    sample: Prompt | Contrast,
    *,
    condition: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("where it tells best; of a prompt, every layer")] = None,
    threshold: Annotated[float | None, Unset("the fitted one")] = None,
    fires: Fires = "as fitted",
    bins: Annotated[int, Range(2, 200)] = 30,
) -> Curve:
    """Show how like prompts are to a condition, and what a threshold makes of examples and counterexamples.

        s = cos(h, tanh(c <c, h> / <c, c>)),    h = mean over the prompt's tokens of the stream after the layer
        precision = hits / (hits + false alarms),    recall = hits / (hits + misses),    F1 = their harmonic mean

    Args:
        condition: Which condition vector, or other direction; the first condition unless given.
        layer: After which layer.
        threshold: A threshold that x shall contain; the numbers at it are in the note.
        fires: Whether the condition is met above a threshold or below it.
        bins: Into how many bins of similarity the examples are sorted.

    Returns:
        Of examples: x are thresholds in steps of a bin, and for each the number of examples about it ("positive",
        "negative"), "F1", "precision" and "recall" of that threshold, and the numbers of "hits", "false alarms",
        "misses" and "rejections". Of a prompt: x are layers, with its similarity, and the threshold where one is known.

    Raises:
        Unsuitable: no such condition, a layer it has not, or a side without examples.

    Assumes:
        That the examples are like the prompts that will come.

    Misleads:
        Examples on which the condition was fitted are told better than others are: the fit's F1 is of held-out ones.
    """
    found = opened(model, condition)
    if isinstance(sample, Prompt):
        return _prompt(model, sample, found, layer, threshold, fires)
    if not sample.positive or not sample.negative:
        raise Unsuitable("One side has no texts; give at least one for each.")
    at = found.best if layer is None else layer
    c = found.at(at)
    p, n = (
        similarity(prompt_means(model, each, (at,), at_last(found))[:, 0], c, kind_of(found)).numpy()
        for each in (sample.positive, sample.negative)
    )
    level, above = _asked(found, at, threshold, fires)
    x = _steps(np.concatenate([p, n]), level, bins)
    edges = np.append(x, 2 * x[-1] - x[-2]) - (x[1] - x[0]) / 2
    each = told(p, n, x, above)
    numbers = {
        "positive": np.histogram(p, edges)[0], "negative": np.histogram(n, edges)[0],
        "F1": each.f1, "precision": each.precision, "recall": each.recall,
        "hits": each.hits, "false alarms": each.false_alarms, "misses": each.misses, "rejections": each.rejections,
    }  # fmt: skip
    note = ""
    if not np.isnan(level):
        one = told(p, n, np.array(level), above)
        note = (
            f"{'Above' if above else 'Below'} {level:.3g} after layer {at} it is met by {int(one.hits)} of "
            f"{len(p)} examples and {int(one.false_alarms)} of {len(n)} counterexamples: "
            f"F1 {float(one.f1):.2f}."
        )
    return Curve(
        x, np.array(list(numbers.values()), float), tuple(numbers), f"similarity after layer {at}", "examples, share",
        note=note,
    )  # fmt: skip


def _prompt(
    model: LanguageModel, sample: Prompt, found: Direction, layer: int | None, threshold: float | None, fires: Fires
) -> Curve:
    layers = found.layers if layer is None else (layer,)
    c = [found.at(each) for each in layers]  # before anything is run: a layer it has not is refused
    means = prompt_means(model, (sample.text,), layers, at_last(found))[0]
    s = np.array([float(similarity(h, v, kind_of(found))) for h, v in zip(means, c, strict=True)])
    levels = np.array([_asked(found, each, threshold, fires)[0] for each in layers])
    at = found.best if layer is None else layer
    level, above = _asked(found, at, threshold, fires)
    note = ""
    if not np.isnan(level):
        value = s[layers.index(at)]
        met = value > level if above else value < level
        note = f"After layer {at} this prompt lies at {value:.3g}: the condition is {'' if met else 'not '}met."
    known = not np.isnan(levels).any()
    y = np.stack([s, levels]) if known else s[None]
    return Curve(
        np.array(layers, float), y, ("similarity", "threshold") if known else ("similarity",), "layer", "similarity",
        note=note,
    )  # fmt: skip


def _asked(found: Direction, layer: int, threshold: float | None, fires: Fires) -> tuple[float, bool]:
    """The threshold, NaN where none is known, and whether to fire above it."""
    level = found.fact("threshold", layer) if threshold is None else threshold
    return level, found.fact("fires above", layer) != 0 if fires == "as fitted" else fires == "above"


def _steps(values: Array, level: float, bins: int) -> Array:
    """Steps from the least value to the largest, one beyond each, so laid that the threshold is one of them."""
    low, high = values.min(), values.max()
    step = max((high - low) / (bins - 1), 1e-6 * max(abs(low), abs(high), 1e-3))  # or rounding would be spread out
    origin = level if low <= level <= high else low
    return origin + step * np.arange(np.floor((low - origin) / step) - 1, np.ceil((high - origin) / step) + 2)
