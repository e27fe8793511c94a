from typing import Annotated, Literal

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Features, Positions, SAEName, intervention
from interp.methods.change._features import chosen, turned
from interp.methods.features._saes import TEMPLETON, open_index
from interp.model import Model
from interp.samples import Image, Prompt

LARGEST = 1e6


@intervention("Clamp features", TEMPLETON)
def clamp_feature(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    features: Annotated[tuple[int, ...], Features()] = (),
    value: float = 1.0,
    unit: Literal["activation", "maximum"] = "activation",
    index: str = "",
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Hold features of an SAE at a value, wherever they would fire or not; what the SAE does not explain stays.

        h <- h + sum_i (c_i - f_i(x)) d_i,    c_i = value  or  value * max f_i        for i in features

    x is what the SAE reads and h what it writes, the same activation unless it is a transcoder; d_i is row i of the
    decoder, in the scale of h. max f_i is the largest activation in the texts of the index.

    Args:
        sae: Which SAE or transcoder; the model's own unless given.
        features: Numbers of the features, from 0. None leaves the model as it is.
        value: What to hold them at. 0 removes them; several times the maximum is usual, below 0 turns them round.
        unit: Whether the value is an activation, or a multiple of each feature's maximum in the index.
        index: Which index says the maximum; the newest unless given.
        positions: At which tokens (or places of the map, row by row), from 0; everywhere unless given.

    Raises:
        Unsuitable: no SAE that fits this model, no such feature, or no index where its maximum is the unit.

    Assumes:
        That later layers read the direction alike, however it got there and however long it is.

    Misleads:
        Far above its maximum a feature is what the model has never seen: it breaks down, which says little of meaning.
    """
    if not features:
        return None
    if abs(value) > LARGEST:
        raise Unsuitable(f"Clamp features to a value between {-LARGEST:.0f} and {LARGEST:.0f}.")
    found = chosen(model, sae, features)
    level = torch.full((len(features),), value, device=model.device)
    if unit == "maximum":
        listed = open_index(model, found, index)
        if listed is None:
            raise Unsuitable(f"{found.name} has no index that says its maxima; build one, or give an activation.")
        level = level * torch.as_tensor(listed.maximum[list(features)]).to(level)

    def clamp(f: Tensor) -> Tensor:
        return level.to(f).expand_as(f)

    return turned(model, found, features, positions, clamp)
