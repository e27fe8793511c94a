"""Functions taken apart into steps that DeepLIFT has a rule for: what extends the papers, which know of none of them.

Each takes the pass at the input, and in place of x, which depends on the input, knows x0 = rules.reference(x) too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from interp import Unsuitable
from interp.methods.attribution._marks import depends, refusal

if TYPE_CHECKING:
    from interp.methods.attribution._multipliers import RescalePass

POOLS = {
    **{f"{kind}max_pool{n}d": n for kind in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"{kind}max_pool{n}d_with_indices": n for kind in ("", "adaptive_") for n in (1, 2, 3)},
    **dict.fromkeys(("max", "amax", "min", "amin"), 0),
}
"""What picks a winner, and over how many trailing axes (0: over one named axis)."""


def pooled(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Values and winners."""
    if POOLS[name]:
        function = getattr(F, name.removesuffix("_with_indices"))
        more = {key: value for key, value in kwargs.items() if key != "return_indices"}
        return function(*args[: 2 if "adaptive" in name else 6], **more, return_indices=True)
    axis, keep = axis_of(args, kwargs)
    chosen = args[0].max(axis, keepdim=keep) if name in ("max", "amax") else args[0].min(axis, keepdim=keep)
    return chosen.values, chosen.indices


def given(name: str, kwargs: Any, values: Tensor, winners: Tensor) -> Any:
    """What the function gives: values alone, or with the winners."""
    if name in ("max", "min"):
        return getattr(torch.return_types, name)((values, winners))
    return (values, winners) if kwargs.get("return_indices") or name.endswith("indices") else values


def axis_of(args: Any, kwargs: Any) -> tuple[int, bool]:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(axis, list | tuple) and len(axis) == 1:
        axis = axis[0]
    if not isinstance(axis, int):
        raise Unsuitable(refusal("max over several axes, or of two tensors,"))
    return axis, bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))


def _logsumexp(rules: RescalePass, input: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """exp, a sum, and log, all relative to the larger of both results, so that nothing overflows."""
    x, x0 = input, rules.reference(input)
    out, out0 = (each.logsumexp(dim, keepdim=True) for each in (x.detach(), x0))
    c = torch.maximum(out, out0)
    total, total0 = (out - c).exp(), (out0 - c).exp()
    near = (out - out0).abs() <= math.sqrt(torch.finfo(out.dtype).eps)
    multiplier = torch.where(near, 2 / (total + total0), (out - out0) / (total - total0))
    e = rules.secant(torch.exp, x - c, x0 - c, (x0 - c).exp())
    found = rules.chosen(e.sum(dim, keepdim=True), out, multiplier)
    return found if keepdim else found.squeeze(dim)


def _softmax(rules: RescalePass, input: Tensor, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """exp(x - logsumexp(x)): every multiplier in it is at most 1, however far image and reference are apart."""
    x, x0 = input, rules.reference(input)
    if dtype is not None:
        x, x0 = x.to(dtype), x0.to(dtype)
    rules.references[id(x)] = x0
    y0 = x0.softmax(dim)
    return rules.secant(torch.exp, x - _logsumexp(rules, x, dim, True), x0.log_softmax(dim), y0)


def _log_softmax(rules: RescalePass, input: Tensor, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    x = input if dtype is None else input.to(dtype)
    if x is not input:
        rules.references[id(x)] = rules.reference(input).to(dtype)
    return x - _logsumexp(rules, x, dim, True)


def _softmin(rules: RescalePass, input: Tensor, dim: int = -1, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    x = -input
    rules.references[id(x)] = -rules.reference(input)
    return _softmax(rules, x, dim, dtype=dtype)


def _normed(
    rules: RescalePass, x: Tensor, x0: Tensor, dims: tuple[int, ...], eps: float, centre: bool = True
) -> Tensor:
    """x / sqrt(mean x^2 + eps), centred before: square, rsqrt, and a product."""
    c, c0 = (x - x.mean(dims, keepdim=True), x0 - x0.mean(dims, keepdim=True)) if centre else (x, x0)
    square0 = c0.square()
    v0 = square0.mean(dims, keepdim=True)
    r = lambda v: torch.rsqrt(v + eps)  # noqa: E731
    v = rules.secant(torch.square, c, c0, square0).mean(dims, keepdim=True)
    return rules.times(torch.mul, c, c0, rules.secant(r, v, v0, r(v0)), r(v0))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    rules: RescalePass, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    *_: Any, **__: Any,
) -> Tensor:  # fmt: skip
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_normed(rules, input, rules.reference(input), dims, eps), weight, bias)


def _rms_norm(
    rules: RescalePass, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_normed(rules, input, rules.reference(input), dims, eps, centre=False), weight, None)


def _group_norm(
    rules: RescalePass, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    *_: Any,
) -> Tensor:  # fmt: skip
    x, x0 = (each.unflatten(1, (num_groups, -1)).flatten(2) for each in (input, rules.reference(input)))
    shape = (-1, *[1] * (input.dim() - 2))
    weight, bias = (None if each is None else each.view(shape) for each in (weight, bias))
    return _affine(_normed(rules, x, x0, (-1,), eps).reshape(input.shape), weight, bias)


def _norm(rules: RescalePass, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    if kwargs.get("p", ord) not in (2, 2.0, None, "fro"):
        raise Unsuitable(refusal("a norm other than 2"))
    x0 = rules.reference(x)
    square0 = x0.square()
    dims = tuple(range(x.dim())) if dim is None else dim
    v0 = square0.sum(dims, keepdim=keepdim)
    return rules.secant(
        torch.sqrt, rules.secant(torch.square, x, x0, square0).sum(dims, keepdim=keepdim), v0, v0.sqrt()
    )


def _normalize(rules: RescalePass, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> Tensor:
    if p != 2:
        raise Unsuitable(refusal("a norm other than 2"))
    x, x0 = input, rules.reference(input)
    square0 = x0.square()
    v0 = square0.sum(dim, keepdim=True)
    r = lambda v: v.sqrt().clamp_min(eps).reciprocal()  # noqa: E731
    v = rules.secant(torch.square, x, x0, square0).sum(dim, keepdim=True)
    return rules.times(torch.mul, x, x0, rules.secant(r, v, v0, r(v0)), r(v0))


def _var(
    rules: RescalePass, x: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: float | None = None, root: bool = False,
) -> Tensor:  # fmt: skip
    dims = tuple(range(x.dim())) if dim is None else dim if isinstance(dim, list | tuple) else (dim,)
    count = math.prod(x.shape[each] for each in dims) - (float(unbiased) if correction is None else correction)
    x0 = rules.reference(x)
    c, c0 = x - x.mean(dims, keepdim=True), x0 - x0.mean(dims, keepdim=True)
    square0 = c0.square()
    v0 = square0.sum(dims, keepdim=keepdim) / count
    v = rules.secant(torch.square, c, c0, square0).sum(dims, keepdim=keepdim) / count
    return rules.secant(torch.sqrt, v, v0, v0.sqrt()) if root else v


def _divided(rules: RescalePass, input: Any, other: Any, **kwargs: Any) -> Tensor:
    if kwargs.get("rounding_mode"):
        raise Unsuitable(refusal("division with rounding"))
    b0 = rules.reference(other)
    r = rules.secant(torch.reciprocal, other, b0, b0.reciprocal())
    if depends(input):
        return rules.times(torch.mul, input, rules.reference(input), r, b0.reciprocal())
    return r * input


def _rdivided(rules: RescalePass, input: Any, other: Any) -> Tensor:
    """other / input."""
    return _divided(rules, other, input)


def _glu(rules: RescalePass, input: Tensor, dim: int = -1) -> Tensor:
    (a, b), (a0, b0) = input.chunk(2, dim), rules.reference(input).chunk(2, dim)
    return rules.times(torch.mul, a, a0, rules.secant(torch.sigmoid, b, b0, b0.sigmoid()), b0.sigmoid())


def _larger(rules: RescalePass, input: Any, other: Any) -> Tensor:
    """max(a, b) = b + relu(a - b)."""
    gap0 = rules.reference(input) - rules.reference(other)
    return other + rules.secant(torch.relu, input - other, gap0, gap0.relu())


def _smaller(rules: RescalePass, input: Any, other: Any) -> Tensor:
    """min(a, b) = a - relu(a - b)."""
    gap0 = rules.reference(input) - rules.reference(other)
    return input - rules.secant(torch.relu, input - other, gap0, gap0.relu())


def _attention(
    rules: RescalePass, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention: a product, a softmax, a product."""
    (q, k, v), (q0, k0, v0) = (query, key, value), map(rules.reference, (query, key, value))
    if enable_gqa:
        k, k0, v, v0 = (each.repeat_interleave(q.shape[-3] // each.shape[-3], -3) for each in (k, k0, v, v0))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask: Any = 0.0
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        mask = attn_mask
        if attn_mask.dtype == torch.bool:
            mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
    q, q0 = q * factor, q0 * factor
    k, k0 = k.transpose(-2, -1), k0.transpose(-2, -1)
    scores0 = q0 @ k0 + mask
    scores = rules.both(torch.matmul, q, q0, k, k0) + mask
    rules.references[id(scores)] = scores0
    return rules.both(torch.matmul, _softmax(rules, scores), scores0.softmax(-1), v, v0)


WHOLE: dict[str, Callable[..., Tensor]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "softmin": _softmin,
    "logsumexp": _logsumexp,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "norm": _norm,
    "normalize": _normalize,
    "var": _var,
    "std": lambda *args, **kwargs: _var(*args, **kwargs, root=True),
    "div": _divided,
    "rdiv": _rdivided,
    "glu": _glu,
    "maximum": _larger,
    "minimum": _smaller,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(POOLS, _softmax),
}
