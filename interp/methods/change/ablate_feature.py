from typing import Annotated

import torch

from interp.hooks import Block
from interp.method import Features, Positions, SAEName, intervention
from interp.methods.change._features import chosen, turned
from interp.methods.features._saes import BRICKEN
from interp.model import Model
from interp.samples import Image, Prompt


@intervention("Ablate features", BRICKEN)
def ablate_feature(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    features: Annotated[tuple[int, ...], Features()] = (),
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Take features of an SAE out of an activation, and nothing else: what the SAE does not explain stays.

        h <- h - sum_i f_i(x) d_i        for i in features

    x is what the SAE reads and h what it writes, the same activation unless it is a transcoder; d_i is row i of the
    decoder, in the scale of h.

    Args:
        sae: Which SAE or transcoder; the model's own unless given.
        features: Numbers of the features, from 0. None leaves the model as it is.
        positions: At which tokens (or places of the map, row by row), from 0; everywhere unless given.

    Raises:
        Unsuitable: no SAE that fits this model, or no such feature.

    Assumes:
        That what the model has learned lies along the decoder's directions, one by one.

    Misleads:
        A concept split among several features survives the ablation of one; and later layers may write it anew.
    """
    if not features:
        return None
    return turned(model, chosen(model, sae, features), features, positions, torch.zeros_like)
