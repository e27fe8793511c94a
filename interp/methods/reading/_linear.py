"""Norms with their scale frozen, which makes them linear, and directions pulled back through them and projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, hooks
from interp.model import LanguageModel, gradient
from interp.sites import Site


@dataclass(frozen=True)
class Frozen:
    """norm(x) = gain * (x - mean(x) if centred) + bias at the scale it has at one x; in float64."""

    gain: Float[Tensor, d]
    bias: Float[Tensor, d]
    centred: bool

    def pulled(self, direction: Float[Tensor, d]) -> Float[Tensor, d]:
        """The direction before the norm that reads what `direction` reads behind it, but for the bias."""
        back = self.gain * direction
        return back - back.mean() if self.centred else back


def frozen(module: Any, x: Float[Tensor, d], name: str) -> Frozen:
    """A LayerNorm or RMSNorm of whatever class, at the scale it has at x: what it does to probes tells which it is.

    Raises:
        Unsuitable: it is neither.
    """
    probe = torch.ones_like(x)
    probe[1::2] = -1
    if len(x) % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])
    probe = 1e3 * probe  # so that eps does not count
    with hooks.alone(), torch.no_grad():
        zero, level, swing, out = (
            module(each.view(1, 1, -1))[0, 0].double()
            for each in (torch.zeros_like(x), torch.full_like(x, 1e3), probe, x)
        )
    x, probe = x.double(), probe.double()
    centred = bool((level - zero).abs().max() < 1e-3 * (swing - zero).abs().max())
    weight = (swing - zero) * probe.square().mean().sqrt() / probe
    plain = weight * (x - x.mean() if centred else x)
    scale = ((out - zero) @ plain) / (plain @ plain).clamp(min=1e-300)
    if (scale * plain + zero - out).norm() > 1e-2 * (out - zero).norm():
        raise Unsuitable(
            f"{name} of this model is neither a LayerNorm nor an RMSNorm, so it can't be split into parts."
        )
    return Frozen(scale * weight, zero, centred)


def to_logit(
    model: LanguageModel, resid: Float[Tensor, d], direction: Float[Tensor, d_out]
) -> tuple[Float[Tensor, d], float]:
    """`direction`, which reads what the unembedding is given, pulled back to the last residual stream; and a constant.

    Before a soft cap:  direction . final(resid) = pulled . resid + constant.
    """
    modules = [(path, model.network.get_submodule(path)) for path in model.parts.before_logits]
    pulled, constant = direction.double(), 0.0
    for path, module in reversed(modules):
        if isinstance(module, torch.nn.Linear):
            if module.bias is not None:
                constant += float(module.bias.double() @ pulled)
            pulled = module.weight.double().T @ pulled
        else:
            norm = frozen(module, resid, path)
            constant += float(norm.bias @ pulled)
            pulled = norm.pulled(pulled)
    return pulled, constant


def shares(
    model: LanguageModel, site: Site, inner: Float[Tensor, n], projection: str, direction: Float[Tensor, d]
) -> Float[Tensor, n]:
    """What each element of `inner`, the input of `projection`, adds to  direction . (activation at `site`).

    Where a norm stands between the projection and the residual stream (Gemma, OLMo), its scale is frozen.
    """
    module = model.network.get_submodule(projection)
    end = model.address(site)
    start = inner.detach().reshape(1, 1, -1).requires_grad_()
    with hooks.alone(), torch.enable_grad():
        out = module(start)
        if projection != end and not end.endswith((".attn", ".self_attn", ".attention", ".mlp")):
            norm = frozen(model.network.get_submodule(end), out.detach()[0, 0], end)
            direction = norm.pulled(direction)
        (back,) = gradient((out[0, 0].double() * direction).sum(), [start])
    return start.detach()[0, 0].double() * back[0, 0].double()
