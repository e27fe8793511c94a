"""What Guided Backprop and DeconvNet share: another backward rule at every ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from interp.methods.attribution._functions import ACTIVATIONS, name_of, tensors
from interp.methods.attribution._pixels import INPUT, pixel_map
from interp.model import VisionModel, gradient
from interp.results import Heatmap
from interp.samples import Image, Target

Backward = Callable[[Tensor, Tensor], Tensor]
"""(gradient behind the ReLU, input of the ReLU) -> gradient before it"""


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, backward: Backward, function: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = backward
        x = x.detach()
        return function(x) if function is not None else x.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.rule(gradient, ctx.saved_tensors[0]), None, None


class Rectified(TorchFunctionMode):
    """Inside, every ReLU goes back by `rule`; ReLU6 too, whose gradient is that of a ReLU below 6."""

    def __init__(self, rule: Backward) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, _ = name_of(function)
        if name not in ACTIVATIONS or not any(each.requires_grad for each in tensors((args, kwargs or {}))):
            return function(*args, **(kwargs or {}))
        capped = name == "relu6" or (name == "hardtanh" and tuple(args[1:3]) == (0.0, 6.0))
        if name != "relu" and not capped:
            return function(*args, **(kwargs or {}))
        rule = (lambda g, x: self.rule(g, x) * (x < 6)) if capped else self.rule
        out = _Rectifier.apply(args[0], rule, (lambda x: x.clamp(0, 6)) if capped else None)
        if name_of(function)[1] or (kwargs or {}).get("inplace"):
            args[0].copy_(out)
            return args[0]
        return out


def no_relu(model: Any) -> str | None:
    """The reason why a rule for ReLU can't serve this model, or None."""
    activation = getattr(model.config, "hidden_act", None)
    if activation in ("relu", "relu6"):
        return None
    return f"This is a rule for ReLU alone, and {model.name} uses {activation}; DeepLIFT serves it."


def rectified_map(model: VisionModel, sample: Image, target: Target, rule: Backward) -> Heatmap:
    """The gradient of the class logit by another rule at each ReLU, summed over colours."""
    with model.record([INPUT], grad=True) as recorded, Rectified(rule):
        logits = model(sample)
    index = model.class_index(target, logits.detach())
    found = gradient(logits[0, index], [recorded[INPUT]])[0][0]
    return pixel_map(
        model, sample, found, index, float(logits[0, index].detach()), "arbitrary unit",
        note="This map hardly depends on the class: it shows edges that the first layers see. Try another class.",
    )  # fmt: skip
