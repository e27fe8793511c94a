from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from interp import hooks, progress
from interp.method import lens
from interp.methods.attribution import _multipliers
from interp.methods.attribution._pixels import (
    INPUT,
    Reference,
    completeness,
    logits_at,
    pixel_map,
    references,
    seen,
)
from interp.methods.attribution.deeplift import PAPER
from interp.model import VisionModel
from interp.results import Heatmap, Table
from interp.samples import Image, Target

RULES = {
    "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "softplus": nn.Softplus, "softmax": nn.Softmax, "max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d,
    "max_pool3d": nn.MaxPool3d,
}  # fmt: skip
"""The operations that Captum 0.9 has a rule for, where a module of its own does them."""


def _needs(model: VisionModel) -> str | None:
    if model.family == "swinv2":
        return "Captum's DeepLift fails on SwinV2, which has a ReLU that the image does not reach; DeepLIFT serves it."
    return None


@lens("DeepLIFT as in Captum", PAPER, needs=_needs, cost=lambda model, **_: (5, 1))
def deeplift_captum(
    model: VisionModel, sample: Image, *, target: Target = Target(), reference: Reference = "blur", seed: int = 0
) -> Heatmap:
    """Run Captum's DeepLift on the same input and reference, to compare with: its residual says how far it is off.

        rescale, at modules of ten types;   the plain gradient everywhere else

    Captum puts its rule on modules (ReLU, ELU, LeakyReLU, Sigmoid, Tanh, Softplus, Softmax, MaxPool). An activation of
    another type, or called as a function, a product or a normalisation gets the plain gradient; modules that follow
    each other directly, and pooling windows that overlap, get a rule that does not add up.

    Args:
        target: The class to explain.
        reference: What the image is compared with.
        seed: Number that fixes the uniform reference.

    Returns:
        Heatmap [height, width] at the model's input, in logits per pixel; its residual, and in a note what Captum has
        no rule for in this model.

    Raises:
        Unsuitable: no such class.

    Assumes:
        That every nonlinearity is a module of a supported type, used once, and none follows another directly.

    Misleads:
        Without a word on most of today's networks: where those assumptions fail, its map looks no worse, and does not
        add up.
    """
    from captum.attr import DeepLift

    pixels, logits = seen(model, sample)
    index = model.class_index(target, logits)
    x0 = references(model, pixels, reference, seed=seed)
    network = hooks.clone(model.network)  # it registers hooks on the modules: on a copy that no one else uses

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            with model.edit({INPUT: lambda _: x}), hooks.at(hooks.Here()):
                scores: Tensor = self.network(pixel_values=x.detach()).logits
            progress.spent(forwards=len(x))
            return scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its hooks
        values = DeepLift(Scores()).attribute(pixels.clone().requires_grad_(), x0, target=index).detach()[0]
    progress.spent(backwards=1)
    difference = float(logits[0, index] - logits_at(model, x0)[0, index])
    return pixel_map(
        model, sample, values, index, float(logits[0, index]), "logit per pixel",
        residual=completeness(float(values.double().sum()), difference), note=_why(operations(model, sample)),
    )  # fmt: skip


def operations(model: VisionModel, sample: Image) -> Table:
    """The nonlinear operations of a model: how often each runs, and for how many of them Captum has a rule."""

    def look() -> Table:
        pixels, _ = seen(model, sample)
        found = _multipliers.at_reference(lambda x: logits_at(model, x), torch.zeros_like(pixels))
        at = [step.name for step in found.tape]
        modules = Counter(
            name for name, kind in RULES.items() for module in model.network.modules() if type(module) is kind
        )
        rows = tuple(dict.fromkeys(at))
        values = [[at.count(name), min(at.count(name), modules[name])] for name in rows]
        return Table(rows, ("runs", "with a rule in Captum"), np.array(values, float).reshape(-1, 2))

    return model.cached(("operations", sample.sha256), look)


def _why(table: Table) -> str:
    missing = [
        f"{name} ({int(runs - served)} of {int(runs)})"
        for name, (runs, served) in zip(table.rows, table.values, strict=True)
        if served < runs
    ]
    if missing:
        return f"Captum has no rule here for {', '.join(missing)}, and takes the plain gradient there."
    return ""
