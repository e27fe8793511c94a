from typing import Annotated, Literal

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block
from interp.method import Channels, Paper, intervention
from interp.model import VisionModel
from interp.samples import Image
from interp.sites import Site

PAPER = Paper(
    "Morcos, Ari S. and Barrett, David G. T. and Rabinowitz, Neil C. and Botvinick, Matthew",
    "On the importance of single directions for generalization",
    2018,
    "ICLR",
    "https://arxiv.org/abs/1803.06959",
)


@intervention("Ablate channels", PAPER)
def ablate_channels(
    model: VisionModel,
    sample: Image,
    *,
    site: Site | None = None,
    channels: Annotated[tuple[int, ...], Channels()] = (),
    by: Literal["zero", "mean"] = "zero",
) -> Block | None:
    """Replace channels of a layer by zero or by their mean over the map.

        A_k = 0   or   A_kij = mean_ij A_kij        for k in channels

    Args:
        site: The layer; the last one that is still a map unless given.
        channels: Numbers of the channels, from 0. None leaves the model as it is.
        by: Zero removes the channel; mean removes only where it fires.

    Raises:
        Unsuitable: the layer has fewer channels.

    Assumes:
        That the network can go on without the channel. Zero is far from what later layers have seen where the channel
        is rarely zero, so a large effect can come from the surprise and not from what the channel carries.

    Misleads:
        When several channels carry the same thing, ablating one of them changes nothing, though all matter.
    """
    if not channels:
        return None
    site = model.resolve(site or model.last_spatial)
    maps = model.grid(site)

    def ablate(activation: Tensor) -> Tensor:
        # channels lie on axis 1 of a convolution's output and on the last axis of tokens
        axis = 1 if maps(activation) is activation else activation.dim() - 1
        if channels[-1] >= activation.shape[axis]:
            raise Unsuitable(f"{site} has channels 0 to {activation.shape[axis] - 1}, not {channels[-1]}.")
        index = torch.tensor(channels, device=activation.device)
        others = tuple(each for each in range(1, activation.dim()) if each != axis)
        value = activation.mean(others, keepdim=True) if by == "mean" else torch.zeros_like(activation)
        return activation.index_copy(axis, index, value.expand_as(activation).index_select(axis, index))

    return model.edit({site: ablate})
