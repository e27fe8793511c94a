"""Directions: vectors of the residual stream after each layer, with what is known of them, on disk and in files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp import Missing, Unsuitable, store
from interp.model import LanguageModel, Model
from interp.sites import Site

SHELF = Path(__file__).parent.parent / "assets" / "directions"
NAME = re.compile(r"[a-z0-9_-]{1,40}/[a-z0-9_.-]{1,60}|[0-9a-f]{64}")
"""How an experiment may name a direction: of the shelf, or of the store. Never a path of this machine."""
VERSION = 1
FACTS = ("accuracy", "cosine", "agreement", "norm", "low", "high")
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector for the residual stream after each of some layers (resid_post), in the stream's own units.

    A strength of 1 adds `vectors` as they are. facts, each [layer], NaN where unknown: accuracy (held out: the share of
    examples told right by a threshold in the middle), cosine with the difference of means, agreement (mean cosine of
    single pairs with it), norm (mean length of the stream there), low and high (mean projection <h, v> / <v, v> of the
    negative and positive examples).
    """

    name: str
    method: str
    model_name: str
    model_digest: str
    layers: tuple[int, ...]
    vectors: Float[Tensor, "layer d"]
    facts: Mapping[str, Float[Array, layer]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""

    @property
    def best(self) -> int:
        """The layer that tells best, the lowest of equals; the middle one where that is not known.

        By held-out accuracy, or by the held-out F1 of what was fitted as a condition.
        """
        accuracy = self.facts.get("f1", self.facts.get("accuracy"))
        if accuracy is None or np.isnan(accuracy).all():
            return self.layers[len(self.layers) // 2]
        return self.layers[int(np.nanargmax(accuracy))]

    def at(self, layer: int | None = None) -> Float[Tensor, d]:
        """The vector after that layer, the best one unless given.

        Raises:
            Unsuitable: it has none there.
        """
        layer = self.best if layer is None else layer
        if layer not in self.layers:
            there = f"layers {self.layers[0]} to {self.layers[-1]}" if len(self.layers) > 1 else f"{self.layers[0]}"
            raise Unsuitable(f"This direction is known after {there}, not after layer {layer}.")
        return self.vectors[self.layers.index(layer)]

    def fact(self, name: str, layer: int | None = None) -> float:
        """One of `facts` after a layer, the best one unless given; NaN where it is not known."""
        layer = self.best if layer is None else layer
        return float(self.facts[name][self.layers.index(layer)]) if name in self.facts else float("nan")

    def site(self, layer: int | None = None) -> Site:
        """Where it belongs."""
        return Site("resid_post", self.best if layer is None else layer)

    def score(self, h: Float[Tensor, "*batch d"], layer: int | None = None) -> Float[Tensor, "*batch"]:
        """Behaviour score of a stream: 0 where the negative examples are on average, 1 where the positive ones are."""
        v = self.at(layer).to(h)
        low, high = self.fact("low", layer), self.fact("high", layer)
        if not abs(high - low) > 0:
            raise Unsuitable(f"{self.name} knows no examples, so it gives no score; fit it on texts.")
        return ((h @ v) / v.dot(v).clamp(min=1e-30) - low) / (high - low)

    def check(self, model: Model) -> None:
        """See that it fits the model.

        Raises:
            Unsuitable: other weights, layers it has not, or another width.
        """
        if self.model_digest and self.model_digest != model.digest:
            raise Unsuitable(
                f"{self.name} was made for other weights ({self.model_name[:60]}) than {model.name}'s; choose one that "
                "was made for this model, or load that model."
            )
        if max(self.layers) >= model.layers:
            raise Unsuitable(f"{self.name} has a vector after layer {max(self.layers)}; {model.name} has layers 0 to "
                             f"{model.layers - 1}.")  # fmt: skip
        width = width_of(model)
        if self.vectors.shape[1] != width:
            raise Unsuitable(f"{self.name} is {self.vectors.shape[1]} numbers wide; {model.name}'s stream has {width}.")


def width_of(model: Model) -> int:
    """How wide the residual stream is."""
    from interp import hooks

    def look() -> int:
        site = Site("resid_post", 0)
        with torch.no_grad(), model.record([site]) as found:
            model(model._random_input())
        return int(found[site].shape[-1])

    with hooks.alone():
        return model.cached(("width of the stream",), look)


def to_bytes(direction: Direction) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and metadata of a direction's safetensors file."""
    about = {
        "version": VERSION, "name": direction.name, "method": direction.method, "model": direction.model_name,
        "model_digest": direction.model_digest, "layers": direction.layers, "about": dict(direction.about),
    }  # fmt: skip
    facts = {f"fact.{name}": np.asarray(each, np.float64) for name, each in direction.facts.items()}
    return {"vectors": direction.vectors.float().cpu().numpy(), **facts}, {
        "direction": json.dumps(about, sort_keys=True)
    }


def keep(direction: Direction, key: str = "") -> str:
    """Take a direction into the store, and return the key by which experiments and links find it.

    Raises:
        Unsuitable: its numbers are not finite, or it is nothing at all.
    """
    checked(direction)
    arrays, metadata = to_bytes(direction)
    content = {name: each.tobytes().hex() for name, each in arrays.items()}
    key = key or store.key_of("direction", metadata["direction"], content)
    store.write_arrays(folder() / f"{key}.safetensors", arrays, metadata)
    return key


def checked(direction: Direction) -> Direction:
    """The direction, seen to be one."""
    if not direction.vectors.isfinite().all():
        raise Unsuitable(f"{direction.name} holds numbers that are not finite; make it again from other texts.")
    if not direction.vectors.any(1).all():
        raise Unsuitable(f"{direction.name} is zero at some layer: both sides of its examples are the same there.")
    return direction


def read(path: Path, key: str = "") -> Direction:
    """A direction's file.

    Raises:
        Unsuitable: it is damaged, or none of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["direction"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layers = tuple(int(each) for each in about["layers"])
        vectors = torch.from_numpy(arrays["vectors"].astype(np.float32))
        facts = {name.removeprefix("fact."): each for name, each in arrays.items() if name.startswith("fact.")}
        if (
            vectors.dim() != 2
            or len(vectors) != len(layers)
            or any(len(each) != len(layers) for each in facts.values())
        ):
            raise ValueError
        return checked(
            Direction(
                str(about["name"])[:80], str(about["method"])[:80], str(about["model"]), str(about["model_digest"]),
                layers, vectors, facts, dict(about["about"]), key,
            )
        )  # fmt: skip
    except (
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    ) as problem:  # fmt: skip
        if isinstance(problem, Unsuitable):
            raise
        raise Unsuitable(f"{path.name} holds no direction of Actiscope's, or is damaged.") from None


# ------------------------------------------------------------------------------------------------------------- finding


def folder() -> Path:
    """Where fitted and uploaded directions lie."""
    return store.folder() / "directions"


def available(model: Model) -> list[Direction]:
    """The directions of this model: of the shelf in the order of their names, then those of the store, newest first."""
    found = []
    for path, key in store.kept_arrays("directions", SHELF):
        try:
            each = _opened(path, path.stat().st_mtime_ns, key)
        except (Unsuitable, OSError):
            continue
        if each.model_digest == model.digest:
            found.append(each)
    return found


@lru_cache(128)
def _opened(path: Path, _: int, key: str) -> Direction:
    return read(path, key)


def load(name: str, model: LanguageModel) -> Direction:
    """The direction of that name or key, the model's first where none is named, on its device and seen to fit it.

    Raises:
        Missing: it is not here. Unsuitable: it does not fit, or there is none.
    """
    if not name:
        found = available(model)
        if not found:
            raise Unsuitable(
                f"There is no direction for {model.name} here; make one from two sets of texts on the Steering page."
            )
        direction = found[0]
    else:
        path = SHELF / f"{name}.safetensors" if "/" in name else folder() / f"{name}.safetensors"
        if not NAME.fullmatch(name) or ".." in name or not path.exists():
            raise Missing(
                "This is about a direction that is not kept here; make it, or add its file, on the Steering page."
            )
        direction = _opened(path, path.stat().st_mtime_ns, name)
        store.mark(path)
    direction.check(model)
    return direction
