"""The tuned lens's translators: an affine map for each layer, fitted on texts, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp import hooks, progress, store
from interp.methods.reading._prompts import residual_sites
from interp.model import LanguageModel
from interp.samples import TextSet
from kernels.unembed import logits_of

ROWS = 128
"""Positions for each step."""
POSITIONS = 8192
"""How many positions of the texts are kept at most."""
VERSION = 1


def translators(model: LanguageModel, texts: TextSet, steps: int, seed: int) -> Float[Tensor, "layer d_plus_1 d"]:
    """For each residual stream but the last, [A; b] such that x + A x + b is read as the last layer's.

    Each minimises KL(p_final || softmax(W_U final(x + A x + b))) over the texts, on the unchanged model, by Adam from
    zero with a rate that falls to nothing.
    """
    key = store.key_of("tuned lens", VERSION, model.digest, texts.texts, steps, seed)
    arrays = store.artefact(key, lambda: {"maps": _fit(model, texts, steps, seed)})
    return torch.from_numpy(arrays["maps"]).to(model.device)


def _fit(model: LanguageModel, texts: TextSet, steps: int, seed: int) -> np.ndarray:
    sites = residual_sites(model)
    streams: list[list[Tensor]] = [[] for _ in sites]
    kept = 0
    with hooks.alone(), torch.no_grad():
        for text in progress.track(texts.texts, "reading the texts"):
            if kept >= POSITIONS:
                break
            ids = model.inputs(text, cut=True)
            with model.record(sites) as found:
                model(ids, keep=1)
            for own, site in zip(streams, sites, strict=True):
                own.append(found[site][0].float())
            kept += ids.shape[1]
    stacked = torch.stack([torch.cat(own)[:POSITIONS] for own in streams])
    weight, bias, cap = model.unembedding
    weight, bias = weight.float(), None if bias is None else bias.float()
    depth, width = len(sites) - 1, stacked.shape[-1]
    maps = torch.zeros(depth, width + 1, width, device=stacked.device)
    first, second = torch.zeros_like(maps), torch.zeros_like(maps)
    # the streams grow with depth; a step means the same to each
    scales = stacked[:-1].square().mean((1, 2)).sqrt().clamp(min=1e-6)[:, None, None]
    for step, rows in enumerate(progress.track(list(_batches(stacked.shape[1], steps, seed)), "fitting translators")):
        x = stacked[:, rows.to(stacked.device)]
        with torch.no_grad(), hooks.alone():
            goal = logits_of(model.final(x[-1:].to(model.dtype))[0].float(), weight, bias, cap).log_softmax(1)
        with torch.enable_grad():
            leaf = maps.clone().requires_grad_()
            moved = translated(leaf, x[:-1] / scales) * scales
            guess = logits_of(model.final(moved.to(model.dtype)).float(), weight, bias, cap).log_softmax(2)
            loss = F.kl_div(guess, goal.expand_as(guess), log_target=True, reduction="sum") / len(rows)
            progress.spent(backwards=1)
            (slope,) = torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.01)
            debiased = first / (1 - 0.9 ** (step + 1)), (second / (1 - 0.99 ** (step + 1))).sqrt()
            maps -= 3e-3 * (1 - step / steps) * debiased[0] / (debiased[1] + 1e-8)
    maps[:, -1:] *= scales
    return maps.cpu().numpy()


def translated(maps: Float[Tensor, "layer d_plus_1 d"], x: Float[Tensor, "layer row d"]) -> Tensor:
    """x + A x + b, each layer by its own map."""
    return x + x @ maps[:, :-1] + maps[:, -1:]


def _batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randperm(count, generator=generator)[:ROWS]
