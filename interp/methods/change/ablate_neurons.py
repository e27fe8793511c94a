from typing import Annotated, Any

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Channels, Paper, Positions, Range, Unset, intervention
from interp.methods.change._places import at_positions
from interp.methods.change._replacement import By, replacement
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site

PAPER = Paper(
    "Morcos, Ari S. and Barrett, David G. T. and Rabinowitz, Neil C. and Botvinick, Matthew",
    "On the importance of single directions for generalization",
    2018,
    "ICLR",
    "https://arxiv.org/abs/1803.06959",
)


def no_neurons(model: Any) -> str | None:
    """The reason why a model's MLP has no neurons of its own, or None."""
    return model.refuses(Site("mlp_post", 0))


@intervention("Ablate neurons", PAPER, needs=no_neurons)
def ablate_neurons(
    model: LanguageModel,
    sample: Prompt,
    *,
    layer: Annotated[int, Range(0, 1000)] = 0,
    neurons: Annotated[tuple[int, ...], Channels()] = (),
    by: By = "zero",
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Replace neurons of an MLP by zero, by their mean over texts, or by what they are elsewhere.

        a_k = 0   or   a_k = E a_k   or   a_k = a_k(another text)        for k in neurons

    a is what the MLP's output projection is given; in gated MLPs, gate and value multiplied.

    Args:
        layer: Which layer, from 0.
        neurons: Numbers of the neurons, from 0. None leaves the model as it is.
        by: Zero removes all; mean keeps what is always the same; resample keeps the distribution.
        texts: What mean and resample are taken from, on the unchanged model.
        seed: Number that fixes which positions resample draws.
        positions: At which tokens, from 0; everywhere unless given.

    Raises:
        Unsuitable: no such layer or neuron.

    Assumes:
        That what the layer computes lies along its neurons, which few of them do alone.

    Misleads:
        When several neurons carry the same thing, ablating one of them changes nothing, though all matter.
    """
    if not neurons:
        return None
    site = model.resolve(Site("mlp_post", layer))
    instead = replacement(model, site, by, texts, seed)

    def ablate(activation: Tensor) -> Tensor:
        if neurons[-1] >= activation.shape[-1]:
            raise Unsuitable(f"{site} has neurons 0 to {activation.shape[-1] - 1}, not {neurons[-1]}.")
        index = torch.tensor(neurons, device=activation.device)
        return activation.index_copy(-1, index, instead(activation).index_select(-1, index))

    return model.edit({site: at_positions(positions, ablate)})
