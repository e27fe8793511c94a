"""What an ablated activation is replaced by: nothing, its mean over texts, or what it is in one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, hooks
from interp.hooks import here
from interp.model import LanguageModel
from interp.samples import TextSet, reference_texts
from interp.sites import Site

By = Literal["zero", "mean", "resample"]
TEXTS = 32
"""How many texts a mean is taken over at most."""


def replacement(
    model: LanguageModel, site: Site, by: By, texts: TextSet | None, seed: int
) -> Callable[[Tensor], Tensor]:
    """The function activation [batch, position, ...] -> what stands there instead.

    mean: over all positions of the texts, on the unchanged model. resample: at each absolute position, that of a
    position drawn by the seed from the texts, the same one in every forward.
    """
    if by == "zero":
        return torch.zeros_like
    rows = seen(model, site, texts or reference_texts())
    if by == "mean":
        mean = rows.double().mean(0)
        return lambda x: mean.to(x).expand_as(x)

    def resampled(x: Tensor) -> Tensor:
        positions = here().positions
        assert positions is not None
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(rows), (int(positions.max()) + 1,), generator=generator).to(rows.device)
        # variants of one prompt may run together where only the one's positions are known
        at = positions.clamp(min=0) if len(positions) == len(x) else positions[:1].clamp(min=0).expand(len(x), -1)
        return rows[drawn[at]].to(x)

    return resampled


def seen(model: LanguageModel, site: Site, texts: TextSet) -> Float[Tensor, "position ..."]:
    """The activations of the unchanged model at a site, all positions of all texts one after another."""
    if not texts.texts:
        raise Unsuitable("There are no texts to take the mean over; give at least one.")

    def look() -> Tensor:
        found = []
        for text in texts.texts[:TEXTS]:
            with model.record([site]) as recorded:
                model(model.inputs(text, cut=True), keep=1)
            found.append(recorded[site][0])
        return torch.cat(found)

    with hooks.alone():
        return model.cached(("over texts", site, texts), look)
