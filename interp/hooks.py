"""Record, edit, go around, swap: the only file that touches PyTorch hooks, attention functions or replaces weights.

Every module gets its hooks once, when a model is loaded. They are plain functions that find the module's address in an
attribute (deep copies keep both) and look up in a ContextVar, the plan, what this thread wants done there. So any
number of threads use one network at once, each with its own plan.
"""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from interp.progress import check

Function = Callable[[Tensor], Tensor]
Around = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
Key = tuple[int, str, str]
"""Whose network, the module's address in it, and the port: in, out, mid, q, k, v, pattern, z or call."""

_owners = itertools.count()


@dataclass(frozen=True)
class Point:
    """Where a site lies in a network: a key; the head on `axis` where the site names one; for resid_mid, its block.

    copied: what is recorded or put there is kept apart from what the network goes on with, which may be changed in
    place by its own code (ResNet's `hidden_state += residual`).
    """

    key: Key
    head: int | None = None
    axis: int = 0
    block: str | None = None
    copied: bool = False


class Recorder:
    """Stores what one site was after all edits; `grad`: as a part of the graph, a leaf where the graph starts."""

    def __init__(self, every: bool, grad: bool) -> None:
        self.every, self.grad = every, grad
        self.values: list[Tensor] = []

    def store(self, value: Tensor, copied: bool = False) -> Tensor:
        if self.values and not self.every:
            raise RuntimeError("This site was reached a second time inside one record block; use every=True.")
        if self.grad and not value.requires_grad:
            value = value.detach().requires_grad_()
        self.values.append(value if self.grad else value.detach())
        return value.clone() if copied else value


@dataclass(frozen=True)
class Action:
    """One thing to do at a point: an edit (`function`), a record (`recorder`), or going around a block (`around`)."""

    point: Point
    function: Function | None = None
    recorder: Recorder | None = None
    around: Around | None = None


@dataclass
class Here:
    """Where a forward stands, for edits that depend on position.

    positions: absolute, [batch, position], -1 = padding; None for images. keys: the same for keys, the cache included.
    prompt: length of the (longest) prompt in tokens. generated: [batch, position], true from the last prompt token on.
    scratch: a dict that lives for one generation.
    """

    positions: Tensor | None = None
    keys: Tensor | None = None
    prompt: int = 0
    generated: Tensor | None = None
    scratch: dict[Any, Any] = field(default_factory=dict)
    resid_pre: dict[str, Tensor] = field(default_factory=dict)


Plan = Mapping[Key, tuple[Action, ...]]
_PLAN: ContextVar[Plan] = ContextVar("plan", default={})  # noqa: B039  (never mutated: every block makes a new mapping)
_HERE: ContextVar[Here | None] = ContextVar("here", default=None)
_NETWORKS: ContextVar[Mapping[int, nn.Module]] = ContextVar("networks", default={})  # noqa: B039  (never mutated)
_IN_FORCE: ContextVar[tuple[Hashable, ...]] = ContextVar("in_force", default=())


def here() -> Here:
    """Say where the forward that calls this edit stands: absolute positions, prompt length, scratch.

    Raises:
        RuntimeError: outside a forward.
    """
    now = _HERE.get()
    if now is None:
        raise RuntimeError("here() is known only inside an edit, while a model runs.")
    return now


def in_force() -> tuple[Hashable, ...]:
    """The calls of the interventions in force, in order of entry; a raw edit or swap stands there as a unique `Raw`."""
    return _IN_FORCE.get()


def plan() -> Plan:
    """What is wanted where, in this context."""
    return _PLAN.get()


class Raw:
    """An edit or swap that no Call describes; equal only to itself, so nothing computed under it is ever reused."""


class Block:
    """A with-block that sets context variables and puts them back, whatever happens inside."""

    def __init__(self, *settings: Callable[[], tuple[ContextVar[Any], Any]], value: Any = None) -> None:
        self.settings, self.value = settings, value
        self.tokens: list[tuple[ContextVar[Any], Token[Any]]] = []

    def __enter__(self) -> Any:
        if self.tokens:
            raise RuntimeError("This block is already entered.")
        try:
            for setting in self.settings:
                variable, value = setting()
                self.tokens.append((variable, variable.set(value)))
        except BaseException:
            self.__exit__()
            raise
        return self.value

    def __exit__(self, *_: object) -> None:
        while self.tokens:
            variable, token = self.tokens.pop()
            variable.reset(token)


def planned(actions: Iterable[Action], value: Any = None, raw: bool = False) -> Block:
    """A block in which `actions` are in force, after those of the blocks around it. `raw`: marks it in `in_force`."""
    actions = tuple(actions)

    def plan() -> tuple[ContextVar[Any], Any]:
        new = dict(_PLAN.get())
        for action in actions:
            new[action.point.key] = (*new.get(action.point.key, ()), action)
            if action.point.block is not None:
                new[action.point.key[0], action.point.block, "keep"] = (action,)
        return _PLAN, new

    return Block(plan, *([_raw] if raw else []), value=value)


def _raw() -> tuple[ContextVar[Any], Any]:
    return _IN_FORCE, (*_IN_FORCE.get(), Raw())


def calling(call: Hashable, inner: Any) -> Any:
    """The block of an intervention: enters `inner`, and stands in `in_force` as `call` instead of inner's raw marks."""
    return _Calling(call, inner)


class _Calling:
    def __init__(self, call: Hashable, inner: Any) -> None:
        self.call, self.inner = call, inner
        self.block = Block()

    def __enter__(self) -> Any:
        before = _IN_FORCE.get()
        value = self.inner.__enter__()
        self.block = Block(lambda: (_IN_FORCE, (*before, self.call)))
        self.block.__enter__()
        return value

    def __exit__(self, *problem: Any) -> Any:
        self.block.__exit__()
        return self.inner.__exit__(*problem)


def plan_now() -> Callable[[], Block]:
    """Capture what is in force now, to be entered again later: a stream does so for each forward."""
    plan, networks, calls = _PLAN.get(), _NETWORKS.get(), _IN_FORCE.get()
    return lambda: Block(lambda: (_PLAN, plan), lambda: (_NETWORKS, networks), lambda: (_IN_FORCE, calls))


def alone() -> Block:
    """A block in which nothing is in force: the model as it was loaded."""
    return Block(lambda: (_PLAN, {}), lambda: (_NETWORKS, {}), lambda: (_IN_FORCE, ()))


def at(now: Here) -> Block:
    """A block in which a forward stands at `now`."""
    return Block(lambda: (_HERE, now))


def has_around(owner: int) -> bool:
    """Whether a block of this network is gone around (skipped, replayed ...), which a key-value cache can't follow."""
    return any(key[0] == owner and key[2] == "call" for key in _PLAN.get())


# ---------------------------------------------------------------------------------------------------------- installing


def install(network: nn.Module, blocks: Iterable[nn.Module] = ()) -> int:
    """Give every module of `network` its hooks and address, and every block its dispatching class; return the owner."""
    with _installing:
        if network in _installed:  # a second handle on the same network
            return _installed[network]
        owner = _installed[network] = next(_owners)
        _address(network, owner, "")
        for block in blocks:
            block.__class__ = _dispatching(type(block))
        implementation = getattr(network.config, "_attn_implementation", None)
        if implementation in ("sdpa", "eager") and getattr(network, "_supports_attention_backend", False):
            network.set_attn_implementation(f"actiscope_{implementation}")  # type: ignore[operator]
    return owner


_installed: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_installing = threading.Lock()
_classes: dict[type, type] = {}


def _address(network: nn.Module, owner: int, prefix: str) -> None:
    """Write their addresses into the modules of `network`, with hooks for those that have none (copies keep theirs)."""
    for path, module in network.named_modules():
        module._address = (owner, f"{prefix}.{path}".strip("."))
        if _before not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_before, with_kwargs=True)
            module.register_forward_hook(_after)


def _dispatching(cls: type) -> type:
    """The subclass of a block's class that lets the plan go around it. Clones share it and keep their own weights."""
    if cls in _classes.values():
        return cls
    if cls not in _classes:

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            plan = _PLAN.get()
            actions = plan.get((*self._address, "call"), ()) if plan else ()  # type: ignore[misc]
            keep = bool(plan) and (*self._address, "keep") in plan  # type: ignore[misc]
            if not actions and not keep:
                return cls.forward(self, *args, **kwargs)  # type: ignore[attr-defined]

            form: list[Any] = []

            def through(hidden: Tensor) -> Tensor:
                if keep:
                    here().resid_pre[self._address[1]] = hidden  # type: ignore[index]
                new_args, new_kwargs = _put_input(args, kwargs, hidden)
                form[:] = [cls.forward(self, *new_args, **new_kwargs)]  # type: ignore[attr-defined]
                return _get_output(form[0])

            run: Callable[[Tensor], Tensor] = through
            for action in actions:
                run = _partial(action.around, run)  # type: ignore[arg-type]
            output = run(_get_input(args, kwargs))
            return _put_output(form[0], output) if form else output

        _classes[cls] = type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__})
    return _classes[cls]


def _partial(around: Around, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda hidden: around(run, hidden)


# ------------------------------------------------------------------------------------------------------ during forwards


def _before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    check()
    plan = _PLAN.get()
    actions = plan.get((*module._address, "in")) if plan else None
    return _put_input(args, kwargs, _act(actions, _get_input(args, kwargs))) if actions else None


def _after(module: Any, args: tuple[Any, ...], output: Any) -> Any:
    plan = _PLAN.get()
    if not plan:
        return None
    owner, address = module._address
    out, mid = plan.get((owner, address, "out"), ()), plan.get((owner, address, "mid"), ())
    if not out and not mid:
        return None
    value = _act(out, _get_output(output), records=not mid)
    if mid:
        # resid_mid = resid_pre + attn_out: the skip path has no module of its own, so a change of it goes into attn_out
        resid_pre = here().resid_pre[mid[0].point.block]  # type: ignore[index]
        middle = resid_pre + value
        changed = _act(mid, middle)
        # a gradient is asked for at the sum, so the sum has to lie on the path even where no edit changed it
        if changed is not middle or any(action.recorder and action.recorder.grad for action in mid):
            value = changed - resid_pre
        value = _act(tuple(action for action in out if action.recorder), value)
    return _put_output(output, value)


def _act(actions: tuple[Action, ...], value: Tensor, records: bool = True) -> Tensor:
    """Apply the edits in order of entry, then record."""
    now = _HERE.get()
    flat = None
    if value.dim() == 2 and now is not None and now.positions is not None and len(value) == now.positions.numel():
        flat = value.shape  # OPT and mixtures of experts flatten batch and position
        value = value.view(*now.positions.shape, -1)
    for action in actions:
        if action.function is not None:
            value = _edit(action, value)
    for action in actions:
        if records and action.recorder is not None:
            value = _record(action, value)
    return value if flat is None else value.reshape(flat)


def _edit(action: Action, value: Tensor) -> Tensor:
    point, function = action.point, action.function
    part = value if point.head is None else value.select(point.axis, point.head)
    version = None if value.is_inference() else value._version
    new = function(part)  # type: ignore[misc]
    if not isinstance(new, Tensor):
        raise TypeError(f"An edit returned {type(new).__name__} instead of a tensor.")
    if version is not None and value._version != version:
        raise RuntimeError(
            "An edit must return a new tensor; changing the activation in place would change others too."
        )
    if new is part:
        return value
    # the batch may grow or shrink (many variants of one activation), anything else would be broadcast silently
    if new.shape[1:] != part.shape[1:]:
        raise ValueError(f"An edit turned an activation of shape {tuple(part.shape)} into {tuple(new.shape)}.")
    new = new.to(part)
    new = new if point.head is None else _put_head(value, point, new)
    padding = _padding(value, point)
    new = new if padding is None else torch.where(padding, value, new)
    return new.clone() if point.copied else new


def _record(action: Action, value: Tensor) -> Tensor:
    point, recorder = action.point, action.recorder
    if point.head is None:
        return recorder.store(value, point.copied)  # type: ignore[union-attr]
    part = value.select(point.axis, point.head)
    stored = recorder.store(part)  # type: ignore[union-attr]
    # with gradients, the stored head has to lie on the path
    return _put_head(value, point, stored) if recorder.grad else value  # type: ignore[union-attr]


def _put_head(value: Tensor, point: Point, new: Tensor) -> Tensor:
    parts = list(value.unbind(point.axis))
    parts[point.head] = new  # type: ignore[index]
    return torch.stack(parts, point.axis)


def _padding(value: Tensor, point: Point) -> Tensor | None:
    """Where `value` belongs to padding, shaped to broadcast; padding is never edited."""
    now = _HERE.get()
    if now is None or now.positions is None or now.keys is None or value.shape[0] != now.keys.shape[0]:
        return None
    queries, keys = now.positions < 0, now.keys < 0
    if value.dim() < 2 or not bool(keys.any()):
        return None
    if point.key[2] == "pattern":
        return queries[:, None, :, None] | keys[:, None, None, :]
    padding = next((each for each in (queries, keys) if each.shape[1] == value.shape[1]), None)
    return None if padding is None else padding.view(*padding.shape, *[1] * (value.dim() - 2))


def _first(kwargs: Mapping[str, Any]) -> str:
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return name
    raise RuntimeError("This module takes no tensor.")


def _get_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args and isinstance(args[0], Tensor) else kwargs[_first(kwargs)]


def _put_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args and isinstance(args[0], Tensor):
        return (value, *args[1:]), dict(kwargs)
    return args, {**kwargs, _first(kwargs): value}


def _get_output(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _put_output(output: Any, value: Tensor) -> Any:
    if isinstance(output, Tensor):
        return value
    if isinstance(output, dict):  # a ModelOutput, made for this forward alone
        output[next(iter(output))] = value
        return output
    return (value, *output[1:])


# ----------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class Scoring:
    """How a layer's attention makes scores of queries and keys: s = cap(scale q k') + mask; pattern = softmax(s)."""

    scale: float
    cap: float | None
    mask: Tensor | None

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """Scores [batch, head, query, key] of q [batch, query, head, d_head] and k [batch, key, kv_head, d_head]."""
        heads = query.shape[2] // key.shape[2]
        raw = query.transpose(1, 2) @ repeat_kv(key.transpose(1, 2), heads).transpose(2, 3) * self.scale
        raw = raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)
        return raw if self.mask is None else raw + self.mask


def _attend(base: str, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Attention with the plan's edits and records at q k v [batch, position, head, d_head], pattern and z."""
    plan = _PLAN.get()
    own = {port: plan.get((*module._address, port), ()) for port in ("q", "k", "v", "pattern", "z")} if plan else {}
    for action in plan.get((*module._address, "scoring"), ()) if plan else ():
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        action.recorder.values.append(Scoring(scale, kwargs.get("softcap"), mask))  # type: ignore[union-attr, arg-type]
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    # a pattern asked for anywhere makes all layers eager, so that the whole is bit for bit the eager model
    chosen = eager if base == "eager" or _touches_pattern(plan) else sdpa_attention_forward
    if not any(own.values()):
        return chosen(module, query, key, value, mask, **kwargs)

    query, key, value = (
        _act(own[port], tensor.transpose(1, 2)).transpose(1, 2) if own[port] else tensor
        for port, tensor in (("q", query), ("k", key), ("v", value))
    )
    attended: Any = chosen(module, query, key, value, mask, **kwargs)
    z, pattern = attended
    if own["pattern"]:
        pattern = _act(own["pattern"], pattern)
        z = (pattern @ repeat_kv(value, pattern.shape[1] // value.shape[1])).transpose(1, 2)
    return _act(own["z"], z), pattern


def _mask(base: str, *args: Any, **kwargs: Any) -> Any:
    """The mask that `_attend` needs: additive where it will be eager, or transformers' own for SDPA."""
    return (eager_mask if base == "eager" or _touches_pattern(_PLAN.get()) else sdpa_mask)(*args, **kwargs)


def _touches_pattern(plan: Plan) -> bool:
    return any(key[2] == "pattern" for key in plan)


def _attend_sdpa(*args: Any, **kwargs: Any) -> Any:
    return _attend("sdpa", *args, **kwargs)


def _attend_eager(*args: Any, **kwargs: Any) -> Any:
    return _attend("eager", *args, **kwargs)


def _mask_sdpa(*args: Any, **kwargs: Any) -> Any:
    return _mask("sdpa", *args, **kwargs)


def _mask_eager(*args: Any, **kwargs: Any) -> Any:
    return _mask("eager", *args, **kwargs)


AttentionInterface.register("actiscope_sdpa", _attend_sdpa)
AttentionInterface.register("actiscope_eager", _attend_eager)
AttentionMaskInterface.register("actiscope_sdpa", _mask_sdpa)
AttentionMaskInterface.register("actiscope_eager", _mask_eager)


# ------------------------------------------------------------------------------------------------------------- weights


def clone(network: nn.Module) -> nn.Module:
    """A copy of the modules that shares Parameters, buffers and config with the original: never `.to()` or train it."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
    memo |= {id(module.config): module.config for module in network.modules() if hasattr(module, "config")}
    return copy.deepcopy(network, memo)


def swapped(owner: int, network: Callable[[], nn.Module], new: Mapping[str, Tensor | nn.Module]) -> Block:
    """A block in which this context's network is a clone with `new` in place of parameters, buffers or modules.

    A tied parameter changes under all its names, and `new` itself is left as it is.

    Raises (on entry):
        KeyError: a name the network has not. ValueError: another shape.
    """

    def networks() -> tuple[ContextVar[Any], Any]:
        changed = clone(network())
        for name, value in new.items():
            _replace(changed, owner, name, value)
        return _NETWORKS, {**_NETWORKS.get(), owner: changed}

    return Block(networks, _raw)


def _replace(network: nn.Module, owner: int, name: str, value: Tensor | nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        parent = network.get_submodule(path)
    except AttributeError:
        raise KeyError(name) from None
    if isinstance(value, nn.Module):
        if leaf not in parent._modules:
            raise KeyError(name)
        value = clone(value)  # it may wrap modules of the network it goes into, whose addresses must stay
        _address(value, owner, name)
        blocks = {
            path for path, module in parent.get_submodule(leaf).named_modules() if type(module) in _classes.values()
        }
        for path, module in value.named_modules():
            if path in blocks:
                module.__class__ = _dispatching(type(module))
        parent._modules[leaf] = value
        return
    old = next((each[leaf] for each in (parent._parameters, parent._buffers) if leaf in each), None)
    if old is None:
        raise KeyError(name)
    if old.shape != value.shape:
        raise ValueError(f"{name} is {tuple(old.shape)}, not {tuple(value.shape)}.")
    for module in network.modules():
        stores: tuple[Any, Any] = (module._parameters, module._buffers)
        for store in stores:
            for slot, tensor in store.items():
                if tensor is old:
                    store[slot] = value.to(old)


def network_now(owner: int, base: nn.Module) -> nn.Module:
    """The network that this context sees: `base`, or the clone of the innermost swap in force."""
    return _NETWORKS.get().get(owner, base)
