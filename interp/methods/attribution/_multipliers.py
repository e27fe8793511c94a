"""DeepLIFT's multipliers, function by function: a pass at the reference, then one at the input that meets it again.

A TorchFunctionMode sees every function that a network calls, whatever module, operator or method calls it. What
depends on the input is marked. The first pass keeps what enters each nonlinear function; the second gives each of them
the multiplier between the two as its gradient, so that one backward gives m with  sum_i m_i (x_i - x0_i) = t - t0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from interp import Unsuitable
from interp.methods.attribution._functions import (
    ACTIVATIONS,
    ELEMENTWISE,
    LIKE,
    LINEAR,
    PIECEWISE,
    PRODUCTS,
    SHAPES,
    Product,
    factors,
    name_of,
    names,
    replaced,
    tensors,
)
from interp.methods.attribution._marks import Mark, depends, mark_of, marked, refusal
from interp.methods.attribution._whole import POOLS, WHOLE, axis_of, given, pooled
from interp.model import gradient

Rule = Literal["rescale", "reveal cancel", "genomics default"]
Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What a nonlinear function was given, and what it gave, at the reference."""

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    origin: str = ""


class _Pass(TorchFunctionMode):
    """Follows what depends on the input, and asks its subclass what to do at each function."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [each for each in tensors((args, kwargs)) if depends(each)]
        if not inputs:
            return function(*args, **kwargs)
        name, in_place = name_of(function)
        marks = [mark for each in inputs if (mark := mark_of(each)) is not None]
        if name in ("detach", "data") or name in SHAPES or (name in LIKE and not depends(args[0])):
            return function(*args, **kwargs)
        known = name in LINEAR or name in ELEMENTWISE or name in PRODUCTS or name in WHOLE
        if not known or any(mark.choice for mark in marks):
            out = function(*args, **kwargs)
            if any(each.is_floating_point() or each.is_complex() for each in tensors(out)):
                raise Unsuitable(refusal(name, any(mark.choice for mark in marks)))
            for each in tensors(out):  # a comparison, an index: harmless until it chooses among numbers
                marked(each, Mark(choice=True))
            return out
        if _trains(name, args, kwargs):
            raise Unsuitable(f"{name} is in training mode; attribution needs the model in eval mode.")
        if in_place or kwargs.get("inplace"):
            return self._in_place(name, function, args, kwargs)
        out = self._out_of_place(name, function, args, kwargs)
        origin = "conv" if name.startswith("conv") else "linear" if name in ("linear", "addmm") else marks[0].origin
        for each in tensors(out):
            if not each.is_floating_point():
                marked(each, Mark(choice=True))
            elif (mark := mark_of(each)) is None:
                marked(each, Mark(origin))
            elif not mark.origin:
                mark.origin = origin
        return out

    def _out_of_place(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        if name in LINEAR:
            return self.linear(name, function, args, kwargs)
        if name == "div" and not kwargs.get("rounding_mode") and not depends(_second(args, kwargs)):
            return self.scale(name, function, args, kwargs)
        if name in PRODUCTS:
            try:
                product, a, b, added = factors(name, function, args, kwargs)
            except NotImplementedError:
                raise Unsuitable(refusal(name)) from None
            if not (depends(a) and depends(b)):
                if depends(added):
                    raise Unsuitable(refusal(f"{name} with a bias that depends on the input"))
                return self.scale(name, function, args, kwargs)
            out = self.nonlinear("product", product, (a, b), {})
            if mark_of(out) is None:
                marked(out, Mark())
            if added is None:
                return out
            with self:
                return out + added
        return self.nonlinear(name, function, args, kwargs)

    def _in_place(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        if name == "setitem":
            raise Unsuitable(refusal("assignment to a part of a tensor"))
        plain = getattr(torch.Tensor, name, None) or getattr(F, name)
        if (mark := mark_of(args[0])) is not None:  # what it was must not be overwritten where it is still needed
            args, target = (marked(args[0].clone(), mark), *args[1:]), args[0]
        else:
            target = args[0]
        out = self._out_of_place(name, plain, args, {k: v for k, v in kwargs.items() if k != "inplace"})
        mark = mark_of(out) or next(mark for each in tensors(args) if (mark := mark_of(each)) is not None)
        target.copy_(out)
        return marked(target, mark)

    def linear(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """What is linear in everything that is marked."""
        return function(*args, **kwargs)

    def scale(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """A product of something marked with something fixed."""
        return function(*args, **kwargs)

    def nonlinear(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


def _second(args: Any, kwargs: Any) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("other")


def _trains(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it works as in training; each function has that flag at a place of its own."""
    place = {"batch_norm": 5, "rrelu": 3}.get(name, 2 if "dropout" in name else None)
    if place is None:
        return False
    return bool(kwargs.get("training", args[place] if len(args) > place else "dropout" in name))


# ------------------------------------------------------------------------------------------------ the two passes


class ReferencePass(_Pass):
    """The pass at the reference: keeps, in order, what each nonlinear function is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[Step] = []

    def nonlinear(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        inputs = tuple(each for each in tensors((args, kwargs)) if mark_of(each) is not None)
        if name in POOLS:
            out, winners = pooled(name, args, kwargs)
            self._keep(name, (*inputs, winners), out)
            return given(name, kwargs, out, winners)
        before = [each._version for each in inputs]
        out = function(*args, **kwargs)
        if before != [each._version for each in inputs]:
            raise Unsuitable(f"{name} overwrites what it is given, so that nothing is left to compare with.")
        self._keep(name, inputs, out)
        return out

    def _keep(self, name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        origin = getattr(mark_of(inputs[0]), "origin", "")
        # detached: other objects, without marks
        self.tape.append(Step(name, tuple(each.detach() for each in inputs), output.detach(), origin))

    def _in_place(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        # what stands on the tape must stay what it was
        for index, step in enumerate(self.tape):
            held = [each.untyped_storage().data_ptr() for each in (*step.inputs, step.output)]
            if args[0].untyped_storage().data_ptr() in held:
                kept = tuple(each.clone() for each in step.inputs)
                self.tape[index] = Step(step.name, kept, step.output.clone(), step.origin)
        return super()._in_place(name, function, args, kwargs)


class RescalePass(_Pass):
    """The pass at the input: each nonlinear function gets the multiplier between input and reference as gradient."""

    def __init__(self, tape: list[Step]) -> None:
        super().__init__()
        self.tape, self.at = tape, 0
        self.references: dict[int, Tensor] = {}

    def nonlinear(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        step = self.tape[self.at] if self.at < len(self.tape) else None
        inputs = [each for each in tensors((args, kwargs)) if mark_of(each) is not None]
        if (
            step is None
            or step.name != name
            or any(a.shape != b.shape for a, b in zip(inputs, step.inputs, strict=False))
        ):
            raise Unsuitable("The model takes another way through its layers for the reference than for the image.")
        self.at += 1
        if name in ELEMENTWISE:
            if len(inputs) > 1:
                raise Unsuitable(refusal(f"{name} of two things that depend on the input"))
            x = inputs[0]

            def f(v: Tensor) -> Tensor:
                if v.dtype == x.dtype:
                    return function(*replaced(args, lambda t: v if t is x else t), **kwargs)
                wide = lambda t: v if t is x else t.to(v.dtype) if t.is_floating_point() else t  # noqa: E731
                return function(*replaced(args, wide), **replaced(kwargs, wide))

            return self.elementwise(name, f, x, step.inputs[0], step.output)
        if name == "product":
            return self.times(function, args[0], step.inputs[0], args[1], step.inputs[1])
        if name in POOLS:
            return self._pool(name, args, kwargs, step)
        self.references = {id(each): reference for each, reference in zip(inputs, step.inputs, strict=True)}
        with self:
            return WHOLE[name](self, *args, **kwargs)

    def reference(self, value: Any) -> Any:
        """What stood in the place of `value` at the reference: itself where it does not depend on the input."""
        return self.references.get(id(value), value)

    def elementwise(self, name: str, f: Elementwise, x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
        return _Secant.apply(x, x0, y0, f, name)

    def secant(self, f: Elementwise, x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
        """f(x) for one step of a whole function, with multiplier (f(x) - f(x0)) / (x - x0)."""
        return marked(_Secant.apply(x, x0, y0, f, ""), Mark())

    def both(self, product: Product, a: Tensor, a0: Tensor, b: Tensor, b0: Tensor) -> Tensor:
        """product(a, b), where one of the two may be fixed."""
        return self.times(product, a, a0, b, b0) if depends(a) and depends(b) else product(a, b)

    def chosen(self, x: Tensor, y: Tensor, multiplier: Tensor) -> Tensor:
        """y, with a multiplier that is given."""
        return marked(_Attach.apply(y, x * multiplier), Mark())

    def times(self, product: Product, a: Tensor, a0: Tensor, b: Tensor, b0: Tensor) -> Tensor:
        """product(a, b): a's multiplier is the mean of b and b0, and b's that of a and a0, which adds up exactly."""
        a_mean, b_mean = (a.detach() + a0) / 2, (b.detach() + b0) / 2
        linear = product(a, b_mean) + product(a_mean, b)
        return marked(_Attach.apply(product(a.detach(), b.detach()), linear), Mark())

    def picked(self, x: Tensor, x0: Tensor, winners: Tensor, multiplier: Tensor, value: Tensor) -> Tensor:
        """What was picked from the last axis of x, with the multiplier of the pick."""
        return _Attach.apply(value, x.gather(-1, winners) * multiplier)

    def _pool(self, name: str, args: Any, kwargs: Any, step: Step) -> Any:
        """The winner at the input takes a rise, the winner at the reference a fall: a multiplier from 0 to 1."""
        x, x0, chosen0 = args[0], step.inputs[0], step.inputs[1]
        plain = args[0].detach()
        y, chosen = pooled(name, (plain, *args[1:]), kwargs)
        rank, minimum = POOLS[name], name in ("min", "amin")
        if not rank:  # a maximum over one axis
            axis, keep = axis_of(args, kwargs)
            shape = lambda t: t.movedim(axis, -1)  # noqa: E731
            fit = (lambda t: t.movedim(axis, -1)) if keep else (lambda t: t.unsqueeze(-1))
            undo = (lambda t: t.movedim(-1, axis)) if keep else (lambda t: t.squeeze(-1))
        else:
            shape = lambda t: t.flatten(-rank)  # noqa: E731
            fit = shape
            undo = lambda t: t.unflatten(-1, y.shape[-rank:])  # noqa: E731
        flat0, flat = shape(x0), shape(plain)
        value, value0, one, other = fit(y), fit(step.output), fit(chosen), fit(chosen0)
        rise = value - value0
        upward = (rise <= 0) if minimum else (rise >= 0)
        winners = torch.where(upward, one, other.expand_as(one))
        moved = flat.gather(-1, winners) - flat0.expand_as(flat).gather(-1, winners)
        multiplier = torch.where(moved == 0, torch.ones_like(moved), rise / moved)
        with self:
            out = undo(self.picked(shape(x), flat0, winners, multiplier, value))
        return given(name, kwargs, out, chosen)


class RevealCancelPass(RescalePass):
    """The same with the positive and the negative part of every difference kept apart: x - x0 = p + n.

    Linear: p' = W+ p + W- n, n' = W+ n + W- p. RevealCancel gives p and n multipliers of their own:
    p' = ([f(x0 + p) - f(x0)] + [f(x0 + p + n) - f(x0 + n)]) / 2, and n' likewise; Rescale gives both the same.
    The numbers run without a graph, the parts with one: their gradients are the multipliers. The parts are far larger
    than the difference they leave, so they run in double precision, whatever the type of the model; behind functions
    that the paper does not know they are the whole difference, by its sign.
    """

    def __init__(self, tape: list[Step], rule: Rule) -> None:
        super().__init__(tape)
        self.rule = rule

    def linear(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        if name == "batch_norm":
            return self._batch_norm(*args, **kwargs)
        out = function(*args, **kwargs)
        flipped = {"sub": 1, "subtract": 1, "rsub": 0, "neg": 0, "negative": 0}.get(name)
        swap = args[flipped] if flipped is not None else None

        def part(which: int) -> list[Tensor]:
            def stream(each: Tensor) -> Tensor:
                mark = mark_of(each)
                if mark is None or mark.streams is None:
                    return each.double() if each.is_floating_point() else each
                return mark.streams[which if each is not swap or args[0] is args[-1] else 1 - which]

            if name in _TYPES:
                return [stream(args[0])]
            return list(tensors(function(*replaced(args, stream), **replaced(kwargs, stream))))

        positive, negative = part(0), part(1)
        if name in _WITH_CONSTANTS:

            def zero(each: Tensor) -> Tensor:
                each = torch.zeros_like(each) if depends(each) else each
                return each.double() if each.is_floating_point() else each

            fixed = list(tensors(function(*replaced(args, zero), **replaced(kwargs, zero))))
            positive, negative = (
                [torch.where(c.isfinite(), each - c, 0) for each, c in zip(part_, fixed, strict=True)]
                for part_ in (positive, negative)
            )
        for each, p, n in zip(tensors(out), positive, negative, strict=True):
            marked(each, Mark(streams=(p, n)))
        return out

    def _batch_norm(
        self, input: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None, training: bool = False,
        momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        out = F.batch_norm(input.detach(), mean, var, weight, bias, False, momentum, eps)
        factor = (torch.rsqrt(var + eps) * (1 if weight is None else weight)).view(-1, *[1] * (input.dim() - 2))
        return marked(out, Mark(streams=_split(torch.mul, input, factor)))

    def scale(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        product: Product = torch.mul
        if name == "div":
            a, b = args[0], 1 / torch.as_tensor(_second(args, kwargs), dtype=out.dtype)
        else:
            product, a, b, _ = factors(name, function, args, kwargs)
        return marked(out, Mark(streams=_split(product, a, b)))

    def elementwise(self, name: str, f: Elementwise, x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
        y = f(x)
        p, n = _streams(x)
        origin = getattr(mark_of(x), "origin", "")
        if name not in ACTIVATIONS or not (self.rule == "reveal cancel" or origin == "linear"):
            m = slope(f, name, x, x0, y, y0)
            return marked(y, Mark(streams=(m * p, m * n)))
        up, down, start = p.detach(), n.detach(), x0.double()
        low, high = f(start), f(x.double())
        alone, other = f(start + up), f(start + down)
        rise, fall = ((alone - low) + (high - other)) / 2, ((other - low) + (high - alone)) / 2

        def ratio(change: Tensor, part: Tensor, rest: Tensor) -> Tensor:
            # a part that is nothing has the limit of the ratio
            near = part.abs() <= math.sqrt(torch.finfo(part.dtype).eps) * torch.maximum(x.abs(), x0.abs())
            if name in PIECEWISE:
                near = part == 0
            if not bool(near.any()):
                return change / part
            return torch.where(
                near, (derivative(f, x0 + part / 2) + derivative(f, x0 + rest + part / 2)) / 2, change / part
            )

        return marked(y, Mark(streams=(ratio(rise, up, down) * p, ratio(fall, down, up) * n)))

    def secant(self, f: Elementwise, x: Tensor, x0: Tensor, y0: Tensor) -> Tensor:
        y, (p, n) = f(x.detach()), _streams(x)
        return marked(y, Mark(streams=_by_sign(slope(f, "", x.detach(), x0, y, y0) * (p + n))))

    def chosen(self, x: Tensor, y: Tensor, multiplier: Tensor) -> Tensor:
        p, n = _streams(x)
        return marked(y.clone(), Mark(streams=_by_sign(multiplier * (p + n))))

    def times(self, product: Product, a: Tensor, a0: Tensor, b: Tensor, b0: Tensor) -> Tensor:
        out = product(a.detach(), b.detach())
        a_mean, b_mean = (a.detach() + a0) / 2, (b.detach() + b0) / 2
        one, two = torch.add(*_streams(a)), torch.add(*_streams(b))
        step = product(one, b_mean.double()) + product(a_mean.double(), two)
        return marked(out, Mark(streams=_by_sign(step)))

    def picked(self, x: Tensor, x0: Tensor, winners: Tensor, multiplier: Tensor, value: Tensor) -> Tensor:
        p, n = (each.gather(-1, winners) * multiplier for each in _streams(x))
        return marked(value.clone(), Mark(streams=(p, n)))


_WITH_CONSTANTS = names(
    "add sub subtract radd rsub cat concat concatenate stack hstack vstack where masked_fill pad constant_pad_nd",
    "index_copy",
)


_TYPES = names("to float double half bfloat16 type type_as")


def _by_sign(step: Tensor) -> tuple[Tensor, Tensor]:
    """The parts behind a function that the paper does not know: the whole difference, by its sign.

    Parts that were carried through attention and norms would grow from block to block until nothing is left of the
    difference between them.
    """
    rises = step.detach() > 0
    return torch.where(rises, step, 0), torch.where(rises, 0, step)


def _streams(x: Tensor) -> tuple[Tensor, Tensor]:
    mark = mark_of(x)
    assert mark is not None and mark.streams is not None
    return mark.streams


def _split(product: Product, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """The parts of a product with something fixed: what is negative in it swaps them."""
    p, n = _streams(a if depends(a) else b)
    fixed = torch.as_tensor(b if depends(a) else a, dtype=p.dtype, device=p.device).detach()
    go = product if depends(a) else (lambda part, w: product(w, part))
    plus, minus = fixed.clamp(min=0), fixed.clamp(max=0)
    return go(p, plus) + go(n, minus), go(n, plus) + go(p, minus)


class _Secant(torch.autograd.Function):
    """y = f(x), with (y - y0) / (x - x0) as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, y0: Tensor, f: Elementwise, name: str) -> Tensor:
        x, before = x.detach(), x._version  # unmarked, so that the mode lets it pass
        y = f(x)
        if x._version != before:
            raise Unsuitable(f"{name} overwrites what it is given, so that nothing is left to compare with.")
        ctx.save_for_backward(slope(f, name, x, x0, y, y0))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0], None, None, None, None


class _Attach(torch.autograd.Function):
    """One number forward, the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, gradient


def slope(f: Elementwise, name: str, x: Tensor, x0: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """(y - y0) / (x - x0); where the two are too near for that, the derivative in the middle."""
    step = x - x0
    if name == "relu":
        same, ratio = step == 0, (y - y0).div_(step)
        return torch.where(same, (x > 0).to(x.dtype), ratio) if bool(same.any()) else ratio
    if name in PIECEWISE:
        near = step == 0
    else:  # so near, rounding of y - y0 is worse than the curvature that the derivative leaves out
        near = ~(step.abs() > math.sqrt(torch.finfo(x.dtype).eps) * torch.maximum(x.abs(), x0.abs()))
    ratio = (y - y0) / step
    if not bool(near.any()):
        return ratio
    return torch.where(near, derivative(f, (x + x0) / 2), ratio)


def derivative(f: Elementwise, x: Tensor) -> Tensor:
    """f'(x), elementwise."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.nan_to_num(torch.autograd.grad(f(leaf).sum(), leaf)[0])


# ---------------------------------------------------------------------------------------------- from pass to answer


@dataclass(frozen=True)
class Reference:
    """What a forward left at the reference inputs: scores, and what entered its nonlinear functions."""

    inputs: Tensor
    scores: Float[Tensor, "reference class"]
    tape: tuple[Step, ...]


def at_reference(forward: Callable[[Tensor], Tensor], inputs: Float[Tensor, "reference ..."]) -> Reference:
    """Run the first pass: `forward(inputs) -> scores` [reference, class], in eval mode."""
    mode = ReferencePass()
    with torch.no_grad():
        start = marked(inputs.detach().clone(), Mark())
        with mode:
            scores = forward(start)
    return Reference(inputs, scores.detach(), tuple(mode.tape))


def contributions(
    forward: Callable[[Tensor], Tensor], inputs: Float[Tensor, "1 ..."], at: Reference, index: int, rule: Rule
) -> tuple[Float[Tensor, "reference ..."], Float[Tensor, reference]]:
    """Run the second pass and one backward: m (x - x0) for every reference, and the scores at the input.

    Raises:
        Unsuitable: an operation without a rule, named; or the reference takes another way through the network.
    """
    x = inputs.detach().expand_as(at.inputs)
    step = x - at.inputs
    if rule == "genomics default" and not any(s.name in ACTIVATIONS and s.origin == "linear" for s in at.tape):
        rule = "rescale"  # no activation behind a dense layer: the two are one
    if rule == "rescale":
        mode, leaves = RescalePass(list(at.tape)), [x.clone().requires_grad_()]
        start = marked(leaves[0].clone(), Mark())
    else:
        mode = RevealCancelPass(list(at.tape), rule)
        step = step.double()
        leaves = [step.clamp(min=0).requires_grad_(), step.clamp(max=0).requires_grad_()]
        start = marked(x.clone(), Mark(streams=(leaves[0], leaves[1])))
    with mode:
        scores = forward(start)
    if mode.at != len(mode.tape):
        raise Unsuitable("The model takes another way through its layers for the reference than for the image.")
    mark = mark_of(scores)
    if mark is None:
        return torch.zeros_like(step), scores.detach()[:, index]
    output = scores if mark.streams is None else mark.streams[0] + mark.streams[1]
    multipliers = gradient(output[:, index].sum(), leaves)
    parts = [step] if rule == "rescale" else [each.detach() for each in leaves]
    shares = [m * part for m, part in zip(multipliers, parts, strict=True)]
    return torch.stack(shares).sum(0), scores.detach()[:, index]
