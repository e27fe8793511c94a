"""What the CAM methods share: activations, gradients and logits from one pass, and the heatmap they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import hooks
from interp.model import VisionModel, gradient
from interp.results import Heatmap, Residual
from interp.samples import Image, Target
from interp.sites import Site


@dataclass(frozen=True)
class Forward:
    """One forward of one image: the logits, and the activations of the site as maps."""

    site: Site
    index: int
    logits: Float[Tensor, "class"]
    activation: Float[Tensor, "channel height width"]

    @property
    def score(self) -> float:
        """The class logit."""
        return float(self.logits[self.index])


@dataclass(frozen=True)
class Capture(Forward):
    """A forward with the gradient of the class logit (or of what was asked for instead) at the site, as maps."""

    gradient: Float[Tensor, "channel height width"]


def activations(model: VisionModel, sample: Image, target: Target, site: Site | None) -> Forward:
    """Run forward once, or take what was captured before under the same interventions."""
    return _run(model, sample, target, site)[0]


def capture(
    model: VisionModel,
    sample: Image,
    target: Target,
    site: Site | None,
    compare: Callable[[Forward], tuple[tuple[int, float], ...]] = lambda at: (),
) -> Capture:
    """Run forward and backward to `site` once, or take what was captured before under the same interventions.

    The site is a detached leaf, so the layers below it cost no backward: forward + gradient to the layer is the floor.

    Args:
        compare: gives classes and weights, and the gradient is that of S_c - sum_d weight_d S_d.
    """
    at, graph = _run(model, sample, target, site)
    maps, less = model.grid(at.site), compare(at)

    def backward() -> Tensor:
        if not graph:
            _forward(model, sample, at.site, graph)
        logits, leaf = graph[0]
        output = logits[at.index] - sum(weight * logits[index] for index, weight in less)
        return maps(gradient(output, [leaf])[0])[0]

    found = model.cached(("gradient", sample.sha256, at.site, at.index, less), backward)
    return Capture(at.site, at.index, at.logits, at.activation, found)


Graph = list[tuple[Tensor, Tensor]]


def _run(model: VisionModel, sample: Image, target: Target, site: Site | None) -> tuple[Forward, Graph]:
    """The forward, and its graph if it had to be run just now: a graph is never kept longer than one call."""
    site = model.resolve(site or model.last_spatial)
    graph: Graph = []
    key = ("activation", sample.sha256, site)
    logits, activation = model.cached(key, lambda: _forward(model, sample, site, graph))
    return Forward(site, model.class_index(target, logits[None]), logits, activation), graph


def _forward(model: VisionModel, sample: Image, site: Site, graph: Graph) -> tuple[Tensor, Tensor]:
    maps = model.grid(site)
    with model.record([site], grad=True) as recorded:
        logits = model(sample)[0]
    graph[:] = [(logits, recorded[site])]
    return logits.detach(), maps(recorded[site].detach())[0]


def width(model: VisionModel, site: Site | None) -> int:
    """How many channels a site has, for estimates of cost; measured once on the unchanged model."""
    site = model.resolve(site or model.last_spatial)

    def measure() -> int:
        with model.record([site]) as recorded:
            model(torch.zeros(1, 3, *model.input_size, device=model.device, dtype=model.dtype))
        return model.grid(site)(recorded[site]).shape[1]

    with hooks.alone():
        return model.cached(("width", site), measure)


def put(activation: Tensor, maps: Float[Tensor, "batch channel height width"]) -> Tensor:
    """The activation with other maps in it, in its own layout; prefix tokens stay. Inverse of `model.grid`."""
    if activation.dim() == 4 and activation.shape[1:] == maps.shape[1:]:
        return maps
    tokens = maps.flatten(2).transpose(1, 2)
    shaped = tokens.unflatten(2, activation.shape[2:]) if activation.dim() == 4 else tokens
    prefix = activation[:, : activation.shape[1] - tokens.shape[1]]
    return torch.cat([prefix.expand(len(tokens), *prefix.shape[1:]), shaped], 1)


def conservation(values: Tensor, at: Forward) -> Residual:
    """How far the sum of the map is from the class logit."""
    return Residual(
        float(values.double().sum()) - at.score,
        "sum of the map minus the class logit, in logits: what biases, and curvature of the layers behind, contribute",
    )


def heatmap(
    model: VisionModel, sample: Image, at: Forward, values: Float[Tensor, "height width"], units: str, **facts: Any
) -> Heatmap:
    """The result of a CAM method: signed, unscaled, on the layer's grid."""
    numbers = values.detach().double().cpu().numpy()
    height, width = model.inputs(sample).shape[-2:]
    facts["note"] = " ".join(filter(None, (facts.get("note"), _note(numbers))))
    return Heatmap(
        numbers, (height, width), model.box(sample), model.labels[at.index], at.score, str(at.site), units, **facts
    )


def _note(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "This map is not finite."
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0):
        return "This map is constant: the method tells no place from another here."
    if values.max() <= 0:
        return "This map is nowhere positive: the method finds only evidence against the class here."
    return ""
