import base64
from typing import Annotated

import numpy as np
import torch

from interp.method import Range, SAEName, lens
from interp.methods.features._saes import (
    BRICKEN,
    feature_of,
    look,
    need_index,
    open_sae,
    shown_tokens,
)
from interp.model import Model
from interp.results import FeaturePage
from interp.samples import Image, Prompt


@lens("Feature page", BRICKEN, cost=lambda model, **_: (1, 0))
def feature_page(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    feature: Annotated[int, Range(0, 2**24)] = 0,
    index: str = "",
) -> FeaturePage:
    """Show one feature: where it fires most and in between, how often, what it promotes, and what it does here.

        density = |{t : f_i(t) > 0}| / N,    gain_v = W_U,v norm(W_dec,i) - mean over v,    f_i(t) on the sample

    Contexts come from the index, the highest first and then some from each of four intervals of its activations.

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        feature: The number of the feature.
        index: Which index to show; the SAE's own unless given.

    Returns:
        FeaturePage: contexts with the activation on each token, histogram, promoted and suppressed tokens or classes,
        neighbours by decoder, features that fire together with it, and the activations on the sample.

    Raises:
        Unsuitable: no such feature, no SAE for this model, or no index of it yet.

    Assumes:
        That the texts of the index are like those the model meets: a feature can look dead on the wrong ones.

    Misleads:
        The highest contexts show the feature at its clearest; most of the time it fires weakly, often on something
        broader. Look at the lower intervals too.
    """
    found = open_sae(model, sae)
    number = feature_of(found, feature)
    known = need_index(model, found, index)
    page = known.page(number, model)
    (seen,), _ = look(model, sample, [found])
    with torch.no_grad():
        here = seen.grid(seen.encode()[:, [number]])[0]
    groups = [("top", page.top)] + [(f"{low:.3g} to {high:.3g}", some) for low, high, some in page.quantiles]
    contexts = [context for _, some in groups for context in some]
    width = max((len(each.values) for each in contexts), default=0)
    activations = np.full((len(contexts), width), np.nan)
    for row, context in zip(activations, contexts, strict=True):
        row[: len(context.values)] = context.values
    edges, counts = page.histogram
    pictured = [each for each in contexts if each.image is not None]
    shape = pictured[0].grid if pictured else None
    note = "" if page.count else f"This feature never fired on {known.n_tokens:,} tokens."
    return FeaturePage(
        number, found.name, float(page.density), int(known.n_tokens), float(page.maximum), float(page.mean),
        np.asarray(edges, float), np.asarray(counts), tuple(tuple(each.tokens) for each in contexts),
        tuple(name for name, some in groups for _ in some), activations,
        np.array([each.at for each in contexts], int),
        *_split(page.promoted), *_split(page.suppressed), *_numbered(page.neighbours), *_numbered(page.together),
        shown_tokens(model, sample), here,
        tuple(base64.b64encode(each.image or b"").decode() for each in pictured),
        np.stack([np.asarray(each.values, float).reshape(shape) for each in pictured])
        if shape
        else np.zeros((0, 0, 0)),
        note=note,
    )  # fmt: skip


def _split(pairs: tuple[tuple[str, float], ...]) -> tuple[tuple[str, ...], np.ndarray]:
    return tuple(text for text, _ in pairs), np.array([value for _, value in pairs], float)


def _numbered(pairs: tuple[tuple[int, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([number for number, _ in pairs], int), np.array([value for _, value in pairs], float)
