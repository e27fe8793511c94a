from typing import Annotated, Literal

import numpy as np
import torch

from interp.method import Range, SAEName, lens
from interp.methods.features._saes import (
    BRICKEN,
    best,
    feature_of,
    listed,
    look,
    need_index,
    open_index,
    open_sae,
    shown_tokens,
)
from interp.model import Model
from interp.results import FeatureList
from interp.samples import Image, Prompt


@lens("Feature neighbours", BRICKEN, cost=lambda model, **_: (1, 0))
def feature_neighbours(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    feature: Annotated[int, Range(0, 2**24)] = 0,
    by: Literal["decoder", "encoder", "together"] = "decoder",
    top: Annotated[int, Range(1, 200)] = 20,
    index: str = "",
) -> FeatureList:
    """List the features that are most like one: that write alike, read alike, or fire on the same tokens.

        decoder:   v_j = <d_i, d_j> / (|d_i| |d_j|),  d the rows of W_dec
        encoder:   the same of the columns of W_enc
        together:  v_j = |T_i and T_j| / |T_i or T_j|,  T the tokens on which each fires, from the index

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        feature: The number of the feature.
        by: What is compared.
        top: How many features to list.
        index: Which index to take what is known of each from; the SAE's own unless given.

    Returns:
        FeatureList with those alike, the most alike first, and their activations on the sample.

    Raises:
        Unsuitable: no such feature, or no index where one is needed.

    Assumes:
        That features which mean alike point alike. In a wide SAE one meaning is split among several that do.

    Misleads:
        Alike directions can mean different things in different contexts, and an encoder column can be alike only to
        tell two features apart.
    """
    found = open_sae(model, sae)
    number = feature_of(found, feature)
    known = (need_index if by == "together" else open_index)(model, found, index)
    if by == "together":
        assert known is not None
        pairs = known.page(number, model).together[:top]
        features, values = np.array([each for each, _ in pairs], int), np.array([each for _, each in pairs], float)
    else:
        rows = (found.W_dec if by == "decoder" else found.W_enc.T).double()
        lengths = rows.norm(dim=1).clamp(min=1e-12)
        with torch.no_grad():
            alike = (rows @ rows[number] / lengths / lengths[number]).cpu().numpy()
        alike[number] = 0
        features = best(alike, top)
        values = alike[features]
    (seen,), _ = look(model, sample, [found])
    return listed(
        model, [(found, int(each)) for each in features], values, "Jaccard" if by == "together" else "cosine",
        {found.name: known}, tokens=shown_tokens(model, sample),
        grid=seen.grid(seen.encode()[:, torch.as_tensor(features)]),
        reasons=[
            f"{value:.0%} of the tokens of either" if by == "together" else f"like #{number} (cosine {value:.2f})"
            for value in values
        ],
        note="" if len(features) else f"Nothing is like feature {number} in this way.",
    )  # fmt: skip
