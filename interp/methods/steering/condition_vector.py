from functools import partial
from typing import Literal

from interp import Unsuitable
from interp.method import fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._conditions import CAST, Similarity, judged_conditions
from interp.methods.steering._contrast import Make, fitted
from interp.methods.steering.difference_of_means import passes
from interp.methods.steering.pca_direction import by_all, by_pairs
from interp.methods.steering.probe_direction import logistic
from interp.model import LanguageModel
from interp.samples import Contrast


@fit("Condition vector (CAST)", CAST, needs=no_blocks, cost=passes)
def condition_vector(
    model: LanguageModel,
    data: Contrast,
    *,
    by: Literal["component", "probe"] = "component",
    centre: Literal["pairs", "all"] = "pairs",
    similarity: Similarity = "cosine of tanh",
    tokens: Literal["all", "last"] = "all",
    seed: int = 0,
    name: str = "",
) -> str:
    """Take the direction that tells two kinds of prompts apart, with the layer, side and threshold that do so best.

        rows: h_i+ - m_i and h_i- - m_i,    m_i = (h_i+ + h_i-) / 2  or  the mean of all
        c = the first right singular vector of the rows,  or  the weights of logistic regression on h
        s = cos(h, tanh(c <c, h> / <c, c>))  or  <c, h> / <c, c>;    met where s is above, or below, a threshold

    h is the mean over a prompt's tokens that are not special (or the last of them), after every layer. Threshold and
    side are those with the largest F1 on all examples; the F1 that is kept, and by which the layer is chosen, is of
    held-out ones.

    Args:
        by: The principal component of the paper, or a linear probe (penalty 1), which leaves out what varies within the
            sides and often tells far better.
        centre: What is taken off each row of the component: the middle of its pair, or the mean of all examples.
        similarity: How like a prompt is: the paper's, which can't tell h from -h, or the projection, which can.
        tokens: Whether the mean of all tokens stands for a prompt, as in the paper, or its last one, where a model that
            has read it may know more.
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction, as `conditional_steer` takes it for a condition.

    Raises:
        Unsuitable: unequal numbers of examples where rows are centred by pairs, or both sides alike.

    Assumes:
        That prompts which meet the condition are like the examples; what else differs between the sides is learned too.

    Misleads:
        A large F1 may be of length, topic or a single word; give counterexamples that differ in the condition alone.
    """
    if by == "component" and centre == "pairs" and len(data.positive) != len(data.negative):
        raise Unsuitable(
            f"Pairs need as many texts on both sides, not {len(data.positive)} and {len(data.negative)}; "
            "centre by all, or give pairs."
        )
    if by == "probe":
        make: Make = partial(logistic, penalty=1.0)
    else:
        make = by_pairs if centre == "pairs" else by_all
    kind = "by a probe" if by == "probe" else f"centred by {centre}"
    return fitted(
        model, data, f"condition vector, {kind}", make, "mean" if tokens == "all" else "last", name, similarity, seed,
        judged_conditions(make, similarity, seed), {"similarity": similarity},
    )  # fmt: skip
