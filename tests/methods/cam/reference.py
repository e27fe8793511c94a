"""The tail of each architecture written out, and gradients by finite differences: slow, sharing nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.model import VisionModel
from interp.samples import Image
from tests import tiny

STEP = 1e-6
CASES = [
    ("resnet", None),
    ("resnet", "stage.0"),
    ("resnet_bottleneck", None),
    ("regnet", None),
    ("convnext", None),
    ("efficientnet", None),
    ("vit", None),
    ("deit", None),
    ("swin", None),
]
"""Families, and the site to look at (None: the default)."""


@dataclass(frozen=True)
class Reference:
    """Activations [channel, height, width] at a site, the logit they give, and its gradient there."""

    activation: np.ndarray
    gradient: np.ndarray
    score: float


def reference(family: str, site: str | None, seed: int, sample: Image, index: int) -> Reference:
    """Everything about one image at one site, from a network of its own."""
    model = tiny.vision(family, torch.float64, seed)
    with torch.no_grad():
        activation, tail, maps = _split(model, family, site, sample)
        base = float(tail(activation)[0, index])
        flat = activation.flatten()
        slopes = torch.empty_like(flat)
        for part in torch.arange(len(flat)).split(256):
            step = torch.zeros(len(part), len(flat), dtype=torch.float64)
            step[torch.arange(len(part)), part] = STEP
            up, down = (tail((flat + sign * step).view(len(part), *activation.shape[1:]))[:, index] for sign in (1, -1))
            slopes[part] = (up - down) / (2 * STEP)
        gradient = maps(slopes.view_as(activation))
    return Reference(maps(activation).numpy(), gradient.numpy(), base)


def _split(
    model: VisionModel, family: str, site: str | None, sample: Image
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The activation at the site, the function from there to the logits, and the one that makes maps of it."""
    network, pixels = model._network, model.inputs(sample)
    first = lambda x: x[0]  # noqa: E731

    if family in ("resnet", "resnet_bottleneck", "regnet"):
        base = getattr(network, "regnet" if family == "regnet" else "resnet")
        maps = base.embedder(pixels)
        stages = list(base.encoder.stages)
        upto = len(stages) if site is None else int(site.removeprefix("stage.")) + 1
        for stage in stages[:upto]:
            maps = stage(maps)

        def convolutional(x: Tensor) -> Tensor:
            for stage in stages[upto:]:
                x = stage(x)
            return x.mean((2, 3)) @ network.classifier[1].weight.T + network.classifier[1].bias

        return maps, convolutional, first

    if family in ("efficientnet", "mobilenet_v2"):
        base = network.efficientnet if family == "efficientnet" else network.mobilenet_v2
        maps = base(pixels).last_hidden_state
        return maps, lambda x: x.mean((2, 3)) @ network.classifier.weight.T + network.classifier.bias, first

    if family == "convnext":
        norm = network.convnext.layernorm
        maps = network.convnext.encoder(network.convnext.embeddings(pixels)).last_hidden_state
        return maps, lambda x: _linear(network.classifier, _norm(norm, x.mean((2, 3)))), first

    if family == "swin":
        tokens = network.swin.embeddings(pixels)[0]
        size = (network.swin.embeddings.patch_grid[0], network.swin.embeddings.patch_grid[1])
        tokens = network.swin.encoder(tokens, size).last_hidden_state
        side = int(tokens.shape[1] ** 0.5)
        norm = network.swin.layernorm
        return (
            tokens,
            lambda x: _linear(network.classifier, _norm(norm, x).mean(1)),
            lambda x: x[0].T.reshape(-1, side, side),
        )

    base = getattr(network, family)
    tokens = base.embeddings(pixels)
    *before, last = model.parts.blocks
    for block in before:
        tokens = block(tokens)
        tokens = tokens if isinstance(tokens, Tensor) else tokens[0]
    height, width = model.parts.patches or (0, 0)

    def transformer(x: Tensor) -> Tensor:
        x = last(x)
        x = x if isinstance(x, Tensor) else x[0]
        return _linear(network.classifier, _norm(base.layernorm, x[:, 0]))

    return tokens, transformer, lambda x: x[0, x.shape[1] - height * width :].T.reshape(-1, height, width)


def _linear(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias  # type: ignore[union-attr, operator]


def _norm(layer: torch.nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt()  # type: ignore[operator]
    return centred / spread * layer.weight + layer.bias  # type: ignore[operator]
