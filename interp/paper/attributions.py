"""The methods that the paper compares, on any function of a tensor: contributions of the shape of the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from interp.methods.attribution._multipliers import Rule, at_reference, contributions
from interp.methods.attribution._rectified import Rectified
from interp.model import gradient

Forward = Callable[[Tensor], Tensor]
"""inputs [batch, ...] -> scores [batch, output]"""
Attribution = Callable[[Forward, Tensor, Tensor, int], Tensor]
"""(forward, x [batch, ...], reference of the same shape, output) -> contributions [batch, ...]"""
STEPS = 64


def deeplift(rule: Rule) -> Attribution:
    """DeepLIFT by one of its rules; every example has a reference of its own."""

    def run(forward: Forward, x: Tensor, x0: Tensor, output: int) -> Tensor:
        return contributions(forward, x, at_reference(forward, x0), output, rule)[0]

    return run


def _gradient(forward: Forward, x: Tensor, output: int) -> Tensor:
    leaf = x.detach().requires_grad_()
    return gradient(forward(leaf)[:, output].sum(), [leaf])[0]


def gradient_x_input(forward: Forward, x: Tensor, x0: Tensor, output: int) -> Tensor:
    """(x - x0) dS/dx."""
    return (x - x0) * _gradient(forward, x, output)


def integrated_gradients(forward: Forward, x: Tensor, x0: Tensor, output: int) -> Tensor:
    """(x - x0) times the mean gradient on the way, by the midpoint rule with 64 steps."""
    mean = torch.zeros_like(x)
    for step in range(STEPS):
        mean += _gradient(forward, x0 + (step + 0.5) / STEPS * (x - x0), output) / STEPS
    return (x - x0) * mean


def guided_backprop_x_input(forward: Forward, x: Tensor, x0: Tensor, output: int) -> Tensor:
    """(x - x0) times the gradient by Guided Backprop's rule."""
    with Rectified(lambda g, a: g.clamp(min=0) * (a > 0)):
        return (x - x0) * _gradient(forward, x, output)


METHODS: dict[str, Attribution] = {
    "DeepLIFT, reveal cancel": deeplift("reveal cancel"),
    "DeepLIFT, genomics default": deeplift("genomics default"),
    "DeepLIFT, rescale": deeplift("rescale"),
    "Integrated Gradients": integrated_gradients,
    "Gradient x input": gradient_x_input,
    "Guided Backprop x input": guided_backprop_x_input,
}
