from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks import Function
from interp.method import Paper, Range, lens
from interp.methods.cam._channels import Forward, heatmap
from interp.model import VisionModel, gradient
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import Site

PAPER = Paper(
    "Bousselham, Walid and Boggust, Angie and Chaybouti, Sofian and Strobelt, Hendrik and Kuehne, Hilde",
    "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
    2025,
    "ICCV",
    "https://arxiv.org/abs/2404.03214",
)


def needs(model: VisionModel) -> str | None:
    """The reason why LeGrad can't serve this model, or None."""
    if model.parts.blocks and "pattern" not in model.parts.refused:
        return None
    how = "attends within shifted windows" if model.family in ("swin", "swinv2") else "has no attention"
    return f"LeGrad reads the attention of all patches to all patches; {model.name} ({model.family}) {how}."


@lens("LeGrad", PAPER, needs=needs, cost=lambda model, **_: (1, 1))
def legrad(
    model: VisionModel, sample: Image, *, target: Target = Target(), layers: Annotated[int, Range(1, 48)] = 4
) -> Heatmap:
    """Ask of each patch whether attending more to it would raise the class logit, over the last layers.

        S_l  = the class logit that the model's own head reads off the output of layer l
        E_lj = mean over heads h and queries i of  relu(dS_l / dpattern_l,hij)          for patch j
        L    = mean_l E_l       over the last layers

    One forward gives all S_l: each layer's output goes to the head as an example of its own, and each layer's input is
    cut off from the layer before, as S_l asks for this layer's attention alone.

    Args:
        target: The class to explain.
        layers: How many of the last layers are averaged; all where the model has fewer.

    Returns:
        Heatmap [height, width] on the grid of patches, in logits per unit of attention; nowhere negative.

    Raises:
        Unsuitable: no such class, or a model without attention over all patches.

    Assumes:
        That the head, trained on the last layer's output, can read the layers before.

    Misleads:
        It rates where attention would help, not what was attended to; and it drops where attention would hurt.
    """
    key = ("sensitivity", sample.sha256, target, layers)
    index, logits, found = model.cached(key, lambda: sensitivity(model, sample, target, layers))
    last = model.layers - 1
    values = model.grid(Site("resid_post", last))(found.mean(0)[None, :, None])[0, 0]
    at = Forward(Site("pattern", last), index, logits, values[None])
    return heatmap(model, sample, at, values, "logit per attention", signed=False)


def sensitivity(
    model: VisionModel, sample: Image, target: Target, layers: int
) -> tuple[int, Float[Tensor, "class"], Float[Tensor, "layer token"]]:
    """The class, the logits, and E for each of the last layers and every token, prefix tokens included."""
    *before, last = range(max(0, model.layers - layers), model.layers)
    outputs = [Site("resid_post", layer) for layer in before]
    patterns = [Site("pattern", layer) for layer in (*before, last)]
    cut: dict[Site | str, Function] = {Site("resid_pre", layer): Tensor.detach for layer in (*before, last)}
    recording = model.record([*patterns, *outputs], grad=True)
    # to the head, the outputs of the layers before are further examples beside that of the last
    beside: dict[Site | str, Function] = {
        Site("resid_post", last): lambda x: torch.cat([*(recording.value[site] for site in outputs), x])
    }
    with model.edit(cut), recording as recorded, model.edit(beside):
        logits = model(sample)
    index = model.class_index(target, logits[-1:].detach())
    gradients = gradient(logits[:, index].sum(), [recorded[site] for site in patterns])
    return index, logits[-1].detach(), torch.cat([each.relu().mean((1, 2)) for each in gradients])
