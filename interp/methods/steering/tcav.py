from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp import Unsuitable, directions, progress
from interp.method import DirectionName, Paper, Range, Unset, lens
from interp.methods.reading._prompts import chosen, layer_names, no_blocks
from interp.model import LanguageModel, gradient
from interp.results import Table
from interp.samples import Prompt, Target, TextSet
from interp.sites import Site

PAPER = Paper(
    "Kim, Been and Wattenberg, Martin and Gilmer, Justin and Cai, Carrie and Wexler, James and Viegas, Fernanda and "
    "Sayres, Rory",
    "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors (TCAV)",
    2018,
    "ICML",
    "https://arxiv.org/abs/1711.11279",
)


def passes(model: LanguageModel, sample: Any = None, **_: Any) -> tuple[float, float]:
    """A forward and a backward for each text."""
    texts = len(sample.texts) if isinstance(sample, TextSet) else 1
    return texts, texts


@lens("TCAV", PAPER, needs=no_blocks, cost=passes)
def tcav(
    model: LanguageModel,
    sample: Prompt | TextSet,
    *,
    direction: Annotated[str, DirectionName()] = "",
    layer: Annotated[int | None, Range(0, 512), Unset("all it is known at")] = None,
    target: Target = Target(),
    foil: Target = Target(),
    tokens: Literal["all", "last"] = "all",
    draws: Annotated[int, Range(1, 10_000)] = 200,
    seed: int = 0,
) -> Table:
    """Ask whether a small push along a concept makes a token likelier, and whether random pushes do so as well.

        S_i = d logit_i(h_l + s v) / ds at s = 0 = sum over tokens <d logit_i / d h_l, v>
        TCAV = the share of texts with S_i > 0
        p = (1 + #{r: |mean_i S_i(v_r)| >= |mean_i S_i(v)|}) / (1 + draws),    v_r: random, as long as v

    Args:
        direction: Which concept; the model's first direction unless given.
        layer: After which layer.
        target: The token; each text's own first guess unless given.
        foil: A token to compare with.
        tokens: Whether all tokens are pushed, as steering does, or the last alone.
        draws: How many random directions.
        seed: Number that fixes them.

    Returns:
        Table of layers: the mean derivative in logits for a strength of 1, the share of texts where it is positive,
        the mean such share of random directions with its standard deviation, and p.

    Raises:
        Unsuitable: no texts, no such direction, layer or token.

    Assumes:
        That the logit is about linear over a push of the size that is meant.

    Misleads:
        A derivative says what a small push does. With one text the share is 0 or 1: look at p. Random directions are
        mostly across everything that is read, so that almost any direction of texts beats them.
    """
    found = directions.load(direction, model)
    layers = found.layers if layer is None else (layer,)
    texts = sample.texts if isinstance(sample, TextSet) else (sample.text,)
    if not texts:
        raise Unsuitable("There are no texts; give at least one.")
    vectors = torch.stack([found.at(each) for each in layers]).double()
    generator = torch.Generator().manual_seed(seed)
    others = torch.randn(draws, *vectors.shape, generator=generator, dtype=torch.float64)
    others *= (vectors.norm(dim=1) / others.norm(dim=2))[..., None]
    slopes = [_slopes(model, text, layers, target, foil, tokens) for text in progress.track(texts, "taking gradients")]
    g = torch.stack(slopes).double().cpu()  # [text, layer, d]
    mine = torch.einsum("tld,ld->tl", g, vectors)
    theirs = torch.einsum("tld,rld->rtl", g, others)
    share = (theirs > 0).double().mean(1)
    beyond = (theirs.mean(1).abs() >= mine.mean(0).abs()).sum(0)
    spread = share.std(0, correction=0)
    columns = [mine.mean(0), (mine > 0).double().mean(0), share.mean(0), spread, (1 + beyond) / (1 + draws)]
    names = layer_names(model)
    return Table(
        tuple(names[each] for each in layers), ("derivative", "share positive", "random: share positive",
        "random: spread", "p"), np.stack([each.numpy() for each in columns], 1), "logit for a strength of 1, shares, p",
        note=f"Along {found.name}, over {len(texts)} text{'s' * (len(texts) > 1)}.",
    )  # fmt: skip


def _slopes(
    model: LanguageModel, text: str, layers: tuple[int, ...], target: Target, foil: Target, tokens: str
) -> Tensor:
    """d logit / d h after each layer, summed over the tokens that are pushed, [layer, d]; zeros where none runs."""
    sites = [Site("resid_post", layer) for layer in layers]
    with model.record(sites, grad=True, every=True) as found:
        logits = model(Prompt(text), keep=1)[0, -1]
    index, other, _ = chosen(model, target, foil, logits.detach())
    score = logits[index] - logits[other] if other is not None else logits[index]
    streams = [each for site in sites for each in found[site]]
    if not streams:
        return torch.zeros(len(layers), directions.width_of(model))
    found_slopes = iter(gradient(score, streams, loose=True))
    rows = []
    for site in sites:
        own = [next(found_slopes)[0] for _ in found[site]]
        pushed = [each.sum(0) if tokens == "all" else each[-1] for each in own]
        rows.append(sum(pushed, torch.zeros(directions.width_of(model), device=model.device)))
    return torch.stack(rows).detach()
