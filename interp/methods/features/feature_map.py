from typing import Annotated

import numpy as np

from interp.method import Paper, SAEName, lens
from interp.methods.features._saes import labels, look, need_index, open_sae
from interp.model import Model
from interp.results import Table
from interp.samples import Image, Prompt

PAPER = Paper(
    "McInnes, Leland and Healy, John and Melville, James",
    "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction",
    2018,
    "arXiv",
    "https://arxiv.org/abs/1802.03426",
)


@lens("Feature map", PAPER, cost=lambda model, **_: (1, 0))
def feature_map(
    model: Model,
    sample: Prompt | Image,
    *,
    sae: Annotated[str, SAEName()] = "",
    index: str = "",
) -> Table:
    """Lay all features out on a plane, those that write alike near each other, with what fires on the sample.

        (x, y)_i: near (x, y)_j where <d_i, d_j> / (|d_i| |d_j|) is among the largest of i or of j

    d are the decoder rows; the places are made with the index, by drawing nearest neighbours together and pushing
    others apart.

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        index: Which index to show; the SAE's own unless given.

    Returns:
        Table with a row per feature, named by what it promotes most: x, y, density, maximum, and the largest
        activation on the sample.

    Raises:
        Unsuitable: no SAE for this model, or no index of it yet.

    Assumes:
        That who is near whom can be shown on a plane. Only near neighbours are kept.

    Misleads:
        Distances between groups, their sizes and the empty space between them mean nothing.
    """
    found = open_sae(model, sae)
    known = need_index(model, found, index)
    (seen,), _ = look(model, sample, [found])
    here = seen.encode().amax(0).double().cpu().numpy()
    places = np.asarray(known.map, float)
    values = np.stack([places[:, 0], places[:, 1], known.density, known.maximum, here], 1).astype(float)
    return Table(
        labels(model, found, known, range(found.d_sae)), ("x", "y", "density", "maximum", "on the sample"), values
    )
