"""What the CAM methods share: activations, gradients and logits from one pass, and the heatmap they make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.model import VisionModel, gradient
from interp.results import Heatmap, Residual
from interp.samples import Image, Target
from interp.sites import Site


@dataclass(frozen=True)
class Capture:
    """One pass of one image: activations of the site as maps, the gradient of the class logit there, and the logits."""

    site: Site
    index: int
    logits: Float[Tensor, "class"]
    activation: Float[Tensor, "channel height width"]
    gradient: Float[Tensor, "channel height width"]

    @property
    def score(self) -> float:
        """The class logit."""
        return float(self.logits[self.index])


def capture(model: VisionModel, sample: Image, target: Target, site: Site | None) -> Capture:
    """Run forward and backward to `site` once, or take what was captured before under the same interventions.

    The site is a detached leaf, so the layers below it cost no backward: forward + gradient to the layer is the floor.
    """
    site = model.resolve(site or model.last_spatial)
    maps, graph = model.grid(site), list[tuple[Tensor, Tensor]]()

    def forward() -> tuple[Tensor, Tensor]:
        with model.record([site], grad=True) as recorded:
            logits = model(sample)[0]
        graph[:] = [(logits, recorded[site])]
        return logits.detach(), maps(recorded[site].detach())[0]

    logits, activation = model.cached(("activation", sample.sha256, site), forward)
    index = model.class_index(target, logits[None])

    def backward() -> Tensor:
        if not graph:
            forward()
        output, leaf = graph[0]
        return maps(gradient(output[index], [leaf])[0])[0]

    return Capture(site, index, logits, activation, model.cached(("gradient", sample.sha256, site, index), backward))


def heatmap(
    model: VisionModel,
    sample: Image,
    at: Capture,
    values: Float[Tensor, "height width"],
    units: str,
    signed: bool = True,
    residual: Residual | None = None,
) -> Heatmap:
    """The result of a CAM method: signed, unscaled, on the layer's grid."""
    numbers = values.detach().double().cpu().numpy()
    size = model.inputs(sample).shape[-2:]
    return Heatmap(
        numbers,
        (int(size[0]), int(size[1])),
        model.box(sample),
        model.labels[at.index],
        at.score,
        str(at.site),
        units,
        signed,
        residual=residual,
        note=_note(numbers),
    )


def _note(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "This map is not finite."
    if np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0):
        return "This map is constant: the method tells no place from another here."
    if values.max() <= 0:
        return "This map is nowhere positive: the method finds only evidence against the class here."
    return ""
