"""What the lenses of language models share: token ids, positions, activations and logits of a prompt."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable
from interp.model import LanguageModel
from interp.samples import Prompt, Target
from interp.sites import Site


def position_of(length: int, position: int | None) -> int:
    """The position asked for, from 0; the last for None.

    Raises:
        Unsuitable: the prompt is shorter.
    """
    if position is None:
        return length - 1
    if not 0 <= position < length:
        raise Unsuitable(f"The prompt has positions 0 to {length - 1}, not {position}.")
    return position


def looked(
    model: LanguageModel, sample: Prompt, sites: Iterable[Site]
) -> tuple[list[list[Tensor]], Float[Tensor, token]]:
    """Activations [position, ...] of a prompt at sites, under the interventions in force, and the last logits.

    Of each site a list, of every pass through it: none where its layer is skipped, several where it is repeated.
    """
    sites = tuple(model.resolve(each) for each in sites)

    def look() -> tuple[tuple[Tensor, ...], ...]:
        with model.record(sites, every=True) as found:
            logits = model(sample, keep=1)
        return *(tuple(each[0] for each in found[site]) for site in sites), (logits[0, -1].detach(),)

    *passes, (logits,) = model.cached(("sites", sample.text, sites), look)
    return [list(each) for each in passes], logits


def streams(model: LanguageModel, sample: Prompt) -> tuple[list[Tensor], Float[Tensor, token]]:
    """The residual stream [position, d_model] before the first layer and after each, and the last logits."""
    passes, logits = looked(model, sample, residual_sites(model))
    return [each[-1] for each in passes], logits


def last_logits(model: LanguageModel, sample: Prompt, position: int | None = None) -> Float[Tensor, token]:
    """The logits after one position, the last unless given."""

    def look() -> Tensor:
        return model(sample)[0, position] if position is not None else model(sample, keep=1)[0, -1]

    return model.cached(("logits", sample.text, position), lambda: look().detach())


def chosen(model: LanguageModel, target: Target, foil: Target, logits: Tensor) -> tuple[int, int | None, str]:
    """The target's token, the foil's where one is given, and how to name the score they make."""
    index = model.token_index(target, logits)
    if foil.name is None:
        return index, None, model.token_text(index)
    other = model.token_index(foil)
    if other == index:
        raise Unsuitable("Target and foil are the same token; choose two.")
    return index, other, f"{model.token_text(index)} over {model.token_text(other).lstrip(' ')}"


def layer_names(model: LanguageModel) -> tuple[str, ...]:
    return tuple(f"layer {layer}" for layer in range(model.layers))


def residual_sites(model: LanguageModel) -> tuple[Site, ...]:
    """What enters the first layer, and what leaves each."""
    return (Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(model.layers)))


RESIDUALS = "before layer 0"
"""The name of the row of the first of `residual_sites`."""


def no_blocks(model: LanguageModel) -> str | None:
    """The reason why a model without known blocks can't be read by layer, or None."""
    return None if model.parts.blocks else f"{model.name} has no transformer blocks that can be told apart."
