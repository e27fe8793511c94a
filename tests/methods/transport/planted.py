"""Operators fitted on rows of which one knows how they came about, by the same steps as those of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interp import store
from interp import transport as kept
from interp.methods.transport._fitting import packed, solved
from interp.transport import Operators, covered
from kernels.held_out import BLOCKS, HeldOut, offsets
from kernels.moments import Moments


def operators(x: Tensor, folder: Path, seed: int = 0, judge: Tensor | None = None) -> Operators:
    """Of streams x [stream, row, d]: every fifth row chooses penalties, every fifth judges (or `judge` does)."""
    streams, n, _ = x.shape
    rng = np.random.default_rng(seed)
    part = rng.permutation(np.arange(n) % 5)
    pairs = covered(streams, "same")[1]
    seen = []
    for some in (part < 3, part == 3):
        moments = Moments(pairs)
        for rows in x[:, torch.from_numpy(some)].split(4096, 1):
            moments.add(rows)
        seen.append(moments)
    fit, choose = seen
    penalties, solution = solved(fit, choose, streams, "same", range(streams))
    rows = x[:, torch.from_numpy(part == 4)] if judge is None else judge
    test = Moments(pairs)
    test.add(rows)
    centred = rows - torch.from_numpy(solution["means"]).to(rows)[:, None]
    block = torch.from_numpy(rng.integers(0, BLOCKS, rows.shape[1]))
    member = (torch.arange(BLOCKS)[:, None] == block).to(rows)
    sums = []
    for number, (a, b) in enumerate([(i, j) for j in range(streams) for i in range(j)]):
        k = int(solution["count"][number])
        xs, ys, t = (torch.from_numpy(solution[key][number]).to(rows) for key in ("xs", "ys", "maps"))
        one = HeldOut(k)
        predicted = centred[a] @ (t.T @ ys[:, :k])
        one.add(centred[a] @ xs[:, :k], centred[b] @ ys[:, :k], predicted, member, offsets(rows.shape[1], 1, seed))
        sums.append(one)
    about = {
        "key": store.key_of("planted", seed), "name": "planted", "model_digest": "none", "policy": "same",
        "streams": [f"resid_post.{each}" for each in range(streams)], "width": x.shape[2], "tokens": fit.n,
        "held_out": test.n, "saes": [], "sae_digests": [],
    }  # fmt: skip
    path = folder / f"{kept.VERSION}-{seed}-{x.shape[1]}-{x.dtype}.safetensors"
    store.write_arrays(path, packed(fit, test, penalties, solution, sums, seed), {"transport": json.dumps(about)})
    return Operators(path)


def holds(interval: np.ndarray, value: float) -> bool:
    """Whether value lies in (value, low, high)."""
    return bool(interval[1] <= value <= interval[2])
