from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.attribution._functions import ELEMENTWISE, PRODUCTS, name_of, tensors
from interp.methods.attribution._pixels import INPUT, pixel_map
from interp.model import VisionModel, gradient
from interp.results import Heatmap, Residual
from interp.samples import Image, Target

PAPER = Paper(
    "Bach, Sebastian and Binder, Alexander and Montavon, Gregoire and Klauschen, Frederick and Mueller, Klaus-Robert "
    "and Samek, Wojciech",
    "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    2015,
    "PLOS ONE",
    "https://doi.org/10.1371/journal.pone.0130140",
)


@lens("LRP-epsilon", PAPER, cost=lambda model, **_: (1, 1))
def lrp(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    epsilon: Annotated[float, Range(0, 1)] = 0.01,
) -> Heatmap:
    """Hand the class logit back layer by layer, to each input in proportion to what it added.

        z_j = sum_i x_i w_ij + b_j
        R_i = sum_j  x_i w_ij / (z_j + epsilon s_j sign z_j)  R_j,      s = mean_j |z_j|
        activation y = f(a):  R_a = R_y

    Computed as input x a modified gradient: |z| / (|z| + epsilon s) at every layer of weights and y / a at every
    activation. At epsilon 0, on a network of ReLUs, it is gradient x input. What the paper does not know counts as a
    weight that is given (Ali et al. 2022, arXiv:2202.07304): attention patterns, gates, and the deviation that a
    normalisation divides by.

    Args:
        target: The class to explain.
        epsilon: How much of what nearly cancels is absorbed, relative to the layer's mean magnitude. More is calmer,
            and adds up to less.

    Returns:
        Heatmap [height, width] at the model's input, in logits per pixel.

    Raises:
        Unsuitable: no such class; the network has a product of two activations, none of which is a gate.

    Assumes:
        That zero, in every layer, means nothing: there is no reference to choose.

    Misleads:
        Biases and epsilon take their share of the logit and keep it; the residual tells how much. How a transformer
        chose where to attend gets no relevance.
    """
    with model.record([INPUT], grad=True) as recorded, _Relevance(epsilon):
        logits = model(sample)
    index = model.class_index(target, logits.detach())
    leaf = recorded[INPUT]
    values = (leaf.detach() * gradient(logits[0, index], [leaf])[0])[0]
    score = float(logits[0, index].detach())
    gap = (float(values.double().sum()) - score) / abs(score) if score else 0.0
    meaning = f"(sum of the map - logit) / |logit|, of {score:.4g} logits: what biases and epsilon took"
    return pixel_map(model, sample, values, index, score, "logit per pixel", residual=Residual(gap, meaning))


class _Scaled(torch.autograd.Function):
    """A tensor as it is, with its gradient multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0], None


class _Relevance(TorchFunctionMode):
    """Inside, the gradient of every function is the one that makes input x gradient its relevance."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, in_place = name_of(function)
        inputs = [each for each in tensors((args, kwargs)) if each.requires_grad]
        if not inputs:
            return function(*args, **kwargs)
        if name in _SUMS:
            return self._absorbed(function(*args, **kwargs))
        if name in _GIVEN:
            return function(*args, **kwargs).detach()
        if name in _NORMS:
            return self._absorbed(_NORMS[name](*args, **kwargs))
        if name == "scaled_dot_product_attention":
            return _attention(*args, **kwargs)
        if name in PRODUCTS and len(inputs) > 1:
            raise Unsuitable(f"LRP-epsilon has no rule for a product of two activations ({name}).")
        if name in ELEMENTWISE and name != "relu":
            if in_place or kwargs.get("inplace"):
                raise Unsuitable(f"LRP-epsilon can't follow {name} in place.")
            x = inputs[0].detach()
            y, zero = (
                function(*(value if each is inputs[0] else each for each in args), **kwargs)
                for value in (x, torch.zeros_like(x))
            )
            if bool(zero.any()):  # a gate: what it lets through is given
                return y
            factor = torch.nan_to_num(y / x, posinf=0.0, neginf=0.0)
            return _Scaled.apply(inputs[0], factor) + (y - x)
        return function(*args, **kwargs)

    def _absorbed(self, out: Tensor) -> Tensor:
        size = out.detach().abs()
        # at 0 / 0 nothing was added, and nothing is handed back
        share = size / (size + self.epsilon * size.mean()) if self.epsilon else torch.ones_like(size)
        return _Scaled.apply(out, torch.nan_to_num(share))


_SUMS = {"linear", "addmm", "batch_norm", *(each for each in PRODUCTS if each.startswith("conv"))}
_GIVEN = {"softmax", "log_softmax", "norm", "normalize", "var", "std"}


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any, **__: Any
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    out = centred * torch.rsqrt(centred.detach().square().mean(dims, keepdim=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


_NORMS = {"layer_norm": _layer_norm}


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The output of attention, with its pattern given."""
    eye = torch.eye(value.shape[-2], dtype=value.dtype, device=value.device).expand(*value.shape[:-1], -1)
    pattern = F.scaled_dot_product_attention(
        query.detach(), key.detach(), eye, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if enable_gqa:
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    return pattern @ value
