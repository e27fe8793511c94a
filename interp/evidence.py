"""How far a heatmap can be trusted: checks that are experiments of their own, and what to compare in them."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any

import numpy as np
import PIL.Image
import torch

from interp import Unsuitable, zoo
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.methods.features._saes import look, open_sae
from interp.model import LanguageModel, VisionModel
from interp.results import Heatmap, Table, resize
from interp.samples import Image, Prompt, Target
from interp.sites import Site

Box = tuple[float, float, float, float]


def randomised(experiment: Experiment, seed: int = 0) -> Experiment:
    """The same experiment on a model whose weights are drawn anew, from the classifier down to its first layers."""
    model = zoo.load(experiment.model)
    assert isinstance(model, VisionModel)
    everything = Call("randomize_weights", site=model.spatial_sites()[0], seed=seed)
    return dataclasses.replace(experiment, interventions=(*experiment.interventions, everything))


def agreement(one: Heatmap, other: Heatmap) -> float:
    """Spearman's rank correlation of two maps, -1 to 1; NaN where one is constant or their grids differ."""
    a, b = one.values.ravel(), other.values.ravel()
    if a.shape != b.shape or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, the mean rank where values are equal."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def left_out(experiment: Experiment, name: str) -> float:
    """The share of the variance at an SAE's target, on the sample under its changes, that the SAE does not explain.

        sum_t |y(t) - y_hat(t)|^2 / sum_t |y(t) - mean y|^2,    0 where y does not vary

    Raises:
        Unsuitable: the SAE does not fit the model, or its site is not reached under the changes.
    """
    model: Any = zoo.load(experiment.model)
    sample: Any = experiment.sample
    with ExitStack() as stack:
        for call in experiment.interventions:
            stack.enter_context(METHODS[call.method](model, sample, **call.settings))
        found = open_sae(model, name)
        (seen,), _ = look(model, sample, [found])
        with torch.no_grad(), model.record([found.target], every=True) as record:
            model(sample)
        reached = record[found.target]
        if not reached:
            raise Unsuitable(f"{found.target} is not reached under these changes; undo the last one.")
        y = found.rows(reached[-1], model, found.target).flatten(0, 1)[seen.rows].double()
        error = (y - found.decode(seen.encode(), seen.x).double()).pow(2).sum()
        spread = (y - y.mean(0)).pow(2).sum()
    return float(error / spread) if spread > 0 else 0.0


def peak_box(heatmap: Heatmap, level: float = 0.5) -> Box:
    """The smallest box, in fractions of the original, around the connected part at `level` of the peak that holds it.

    Raises:
        Unsuitable: the map is nowhere positive.
    """
    if not heatmap.values.max() > 0:
        raise Unsuitable("The map is nowhere positive, so it has no peak to hide.")
    high, wide = (max(4 * each, 32) for each in heatmap.values.shape)
    fine = resize(heatmap.values, (high, wide))
    above = fine >= level * fine.max()
    inside = np.zeros_like(above)
    inside[np.unravel_index(int(fine.argmax()), fine.shape)] = True
    while True:  # grow by neighbours until nothing is added
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        grown &= above
        if (grown == inside).all():
            break
        inside = grown
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    left, top, right, bottom = heatmap.box
    across, down = (right - left) / wide, (bottom - top) / high
    edges = (
        left + columns[0] * across,
        top + rows[0] * down,
        left + (columns[-1] + 1) * across,
        top + (rows[-1] + 1) * down,
    )
    return tuple(round(float(np.clip(each, 0, 1)), 3) for each in edges)  # type: ignore[return-value]


def elsewhere(box: Box) -> Box:
    """A box of the same size in the corner farthest from `box`: the control for hiding it."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    x = 0.0 if left + right > 1 else 1 - width
    y = 0.0 if top + bottom > 1 else 1 - height
    return (round(x, 3), round(y, 3), round(x + width, 3), round(y + height, 3))


def hidden(experiment: Experiment, box: Box) -> Experiment:
    """The class probabilities with that box blurred, on top of the interventions of the experiment."""
    hide = Call("hide_region", box=box)
    return dataclasses.replace(
        experiment, lens=Call("class_probabilities"), interventions=(*experiment.interventions, hide)
    )


def probability(table: Table, label: str) -> float:
    """The probability of a class in the table of `class_probabilities`."""
    return float(table.values[table.rows.index(label), 0])


def difference(before: Heatmap, after: Heatmap) -> Heatmap | None:
    """after - before, signed; None where the grids differ."""
    if before.values.shape != after.values.shape:
        return None
    return dataclasses.replace(after, values=after.values - before.values, signed=True, note="", residual=None)


def strongest_channels(model: VisionModel, sample: Image, target: Target, site: Site | None, n: int) -> tuple[int, ...]:
    """The channels that speak most for a class: largest sum of gradient x activation over the map."""
    from interp.methods.cam._channels import capture

    at = capture(model, sample, target, site)
    return tuple(sorted((at.gradient * at.activation).sum((1, 2)).topk(min(n, len(at.activation))).indices.tolist()))


def strongest_heads(model: LanguageModel, sample: Prompt, target: Target, n: int) -> tuple[tuple[int, int], ...]:
    """Layer and head of those that write most to the target's logit, by direct logit attribution."""
    from interp.methods.reading.direct_logit_attribution import direct_logit_attribution

    heads = model.parts.heads
    values = direct_logit_attribution(model, sample, target=target, by="head").values[0, 1:-1, :heads]
    order = np.argsort(-values.ravel(), kind="stable")[:n]
    return tuple(sorted((int(each) // heads, int(each) % heads) for each in order))


def picture_after(experiment: Experiment) -> PIL.Image.Image:
    """The original as the interventions leave it: changed pixels come from the model's input, others stay sharp."""

    model, sample = zoo.load(experiment.model), experiment.sample
    assert isinstance(model, VisionModel) and isinstance(sample, Image)
    original = sample.picture
    with ExitStack() as stack:
        for call in experiment.interventions:
            stack.enter_context(METHODS[call.method](model, sample, **call.settings))
        with model.record([Site("input")]) as recorded:
            model(sample)
        seen = recorded[Site("input")][0]
    pixels = model.inputs(sample)[0]
    changed = (seen - pixels).abs().amax(0) > 0
    if not bool(changed.any()):
        return original
    left, top, right, bottom = model.box(sample)
    place = (round(left * original.width), round(top * original.height))
    size = (round((right - left) * original.width), round((bottom - top) * original.height))
    new = PIL.Image.fromarray(model.picture(seen)).resize(size, PIL.Image.Resampling.BICUBIC)
    mask = PIL.Image.fromarray(changed.cpu().numpy().astype(np.uint8) * 255).resize(size, PIL.Image.Resampling.BILINEAR)
    result = original.copy()
    result.paste(new, place, mask)
    return result


def mask_of(box: Box, size: tuple[int, int]) -> np.ndarray:
    """A box in fractions as a mask, bool [height, width], of a picture of `size` (width, height)."""
    width, height = size
    left, top, right, bottom = box
    mask = np.zeros((height, width), bool)
    mask[
        round(top * height) : max(round(bottom * height), round(top * height) + 1),
        round(left * width) : max(round(right * width), round(left * width) + 1),
    ] = True
    return mask
