from typing import Annotated

from interp.hooks import Block
from interp.method import Features, Positions, Range, SAEName, intervention
from interp.methods.change._features import chosen, turned
from interp.methods.features._saes import TEMPLETON
from interp.model import Model
from interp.samples import Image, Prompt


@intervention("Scale features", TEMPLETON)
def scale_feature(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    features: Annotated[tuple[int, ...], Features()] = (),
    factor: Annotated[float, Range(0, 10)] = 1.0,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Turn features of an SAE up or down where they fire; what the SAE does not explain stays.

        h <- h + (s - 1) sum_i f_i(x) d_i        for i in features,    s = 1: unchanged

    x is what the SAE reads and h what it writes, the same activation unless it is a transcoder; d_i is row i of the
    decoder, in the scale of h.

    Args:
        sae: Which SAE or transcoder; the model's own unless given.
        features: Numbers of the features, from 0. None leaves the model as it is.
        factor: The factor. 1 leaves the model as it is, 0 removes.
        positions: At which tokens (or places of the map, row by row), from 0; everywhere unless given.

    Raises:
        Unsuitable: no SAE that fits this model, or no such feature.

    Assumes:
        That how strongly a feature is meant lies in the length along its direction.

    Misleads:
        Where a feature does not fire nothing changes, however large the factor; clamp it to bring it in.
    """
    if not features or factor == 1:
        return None
    return turned(model, chosen(model, sae, features), features, positions, lambda f: f * factor)
