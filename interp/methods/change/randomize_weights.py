import re
from typing import Annotated

import torch
from torch import Tensor, nn

from interp.hooks import Block
from interp.method import Paper, Unset, intervention
from interp.model import VisionModel
from interp.samples import Image
from interp.sites import Site

PAPER = Paper(
    "Adebayo, Julius and Gilmer, Justin and Muelly, Michael and Goodfellow, Ian and Hardt, Moritz and Kim, Been",
    "Sanity Checks for Saliency Maps",
    2018,
    "NeurIPS",
    "https://arxiv.org/abs/1810.03292",
)


@intervention("Randomize weights", PAPER)
def randomize_weights(
    model: VisionModel,
    sample: Image,
    *,
    site: Annotated[Site | None, Unset("nothing")] = None,
    statistics: bool = False,
    seed: int = 0,
) -> Block | None:
    """Randomise the network from the classifier down to a layer: the cascade of the sanity checks.

        theta <- mean(theta) + std(theta) eps,    eps ~ N(0, 1),    for every parameter from that layer to the output

    Each parameter keeps its own mean and spread, so that activations keep their scale; one that is the same everywhere
    stays. Going one layer deeper draws only that layer anew: what lies above has the same random weights as before.

    Args:
        site: The deepest layer to randomise, itself included; none leaves the model as it is.
        statistics: Also set BatchNorm's running mean and variance to 0 and 1. They are measured, not learned, and kept
            by default: without them activations lose their scale. Libraries that re-initialise modules reset them.
        seed: Number that fixes the weights.

    Raises:
        Unsuitable: no such site.

    Assumes:
        That a map which explains what the network learned must change when that is gone.

    Misleads:
        Survival is a warning, change is no proof: random maps change too. Channels that were large stay large, so maps
        keep some of their look. It is no ranking of methods.
    """
    if site is None:
        return None
    return model.swap(random_weights(model, model.resolve(site), statistics, seed))


def random_weights(model: VisionModel, site: Site, statistics: bool, seed: int) -> dict[str, Tensor | nn.Module]:
    """New values for every parameter from the layer of `site` to the output, drawn from the output down."""
    network = model.network
    modules = dict(network.named_modules())
    order = list(modules)
    doomed = order[order.index(first_module(model, site, order)) :]
    generator = torch.Generator().manual_seed(seed)
    new: dict[str, Tensor | nn.Module] = {}
    for path in reversed(doomed):
        for name, old in modules[path].named_parameters(prefix=path, recurse=False):
            value = old.detach().double()
            noise = torch.randn(old.shape, generator=generator, dtype=torch.float64).to(value.device)
            new[name] = (value.mean() + value.std(correction=0) * noise).to(old.dtype)
        if statistics and isinstance(modules[path], nn.modules.batchnorm._BatchNorm):
            for name, old in modules[path].named_buffers(prefix=path, recurse=False):
                if name.endswith(("running_mean", "running_var")):
                    new[name] = torch.full_like(old, float(name.endswith("var")))
    return new


def first_module(model: VisionModel, site: Site, order: list[str]) -> str:
    """The first module of the layer that `site` belongs to, in order of registration, which is that of computation."""
    if site.kind in ("input", "embed"):
        return order[0]
    if site.kind == "module":
        return str(site.path).partition(":")[0]
    if site.kind != "stage":
        return model.parts.block_paths[site.layer or 0]
    if site.layer == 0:  # the list that the stages lie in starts with stage 0, behind the stem
        return re.sub(r"\d+$", "0", model.parts.stages[0])
    # a stage is all that follows the stage before: its own module may be the last of several, or have no weights
    before = model.parts.stages[(site.layer or 0) - 1]
    return next(path for path in order[order.index(before) :] if path != before and not path.startswith(before + "."))
