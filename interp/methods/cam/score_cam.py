from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from interp import hooks
from interp.method import Paper, lens
from interp.methods.cam._channels import Forward, activations, heatmap, width
from interp.model import VisionModel
from interp.progress import track
from interp.results import Heatmap
from interp.samples import Image, Target, gallery
from interp.sites import Site

PAPER = Paper(
    "Wang, Haofan and Wang, Zifan and Du, Mengnan and Yang, Fan and Zhang, Zijian and Ding, Sirui and Mardziel, Piotr "
    "and Hu, Xia",
    "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
    2020,
    "CVPR Workshops",
    "https://arxiv.org/abs/1910.01279",
)
BATCH = 8
"""Masked images per forward; larger batches were not faster per image on a CPU."""


def live_channels(model: VisionModel, site: Site | None) -> int:
    """How many channels fire somewhere on a photo, for the estimate: in networks of ReLUs many never do."""
    typical = next((Image.gallery(name) for name in gallery()), None)
    if typical is None:
        return width(model, site)
    with hooks.alone():
        maps = activations(model, typical, Target(), site).activation
    return int((maps.amax((1, 2)) > maps.amin((1, 2))).sum())


@lens("Score-CAM", PAPER, cost=lambda model, site, **_: (live_channels(model, site) + 1, 0))
def score_cam(
    model: VisionModel,
    sample: Image,
    *,
    target: Target = Target(),
    site: Site | None = None,
    weighting: Literal["probability", "softmax over channels"] = "probability",
) -> Heatmap:
    """Weigh each channel by the class score of the image seen through that channel.

        M_k  = upsample(A_k),   H_k = (M_k - min M_k) / (max M_k - min M_k)
        probability:             w_k = softmax(f(x * H_k))_c
        softmax over channels:   w_k = softmax_k(f_c(x * H_k))
        L_ij = sum_k  w_k A_kij

    x is the normalised image, so the masks fade to the mean colour. The paper's Algorithm 1 takes the softmax over
    channels, its released code the probability. A channel that is the same everywhere has no H and weight 0.

    Args:
        target: The class to explain.
        site: The layer whose channels are the masks; the last one that is still a map unless given.
        weighting: What becomes of the scores: the class probability, as in the released code, or a softmax over
            channels of the logits, as in the paper.

    Returns:
        Heatmap [height, width] on the layer's grid, in units of the activation, before the paper's final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That the network judges a half-hidden image as it would the real one.

    Misleads:
        All weights are positive, so evidence against the class does not show; with the probability, channels matter
        equally where the class is hardly ever, or always, the answer. One forward for each channel: the slow one.
    """
    at = activations(model, sample, target, site)
    weights = torch.zeros(len(at.activation), device=at.activation.device, dtype=at.activation.dtype)
    live, scores = channel_scores(model, sample, at)
    chosen = scores[:, at.index] if weighting == "softmax over channels" else scores.softmax(1)[:, at.index]
    weights[live] = chosen.softmax(0) if weighting == "softmax over channels" else chosen
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0), "activation")


def channel_scores(model: VisionModel, sample: Image, at: Forward) -> tuple[Tensor, Float[Tensor, "live class"]]:
    """The channels that are not constant, and the logits of the image seen through each of them."""
    maps = at.activation
    live = (maps.amax((1, 2)) > maps.amin((1, 2))).nonzero()[:, 0]
    size = model.inputs(sample).shape[-2:]
    logits = []

    def seen_through(masks: Float[Tensor, "batch 1 height width"]) -> Tensor:
        # channels last is how convolutions are fastest on a CPU: 0.81 of the time at this batch size
        def mask(pixels: Tensor) -> Tensor:
            return (pixels * masks).contiguous(memory_format=torch.channels_last)

        # the mask comes after the interventions in force, which stand before it in the order of entry
        with model.edit({Site("input"): mask}):
            return model(sample)

    def score() -> Tensor:
        for part in track(live.split(BATCH), "Masked images"):
            masks = interpolate(maps[part, None], size, mode="bilinear", align_corners=False)
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            logits.append(seen_through((masks - low) / (high - low)))
        return torch.cat(logits) if logits else at.logits[None][:0]

    return live, model.cached(("seen through channels", sample.sha256, at.site), score)
