"""Random SAEs of any architecture, kept for a tiny model at a site of its own, in the tests' store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp import feature_index, sae
from interp.model import LanguageModel, Model, VisionModel
from interp.samples import Image, ImageSet, Prompt, TextSet
from interp.sites import Site
from tests import tiny

ARCHITECTURES = (
    "standard",
    "gated",
    "topk",
    "abstopk",
    "jumprelu",
    "matching_pursuit",
    "transcoder",
    "skip_transcoder",
)
TEXTS = TextSet(
    (
        "The cat sat on the mat, and the cat was glad.",
        "A dog ran to the sea; he saw a cat there.",
        "France is a land of wine. Paris is in France.",
        "Nothing rhymes with orange, or so they say.",
    )
)
PROMPT = Prompt("The cat sat on the mat")


def keep(model: Model, architecture: str = "standard", site: Site | None = None, seed: int = 0, **settings: Any) -> str:
    """Its name. A transcoder reads an MLP's input and writes its output."""
    vision = isinstance(model, VisionModel)
    site = site or (model.last_spatial if isinstance(model, VisionModel) else Site("resid_post", 1))
    target = site
    if "transcoder" in architecture:
        target = Site("mlp_out", 1)
        site = Site("module", path=f"{model.address(target)}:in")
    with model.record([site, target]) as found:
        model(tiny.image(5) if vision else PROMPT)
    shell = sae.SAE("", "", {}, {})
    d_in, d_out = (shell.rows(found[each], model, each).shape[-1] for each in (site, target))
    own = {"actiscope": {"site": str(site), "target": str(target)}, "hook_name": "-"}
    with tempfile.TemporaryDirectory() as folder:
        tiny.random_sae(Path(folder), architecture, d_in, 32, seed, d_out=d_out, metadata=own, **settings)
        return sae.keep(folder, model)


def index(model: Model, name: str) -> feature_index.Index:
    """Its index over a few texts or images."""
    images = ImageSet(tuple(Image(tiny.image(seed).data, word) for seed, word in enumerate(("a cat", "a dog", "both"))))
    return feature_index.build(model, sae.load(name), TEXTS if isinstance(model, LanguageModel) else images)


def dense(model: Model, name: str, sample: Any) -> np.ndarray:
    """The activations [row, feature] on a sample, by one plain forward."""
    own = sae.load(name)
    with torch.no_grad(), model.record([own.site]) as found:
        model(sample)
        return own.encode(own.rows(found[own.site], model).flatten(0, 1)).double().numpy()
