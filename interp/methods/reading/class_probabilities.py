import numpy as np

from interp.method import Paper, lens
from interp.model import VisionModel
from interp.results import Table
from interp.samples import Image

PAPER = Paper(
    "Bridle, John S.",
    "Probabilistic Interpretation of Feedforward Classification Network Outputs, with Relationships to Statistical "
    "Pattern Recognition",
    1990,
    "Neurocomputing",
    "https://doi.org/10.1007/978-3-642-76153-9_28",
)


@lens("Class probabilities", PAPER, cost=lambda model, **_: (1, 0))
def class_probabilities(model: VisionModel, sample: Image) -> Table:
    """Read the model's guesses: the logit of every class, and its softmax.

        p_c = exp(S_c) / sum_c' exp(S_c')

    Returns:
        Table with a row per class, in the model's order: probability and logit.

    Assumes:
        That exactly one of the model's classes is in the picture: the probabilities always add up to one.

    Misleads:
        On a picture of something that the model has no class for; it still shares all of one among those it has.
    """
    logits = model.cached(("logits", sample.sha256), lambda: model(sample)[0].detach()).double()
    values = np.stack([logits.softmax(0).cpu().numpy(), logits.cpu().numpy()], 1)
    return Table(model.labels, ("probability", "logit"), values)
