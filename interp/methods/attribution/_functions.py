"""The functions that networks are made of, by name: which are linear, which are elementwise, which are products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


LINEAR = names(
    # the same numbers in another order or type
    "view view_as reshape reshape_as flatten unflatten permute transpose t T mT H adjoint movedim moveaxis swapaxes",
    "swapdims squeeze unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile contiguous clone chunk",
    "split split_with_sizes tensor_split unbind narrow select index_select getitem gather take_along_dim roll flip",
    "fliplr flipud rot90 unfold fold pad constant_pad_nd cat concat concatenate stack hstack vstack to float double",
    "half bfloat16 type type_as cpu cuda pixel_shuffle pixel_unshuffle channel_shuffle tril triu diagonal",
    "masked_fill where index_copy dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout",
    "feature_alpha_dropout",
    # sums
    "sum mean cumsum nansum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d",
    "adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear add sub subtract radd rsub neg",
    "negative positive batch_norm",
)
"""Linear in everything that depends on the input, up to a constant."""

ACTIVATIONS = names(
    "relu relu6 gelu silu mish sigmoid tanh elu selu celu leaky_relu prelu rrelu softplus softsign softshrink",
    "hardshrink tanhshrink threshold hardtanh hardsigmoid hardswish logsigmoid",
)
ELEMENTWISE = ACTIVATIONS | names(
    "exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square abs sin cos tan atan arctan sinh cosh asinh erf erfc",
    "reciprocal pow rpow float_power clamp clip clamp_min clamp_max logit",
)
"""Each output depends on the input at the same place alone."""

PIECEWISE = names("relu relu6 leaky_relu prelu rrelu threshold hardtanh hardshrink softshrink abs clamp clip")
"""Made of straight pieces, so that a difference is exact however small."""

SHAPES = names(
    "new_ones new_zeros new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like",
)
"""Takes nothing but a shape and a type from what it is given."""

LIKE = names("to type_as view_as reshape_as expand_as")
"""Takes nothing but a shape and a type from all but the first it is given."""

PRODUCTS = names(
    "mul multiply rmul matmul rmatmul mm bmm linear addmm baddbmm einsum conv1d conv2d conv3d",
    "conv_transpose1d conv_transpose2d conv_transpose3d",
)
"""Linear in either of two factors."""


def name_of(function: Any) -> tuple[str, bool]:
    """The name of a torch function without what tells its variants apart, and whether it works in place."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return str(function.__self__.__name__), False
    if name.startswith("__") and name.endswith("__"):
        plain = name.strip("_")
        if plain in ("iadd", "isub", "imul", "itruediv", "ipow", "setitem"):
            return {"itruediv": "div", "setitem": "setitem"}.get(plain, plain[1:]), True
        return {"truediv": "div", "rtruediv": "rdiv"}.get(plain, plain), False
    if name.endswith("_") and not name.endswith("__"):
        return _plain(name[:-1]), True
    return _plain(name), False


def _plain(name: str) -> str:
    name = {"true_divide": "div", "divide": "div", "vector_norm": "norm", "linalg_vector_norm": "norm"}.get(name, name)
    name = {"log_sigmoid": "logsigmoid"}.get(name, name)
    return name.removeprefix("_") if name.startswith(("_max_pool", "_threshold", "_adaptive_max_pool")) else name


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)


def replaced(value: Any, new: Callable[[Tensor], Any]) -> Any:
    """The same nest with `new(tensor)` for every tensor."""
    if isinstance(value, Tensor):
        return new(value)
    if isinstance(value, list | tuple):
        kept = [replaced(each, new) for each in value]
        return type(value)(*kept) if hasattr(value, "_fields") else type(value)(kept)
    if isinstance(value, Mapping):
        return {key: replaced(each, new) for key, each in value.items()}
    return value


Product = Callable[[Tensor, Tensor], Tensor]


def factors(name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Product, Any, Any, Any]:
    """A product taken apart: what multiplies (without bias), both factors, and what is added to it."""
    if name in ("mul", "multiply", "rmul"):
        other = args[1] if len(args) > 1 else kwargs["other"]
        return torch.mul, args[0], other, None
    if name in ("matmul", "mm", "bmm"):
        other = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("mat2"))
        return torch.matmul, args[0], other, None
    if name == "rmatmul":
        return torch.matmul, args[1], args[0], None
    if name == "linear":
        x, weight, bias = _bound(args, kwargs, "input", "weight", "bias")
        return F.linear, x, weight, bias
    if name in ("addmm", "baddbmm"):
        added, a, b = args[:3]
        alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
        return (lambda a, b: alpha * (a @ b)), a, b, (added if beta == 1 else beta * added if beta else None)
    if name == "einsum":
        operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
        if len(operands) != 2:
            raise NotImplementedError
        return (lambda a, b: torch.einsum(args[0], a, b)), *operands, None
    x, weight, bias = _bound(args, kwargs, "input", "weight", "bias")
    rest = args[3:]
    more = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
    shape = None if bias is None else bias.view(-1, *[1] * (weight.dim() - 2))
    return (lambda x, weight: function(x, weight, None, *rest, **more)), x, weight, shape


def _bound(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> list[Any]:
    return [args[index] if index < len(args) else kwargs.get(name) for index, name in enumerate(names)]
