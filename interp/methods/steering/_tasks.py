"""Tasks: what heads put out on prompts that show a task by examples, and how much of it to inject; on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp import Missing, Unsuitable, store
from interp.hooks import here
from interp.model import LanguageModel
from interp.sites import Site

SHELF = Path(__file__).parents[3] / "assets" / "tasks"
NAME = re.compile(r"[a-z0-9_-]{1,40}/[a-z0-9_-]{1,60}|[0-9a-f]{64}")
"""How an experiment may name a task: of the shelf, or of the store. Never a path of this machine."""
VERSION = 1


@dataclass(frozen=True, eq=False)
class Task:
    """The mean output of every head (z) at the last token of prompts that show a task, and the share to inject.

    about: name, counts, and the held-out losses and accuracies of `soft_injection`.
    """

    outputs: Float[Tensor, "layer head d_head"]
    share: Float[Tensor, "layer head"]
    model_name: str
    model_digest: str
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


def path_of(key: str) -> Path:
    """Where the task of that name or key lies."""
    return (SHELF if "/" in key else store.folder() / "tasks") / f"{key}.safetensors"


def keep(task: Task, key: str) -> str:
    """Take a task into the store."""
    about = {"version": VERSION, "model": task.model_name, "model_digest": task.model_digest, **task.about}
    arrays = {name: each.float().cpu().numpy() for name, each in (("outputs", task.outputs), ("share", task.share))}
    store.write_arrays(path_of(key), arrays, {"task": json.dumps(about, sort_keys=True)})
    return key


def available(model: LanguageModel) -> list[Task]:
    """The tasks of this model: of the shelf in the order of their names, then those of the store, newest first."""
    found = []
    for path, key in store.kept_arrays("tasks", SHELF):
        try:
            each = _opened(path, path.stat().st_mtime_ns, key)
        except (Unsuitable, OSError):
            continue
        if each.model_digest == model.digest:
            found.append(each)
    return found


def load(key: str, model: LanguageModel) -> Task:
    """The task of that name or key, the model's first where none is named.

    Raises:
        Missing: it is not here. Unsuitable: it is another model's, or there is none.
    """
    if not key:
        found = available(model)
        if not found:
            raise Unsuitable(f"There is no task for {model.name} here; fit one from prompts that show it.")
        return found[0]
    if not NAME.fullmatch(key) or not path_of(key).exists():
        raise Missing("This is about a task that is not kept here; fit it again.")
    task = _opened(path_of(key), path_of(key).stat().st_mtime_ns, key)
    store.mark(path_of(key))
    if task.model_digest != model.digest:
        raise Unsuitable(f"This task was fitted on {task.model_name[:60]}, not on {model.name}; fit it again.")
    return task


@lru_cache(32)
def _opened(path: Path, _: int, key: str) -> Task:
    return read(path, key)


def read(path: Path, key: str = "") -> Task:
    """A task's file.

    Raises:
        Unsuitable: it is damaged, or none of ours.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["task"])
            outputs, share = (torch.from_numpy(np.array(file.get_tensor(name))) for name in ("outputs", "share"))
        if outputs.dim() != 3 or outputs.shape[:2] != share.shape:
            raise ValueError
        return Task(outputs, share, str(about["model"]), str(about["model_digest"]), about, key)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        raise Unsuitable(f"{path.name} holds no task, or is damaged.") from None


def head_outputs(model: LanguageModel) -> tuple[Site, ...]:
    """Where each layer's heads put out z [batch, position, head, d_head]."""
    return tuple(Site("z", layer) for layer in range(model.layers))


def no_heads(model: LanguageModel) -> str | None:
    """The reason why this model's heads can't be read, or None."""
    return model.refuses(Site("z", 0))


def last_of_prompt(z: Tensor) -> Bool[Tensor, "batch position"] | None:
    """The last token of each prompt; None where a cached pass sees only tokens behind it."""
    now = here()
    assert now.generated is not None and now.positions is not None and now.keys is not None
    if now.positions.shape[1] < now.keys.shape[1]:
        return None
    generated = now.generated if len(now.generated) == len(z) else now.generated[:1].expand(len(z), -1)
    return generated & (generated.cumsum(1) == 1)


def injecting(
    share: Float[Tensor, "layer head"], outputs: Float[Tensor, "layer head d_head"]
) -> dict[Site | str, Callable[[Tensor], Tensor]]:
    """Edits z <- (1 - A) z + A E of every layer, at the last token of the prompt alone."""

    def at(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            last = last_of_prompt(z)
            if last is None:
                return z
            a, e = share[layer].to(z)[:, None], outputs[layer].to(z)
            return torch.where(last[..., None, None], (1 - a) * z + a * e, z)

        return edit

    return {Site("z", layer): at(layer) for layer in range(len(share))}
