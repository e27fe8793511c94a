from collections import defaultdict
from typing import Annotated, Any

import torch
from torch import Tensor

from interp.hooks import Block
from interp.method import Heads, Paper, Positions, Unset, intervention
from interp.methods.change._places import at_positions
from interp.methods.change._replacement import By, replacement
from interp.model import LanguageModel
from interp.samples import Prompt, TextSet
from interp.sites import Site

PAPER = Paper(
    "Michel, Paul and Levy, Omer and Neubig, Graham",
    "Are Sixteen Heads Really Better than One?",
    2019,
    "NeurIPS",
    "https://arxiv.org/abs/1905.10650",
)


def no_heads(model: Any) -> str | None:
    """The reason why a model's heads can't be told apart, or None."""
    return model.refuses(Site("z", 0))


@intervention("Ablate heads", PAPER, needs=no_heads)
def ablate_heads(
    model: LanguageModel,
    sample: Prompt,
    *,
    heads: Annotated[tuple[tuple[int, int], ...], Heads()] = (),
    by: By = "zero",
    texts: Annotated[TextSet | None, Unset("the texts that come with Actiscope")] = None,
    seed: int = 0,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Replace what attention heads read by zero, by their mean over texts, or by what they read elsewhere.

        z_lh = 0   or   z_lh = E z_lh   or   z_lh = z_lh(another text)        for (l, h) in heads

    Args:
        heads: Layer and head of each, from 0. None leaves the model as it is.
        by: Zero removes all; mean keeps what is always the same; resample keeps the distribution.
        texts: What mean and resample are taken from, on the unchanged model.
        seed: Number that fixes which positions resample draws.
        positions: At which tokens, from 0; everywhere unless given.

    Raises:
        Unsuitable: no such layer or head.

    Assumes:
        That the network can go on without the head. Zero is far from what later layers are used to; the mean is nearer.

    Misleads:
        Other heads may take over (backup heads), so that a head that matters seems not to.
    """
    if not heads:
        return None
    of_layer: dict[int, set[int]] = defaultdict(set)
    for layer, head in heads:
        model.resolve(Site("z", layer, head))
        of_layer[layer].add(head)

    def edit(layer: int, chosen: set[int]) -> Any:
        instead = replacement(model, Site("z", layer), by, texts, seed)

        def ablate(z: Tensor) -> Tensor:
            index = torch.tensor(sorted(chosen), device=z.device)
            return z.index_copy(2, index, instead(z).index_select(2, index))

        return at_positions(positions, ablate)

    return model.edit({Site("z", layer): edit(layer, chosen) for layer, chosen in sorted(of_layer.items())})
