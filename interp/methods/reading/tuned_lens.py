from typing import Annotated, Any

from torch import Tensor

from interp.method import Paper, Range, Unset, lens
from interp.methods.reading._prompts import no_blocks
from interp.methods.reading._translators import translated, translators
from interp.methods.reading.logit_lens import read_out
from interp.model import LanguageModel
from interp.results import TokenGrid
from interp.samples import Prompt, Target, TextSet, reference_texts

PAPER = Paper(
    "Belrose, Nora and Furman, Zach and Smith, Logan and Halawi, Danny and Ostrovsky, Igor and McKinney, Lev and "
    "Biderman, Stella and Steinhardt, Jacob",
    "Eliciting Latent Predictions from Transformers with the Tuned Lens",
    2023,
    "arXiv",
    "https://arxiv.org/abs/2303.08112",
)


def passes(model: LanguageModel, texts: TextSet | None, fit_steps: int, **_: Any) -> tuple[float, float]:
    """A forward for the prompt; the fit, once for a model, takes one for each text and a backward for each step."""
    count = len((texts or reference_texts()).texts)
    return (1 + count, fit_steps) if fit_steps else (1, 0)


@lens("Tuned lens", PAPER, needs=no_blocks, cost=passes)
def tuned_lens(
    model: LanguageModel,
    sample: Prompt,
    *,
    target: Target = Target(),
    top: Annotated[int, Range(1, 50)] = 5,
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    fit_steps: Annotated[int, Range(0, 2000)] = 300,
    seed: int = 0,
) -> TokenGrid:
    """Read the residual stream after every layer through an affine map that was fitted to that layer.

        p_l = softmax(W_U norm(x_l + A_l x_l + b_l) + b),    A_l, b_l minimise E KL(p_L || p_l) over the texts

    The maps are fitted once on the unchanged model and kept; they then read it under any intervention. With no steps
    this is the logit lens.

    Args:
        target: A token whose probability and rank to follow; the model's first guess after the prompt unless given.
        top: How many of the likeliest tokens to keep for each cell.
        texts: Texts to fit on.
        fit_steps: Steps of the fit, 128 positions each.
        seed: Number that fixes which positions each step takes.

    Returns:
        TokenGrid, as of the logit lens.

    Raises:
        Unsuitable: the target is no single token.

    Assumes:
        That the texts are like the prompt. The map is learned to agree with the output, so it may say what can be
        computed from x_l rather than what the model has computed.

    Misleads:
        A map fitted to little text remembers it, and looks sure of what it should not know.
    """
    if fit_steps == 0:
        return read_out(model, sample, target, top, lambda layer, resid: resid)
    maps = translators(model, texts or reference_texts(), fit_steps, seed)

    def translate(layer: int, resid: Tensor) -> Tensor:
        return translated(maps[layer + 1 : layer + 2], resid.float()[None])[0].to(resid)

    return read_out(model, sample, target, top, translate)
