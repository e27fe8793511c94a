import math
from typing import Annotated, Any

from interp import Unsuitable, feature_index
from interp.method import Range, SAEName, fit
from interp.methods.features._saes import BRICKEN, open_sae
from interp.model import LanguageModel, Model, VisionModel
from interp.samples import ImageSet, TextSet


def passes(model: Model, sample: Any = None, context: int = 128, **_: Any) -> tuple[float, float]:
    """A forward for each window of a text, or for each image."""
    if isinstance(sample, ImageSet):
        return len(sample.images), 0
    texts = sample.texts if isinstance(sample, TextSet) else ("",) * 1000
    # an English token has about four characters
    return sum(math.ceil(max(len(each), 1) / 4 / context) for each in texts), 0


@fit("Feature index", BRICKEN, cost=passes)
def build_index(
    model: Model,
    data: TextSet | ImageSet,
    *,
    sae: Annotated[str, SAEName()] = "",
    context: Annotated[int, Range(2, 4096)] = 128,
    seed: int = 0,
    name: str = "",
) -> str:
    """Look up for every feature where it fires in a set of texts or images, how often, and what it promotes.

        density_i = #{t : f_i(t) > 0} / T,   top_i: the 20 windows with the largest max_t f_i(t), no two alike
        promoted_i: the largest of  W_U final(d_i) - mean,   together_ij = |{f_i > 0} and {f_j > 0}| / |... or ...|

    One pass, in memory that does not grow with the data. What was cancelled goes on from where it was when it is
    asked for again with the same settings, and what was done is not done again. `interp.feature_index.build` does the
    same for files and streams of any size.

    Args:
        sae: The SAE or transcoder; the model's own past the middle unless given.
        context: Tokens that are read together; longer texts are cut.
        seed: Number that fixes which activations stand for each quarter of them.
        name: What the index is called in lists.

    Returns:
        The key of the index, as the lenses of features take it.

    Raises:
        Unsuitable: no SAE for this model, or data that it can't read.

    Assumes:
        That the data are like those on which the features will be looked at.

    Misleads:
        The largest activations show the extreme of a feature; what it mostly does stands in its lower quarters.
    """
    if isinstance(data, TextSet) == isinstance(model, VisionModel):
        wanted = "texts" if isinstance(model, LanguageModel) else "images"
        raise Unsuitable(f"The index of {model.name} is made over {wanted}.")
    return feature_index.build(model, open_sae(model, sae), data, context=context, seed=seed, name=name).key
