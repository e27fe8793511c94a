"""What circuit methods share: a pair of prompts read as tokens, the metric, the nodes, and activations at them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Unsuitable
from interp.methods.reading._prompts import last_logits
from interp.model import LanguageModel
from interp.samples import Prompt, PromptPair, Target
from interp.sites import Node, Site

Metric = Literal["logit difference", "log-probability", "probability", "KL divergence"]
Direction = Literal["noising", "denoising"]
Nodes = Literal["heads and MLPs", "q, k, v", "residual stream", "attention and MLPs", "patterns", "neurons"]
KINDS: dict[Nodes, tuple[str, ...]] = {
    "heads and MLPs": ("z", "mlp_out"),
    "q, k, v": ("q", "k", "v"),
    "residual stream": ("resid_pre", "resid_mid", "resid_post"),
    "attention and MLPs": ("attn_out", "mlp_out"),
    "patterns": ("pattern",),
    "neurons": ("mlp_post",),
}
UNITS: dict[Metric, str] = {
    "logit difference": "logit", "log-probability": "nat", "probability": "probability", "KL divergence": "nat",
}  # fmt: skip
STILL = 1e-6
"""A metric that differs by less between the two prompts does not tell them apart."""


@dataclass(frozen=True)
class Pair:
    """A pair of prompts as a model reads it, and what is measured of the logits after the last token.

    base: the run that is patched; donor: the run that patches come from (token ids [1, position]).
    """

    base: Int[Tensor, "1 position"]
    donor: Int[Tensor, "1 position"]
    tokens: tuple[str, ...]
    others: tuple[str, ...]
    answer: int
    foil: int
    metric: Metric
    direction: Direction
    target: str
    reference: Float[Tensor, token] | None = None

    def score(self, logits: Float[Tensor, "row token"]) -> Float[Tensor, row]:
        """The metric of each row of logits, in float64.

        logit difference: z_answer - z_foil.  log-probability, probability: of the answer.
        KL divergence: sum_v p_v (log p_v - log p'_v), p of the clean prompt, p' of the row.
        """
        if self.metric == "logit difference":
            return logits[:, self.answer].double() - logits[:, self.foil].double()
        logs = logits.double().log_softmax(-1)
        if self.metric == "KL divergence":
            assert self.reference is not None
            return (self.reference.exp() * (self.reference - logs)).sum(-1)
        return logs[:, self.answer] if self.metric == "log-probability" else logs[:, self.answer].exp()

    @property
    def length(self) -> int:
        return self.base.shape[1]

    @property
    def units(self) -> str:
        return UNITS[self.metric]


def read_pair(
    model: LanguageModel, sample: PromptPair, metric: Metric = "logit difference", direction: Direction = "noising"
) -> Pair:
    """The pair as token ids, checked.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil that is no single token, or the same.
    """
    ids = [model.inputs(Prompt(text)) for text in (sample.clean, sample.corrupted)]
    lengths = [each.shape[1] for each in ids]
    if lengths[0] != lengths[1]:
        raise Unsuitable(
            f"The clean prompt has {lengths[0]} tokens and the corrupted one {lengths[1]}; patching needs equally "
            "many, so change words for others of as many tokens."
        )
    if bool((ids[0] == ids[1]).all()):
        raise Unsuitable("Both prompts are the same, so there is nothing to patch; change a word in one of them.")
    answer, foil, name = answers(model, sample)
    base, donor = ids if direction == "noising" else ids[::-1]
    reference = None
    if metric == "KL divergence":
        reference = last_logits(model, Prompt(sample.clean)).double().log_softmax(0)
    tokens, others = (tuple(model.tokens(text)) for text in (sample.clean, sample.corrupted))
    return Pair(base, donor, tokens, others, answer, foil, metric, direction, name, reference)


def answers(model: LanguageModel, sample: PromptPair) -> tuple[int, int, str]:
    """Answer and foil as tokens, and the name of the difference; unnamed, the first guesses after the two prompts.

    Raises:
        Unsuitable: no single token, or the same one for both.
    """
    found = []
    for text, prompt in ((sample.answer, sample.clean), (sample.foil, sample.corrupted)):
        target = Target(text or None)
        found.append(model.token_index(target, None if text else last_logits(model, Prompt(prompt))))
    answer, foil = found
    if answer == foil:
        raise Unsuitable(
            f"Answer and foil are the same token, {model.token_text(answer)!r}; name two that tell the prompts apart."
        )
    return answer, foil, f"{model.token_text(answer)} over {model.token_text(foil).lstrip(' ')}"


def no_pairs(model: LanguageModel) -> str | None:
    """The reason why a model's heads and MLPs can't be patched, or None."""
    return next(
        (reason for kind in ("z", "attn_out", "mlp_out") if (reason := model.refuses(Site(kind, 0)))),
        None,
    )


def length_of(model: Any, sample: Any) -> int:
    """How many tokens a sample has; that of a usual one where none is given."""
    text = getattr(sample, "clean", None) or getattr(sample, "text", None)
    return 16 if text is None else model.inputs(Prompt(text), cut=True).shape[1]


def sites_of(model: LanguageModel, nodes: Nodes) -> list[Site]:
    """The sites (whole, without heads) at which nodes of that sort lie, from input to output.

    Raises:
        Unsuitable: the model has none of them.
    """
    kinds = KINDS[nodes]
    if nodes == "residual stream":
        kinds = tuple(kind for kind in kinds if kind == "resid_mid" and not model.refuses(Site(kind, 0)))
        found = [Site("resid_pre", 0)]
        for layer in range(model.layers):
            found += [*(Site(kind, layer) for kind in kinds), Site("resid_post", layer)]
        return found
    for kind in kinds:
        if reason := model.refuses(Site(kind, 0)):
            raise Unsuitable(reason)
    return [Site(kind, layer) for layer in range(model.layers) for kind in kinds]


def heads_at(model: LanguageModel, site: Site) -> int:
    """How many heads a site has; 0 where it is not split in heads."""
    counts = {"q": model.parts.heads, "z": model.parts.heads, "pattern": model.parts.heads}
    return counts.get(site.kind, model.parts.kv_heads if site.kind in ("k", "v") else 0)


def nodes_at(model: LanguageModel, sites: Iterable[Site], length: int, by_position: bool) -> list[Node]:
    """The nodes at sites: for each head, for each token."""
    found = []
    for site in sites:
        count = heads_at(model, site)
        parts = [Site(site.kind, site.layer, head) for head in range(count)] if count else [site]
        for part in parts:
            found += [Node(part, place) for place in range(length)] if by_position else [Node(part)]
    return found


def activations(
    model: LanguageModel, ids: Int[Tensor, "1 position"], sites: Sequence[Site]
) -> tuple[dict[Site, list[Tensor]], Float[Tensor, token]]:
    """Activations [1, ...] of every pass through each site (none where its layer is skipped), and the last logits."""
    with torch.no_grad(), model.record(sites, every=True) as found:
        logits = model(ids, keep=1)[0, -1]
    return {site: list(found[site]) for site in sites}, logits


def spread(model: LanguageModel, site: Site, scores: Tensor, by_position: bool) -> Float[Tensor, node]:
    """Scores by position and head in the order of `nodes_at`, summed over positions where those are not told apart.

    scores: [position], [position, head] (q k v z), [head, query] (pattern).
    """
    if heads_at(model, site):
        scores = scores if site.kind == "pattern" else scores.T
    return (scores if by_position else scores.sum(-1, keepdim=True)).reshape(-1)


def note_of(pair: Pair, base: float, donor: float) -> str:
    """A sentence where the two prompts do not differ in what is measured."""
    if abs(donor - base) > STILL:
        return ""
    return (
        f"Both prompts have the same {pair.metric} ({base:.3g}), so no effect is given as a share of it; "
        "choose an answer and a foil, or a metric, that tell the prompts apart."
    )


def arrays(values: Mapping[Node, float]) -> tuple[tuple[str, ...], list[float]]:
    """Names and values of nodes."""
    return tuple(map(str, values)), list(values.values())
