from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.method import Paper, fit
from interp.methods.reading._prompts import no_blocks
from interp.methods.steering._contrast import Streams, Token, fitted
from interp.model import LanguageModel
from interp.samples import Contrast

PAPER = Paper(
    "Rimsky, Nina and Gabrieli, Nick and Schulz, Julian and Tong, Meg and Hubinger, Evan and Turner, Alexander",
    "Steering Llama 2 via Contrastive Activation Addition",
    2024,
    "ACL",
    "https://arxiv.org/abs/2312.06681",
)


def passes(model: LanguageModel, sample: Any = None, **_: Any) -> tuple[float, float]:
    """A forward for each example."""
    return (len(sample.positive) + len(sample.negative) if isinstance(sample, Contrast) else 100), 0


@fit("Difference of means (CAA)", PAPER, needs=no_blocks, cost=passes)
def difference_of_means(
    model: LanguageModel, data: Contrast, *, token: Token = "last", seed: int = 0, name: str = ""
) -> str:
    """Take the mean of the residual stream over texts that show a behaviour, less that over texts that do not.

        v_l = mean_i h_l(p_i+) - mean_j h_l(p_j-)

    After every layer, with the accuracy that a threshold along it has on held-out examples.

    Args:
        token: Which token of an example counts. The paper's is the second to last, the letter of an answer "(A)".
        seed: Number that fixes the folds.
        name: What the direction is called.

    Returns:
        The key of the direction, as `interp.directions.load` and the interventions take it.

    Raises:
        Unsuitable: an empty side, or both sides alike.

    Assumes:
        That the two sides differ in the behaviour and in nothing else.

    Misleads:
        Whatever else the two sides differ in (length, topic, the last word) is in the direction as well.
    """
    return fitted(model, data, "difference of means", shift, token, name, (), seed)


def shift(positive: Streams, negative: Streams) -> Float[Tensor, "layer d"]:
    """The difference of the two means."""
    return (positive.double().mean(0) - negative.double().mean(0)).float()
