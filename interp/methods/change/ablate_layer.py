from typing import Annotated, Any, Literal

from interp.hooks import Block
from interp.method import Paper, Positions, Range, Unset, intervention
from interp.methods.change._places import at_positions
from interp.methods.change._replacement import By, replacement
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site

PAPER = Paper(
    "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob",
    "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 Small",
    2023,
    "ICLR",
    "https://arxiv.org/abs/2211.00593",
)
Part = Literal["nothing", "attention", "MLP", "both"]


def no_outputs(model: Any) -> str | None:
    """The reason why what a layer adds can't be told apart, or None."""
    return next((reason for kind in ("attn_out", "mlp_out") if (reason := model.refuses(Site(kind, 0)))), None)


@intervention("Ablate a layer", PAPER, needs=no_outputs)
def ablate_layer(
    model: LanguageModel,
    sample: Prompt,
    *,
    layer: Annotated[int, Range(0, 1000)] = 0,
    part: Part = "nothing",
    by: By = "zero",
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Replace what a layer's attention or MLP adds to the residual stream.

        attn_out = 0   or   E attn_out   or   attn_out(another text);        mlp_out likewise

    Args:
        layer: Which layer, from 0.
        part: Which of its two additions. Nothing leaves the model as it is.
        by: Zero removes all; mean keeps what is always the same; resample keeps the distribution.
        texts: What mean and resample are taken from, on the unchanged model.
        seed: Number that fixes which positions resample draws.
        positions: At which tokens, from 0; everywhere unless given.

    Raises:
        Unsuitable: no such layer.

    Assumes:
        That the layers behind can go on without it; the first layers often do what all others need.

    Misleads:
        Later layers may make up for it, or fail because they see what they never saw in training.
    """
    if part == "nothing":
        return None
    kinds = {"attention": ("attn_out",), "MLP": ("mlp_out",), "both": ("attn_out", "mlp_out")}[part]
    sites = [model.resolve(Site(kind, layer)) for kind in kinds]
    return model.edit({site: at_positions(positions, replacement(model, site, by, texts, seed)) for site in sites})
