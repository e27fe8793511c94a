from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from interp import Unsuitable
from interp.hooks import Block, here
from interp.method import Paper, Positions, Sites, Unset, intervention
from interp.methods.change._places import at_positions, positions_of
from interp.methods.reading._prompts import no_blocks
from interp.model import LanguageModel
from interp.samples import Prompt, PromptPair
from interp.sites import Site

PAPER = Paper(
    "Zhang, Fred and Nanda, Neel",
    "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods",
    2024,
    "ICLR",
    "https://arxiv.org/abs/2309.16042",
)


@intervention("Patch from another prompt", PAPER, needs=no_blocks)
def patch_from(
    model: LanguageModel,
    sample: Prompt | PromptPair,
    *,
    sites: Annotated[tuple[Site, ...], Sites()] = (),
    donor: Annotated[Prompt | None, Unset("the corrupted prompt of the pair")] = None,
    positions: Annotated[tuple[int, ...], Positions()] = (),
) -> Block | None:
    """Put in what activations are on another prompt.

        A_t <- A_t(donor)        for t in positions, or at all tokens of the prompt

    The donor runs under the changes in force before this one. What is generated behind the prompt is left alone.

    Args:
        sites: Which activations: heads as z.2.1, MLPs as mlp_out.0, the residual stream as resid_post.1. None leaves
            the model as it is.
        donor: The other prompt, of as many tokens.
        positions: At which tokens, from 0; at all of them unless given.

    Raises:
        Unsuitable: no other prompt, or one of another length; no such site or token.

    Assumes:
        That the two prompts match token by token, so that the same position plays the same part in both.

    Misleads:
        A patched part is consistent with its own prompt and not with the rest, as no prompt would make it.
    """
    if not sites:
        return None
    if donor is None:
        if not isinstance(sample, PromptPair):
            raise Unsuitable("There is no other prompt to patch from; give one, or make it a pair of prompts.")
        donor = Prompt(sample.corrupted)
    mine = model.inputs(Prompt(sample.clean) if isinstance(sample, PromptPair) else sample).shape[1]
    length = model.inputs(donor).shape[1]
    if mine != length:
        raise Unsuitable(
            f"The prompt has {mine} tokens and the one to patch from {length}; change words for others of as many "
            "tokens."
        )
    if positions and positions[-1] >= length:
        raise Unsuitable(f"The prompt has positions 0 to {length - 1}, not {positions[-1]}.")
    resolved = tuple(dict.fromkeys(model.resolve(site) for site in sites))
    if any(site.kind == "pattern" for site in resolved):
        raise Unsuitable("A pattern depends on how many tokens there are; patch the queries or keys it is made of.")
    found = _activations(model, donor, resolved)
    places = positions or tuple(range(length))
    return model.edit({site: at_positions(places, _putting(own)) for site, own in zip(resolved, found, strict=True)})


def _activations(model: LanguageModel, donor: Prompt, sites: tuple[Site, ...]) -> tuple[tuple[Tensor, ...], ...]:
    """[position, ...] of every pass through each site."""

    def look() -> tuple[tuple[Tensor, ...], ...]:
        with torch.no_grad(), model.record(sites, every=True) as found:
            model(donor, keep=1)
        return tuple(tuple(each[0] for each in found[site]) for site in sites)

    return model.cached(("patch from", donor.text, sites), look)


def _putting(donors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """Put the donor in at each row's positions; in a layer that runs several times, of the same time round."""

    def put(x: Tensor) -> Tensor:
        if not donors:
            return x
        turn = here().scratch.setdefault(("patched", id(donors)), [0])
        donor = donors[turn[0] % len(donors)]
        turn[0] += 1
        return donor.to(x)[positions_of(x).clamp(min=0, max=len(donor) - 1)]

    return put
