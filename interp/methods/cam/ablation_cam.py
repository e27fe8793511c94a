import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooks import Function
from interp.method import Paper, lens
from interp.methods.cam._channels import Forward, activations, heatmap, put, width
from interp.model import VisionModel
from interp.progress import spent, track
from interp.results import Heatmap
from interp.samples import Image, Target
from interp.sites import HEADED, Site

PAPER = Paper(
    "Desai, Saurabh and Ramaswamy, Harish G.",
    "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization",
    2020,
    "WACV",
    "https://openaccess.thecvf.com/content_WACV_2020/html/Desai_Ablation-CAM_Visual_Explanations_for_Deep_Convolutional"
    "_Network_via_Gradient-free_Localization_WACV_2020_paper.html",
)
BYTES = 64 * 2**20
"""How much the ablated copies of the activation may take at once."""


def behind(model: VisionModel, site: Site) -> float:
    """The share of a forward that runs for every channel: what lies behind the place where one example becomes many."""
    entry = first_copied(model, site)
    if entry.kind == "input" or entry.layer is None:
        return 1.0
    return 1 - (entry.layer + (entry.kind in ("stage", "resid_post"))) / model.layers


def cost(model: VisionModel, site: Site | None, **_: object) -> tuple[float, float]:
    """In whole forwards: the layers before the site run once, those behind it once for each channel."""
    site = model.resolve(site or model.last_spatial)
    return 2 + width(model, site) * behind(model, site), 0


@lens("Ablation-CAM", PAPER, cost=cost)
def ablation_cam(model: VisionModel, sample: Image, *, target: Target = Target(), site: Site | None = None) -> Heatmap:
    """Weigh each channel by how much the class logit falls when the channel is set to zero.

        w_k  = (S_c - S_c with A_k = 0) / |S_c|
        L_ij = sum_k  w_k A_kij

    The paper divides by S_c, which turns the map inside out where the logit is negative; for positive logits it is the
    same. The layers before the site run at batch 1, those behind it on a batch of ablated copies.

    Args:
        target: The class to explain.
        site: The layer whose channels are ablated; the last one that is still a map unless given.

    Returns:
        Heatmap [height, width] on the layer's grid, as activation times relative drop of the logit, before the paper's
        final ReLU.

    Raises:
        Unsuitable: no such class or layer.

    Assumes:
        That channels work alone. Zero is also far from usual for channels that are rarely zero.

    Misleads:
        Where several channels carry the same thing, ablating one costs nothing, and all get weight 0. A logit near zero
        makes the scale of the map huge, not its pattern.
    """
    at = activations(model, sample, target, site)
    drop = at.logits[at.index] - ablated(model, sample, at)[:, at.index]
    # a logit of exactly zero has no relative drop; a bound far below any real logit keeps the pattern
    weights = drop / at.logits[at.index].abs().clamp(min=1e-6 * float(at.logits.abs().max()) or 1.0)
    return heatmap(model, sample, at, (weights[:, None, None] * at.activation).sum(0), "activation x relative drop")


def first_copied(model: VisionModel, site: Site) -> Site:
    """Where one example becomes many: at the site, unless what it lies in reckons with one batch size."""
    if site.kind in HEADED and site.layer is not None:
        return Site("resid_pre", site.layer)
    if site.kind != "module":
        return site
    path, order = str(site.path).partition(":")[0], [name for name, _ in model.network.named_modules()]
    stages, blocks = model.parts.stages, model.parts.block_paths
    for layer, name in reversed(list(enumerate(stages or blocks))):
        inside = path == name or path.startswith(name + ".")
        if inside and blocks:
            return Site("resid_pre", layer)
        # modules are registered in the order in which they compute
        if not inside and order.index(path) > order.index(name):
            return Site("stage" if stages else "resid_post", layer)
    return Site("input")


def ablated(model: VisionModel, sample: Image, at: Forward) -> Float[Tensor, "channel class"]:
    """The logits with each channel set to zero in turn; a channel that is zero already costs nothing."""
    maps, live = model.grid(at.site), at.activation.flatten(1).any(1).nonzero()[:, 0]
    entry, share = first_copied(model, at.site), behind(model, at.site)
    batch = max(1, BYTES // max(1, at.activation.numel() * at.activation.element_size()))

    def without(part: Tensor) -> Tensor:
        def ablate(activation: Tensor) -> Tensor:
            here = maps(activation).expand(len(part), -1, -1, -1).clone()
            here[torch.arange(len(part)), part] = 0
            return put(activation, here)

        # two edits where the site can't hold more examples than the layers around it
        copies: dict[Site | str, Function] = {entry: lambda x: x.expand(len(part), *x.shape[1:])}
        with model.edit(copies if entry != at.site else {}), model.edit({at.site: ablate}):
            logits = model(sample)
        spent(forwards=1 + (share - 1) * len(part))  # the model counts examples, but they shared the layers before
        return logits

    def score() -> Tensor:
        logits = at.logits.expand(len(at.activation), -1).clone()
        for part in track(live.split(batch), "Ablated channels"):
            logits[part] = without(part)
        return logits

    return model.cached(("ablated", sample.sha256, at.site), score)
