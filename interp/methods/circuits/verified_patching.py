from typing import Annotated, Any, Literal

import numpy as np
import torch

from interp import Unsuitable
from interp.method import Paper, Range, lens
from interp.methods.circuits._pairs import (
    Direction,
    Metric,
    Nodes,
    length_of,
    no_pairs,
    nodes_at,
    note_of,
    read_pair,
    sites_of,
)
from interp.methods.circuits._patching import Patcher
from interp.methods.circuits.atp_star import atp_star
from interp.methods.circuits.attribution_patching import attribution_patching
from interp.model import LanguageModel
from interp.results import Graph
from interp.samples import PromptPair
from interp.sites import Node

PAPER = Paper(
    "Kramár, János and Lieberum, Tom and Shah, Rohin and Nanda, Neel",
    "AtP*: An efficient and scalable method for localizing LLM behaviour to components",
    2024,
    "arXiv",
    "https://arxiv.org/abs/2403.00745",
)
MEMBERS = 8
"""How many of the subsets each part is in: enough for a t-test, and few parts patched together."""


def passes(
    model: LanguageModel, nodes: Nodes, verify: int, samples: int, rank_by: str, sample: Any = None, **_: Any
) -> tuple[float, float]:
    """The estimate, the runs of the pair, half a forward for each part verified, and one for each subset."""
    count = min(verify, len(nodes_at(model, sites_of(model, nodes), length_of(model, sample), True)))
    return 4 + 0.6 * count + samples, 1 + (model.layers if rank_by == "AtP*" and model.layers > 1 else 0)


@lens("Verified top nodes", PAPER, needs=no_pairs, cost=passes)
def verified_patching(
    model: LanguageModel,
    sample: PromptPair,
    *,
    nodes: Nodes = "heads and MLPs",
    metric: Metric = "logit difference",
    direction: Direction = "noising",
    rank_by: Literal["AtP*", "AtP"] = "AtP*",
    verify: Annotated[int, Range(1, 1000)] = 20,
    samples: Annotated[int, Range(0, 10_000)] = 200,
    confidence: Annotated[float, Range(0.5, 0.999)] = 0.99,
    seed: int = 0,
) -> Graph:
    """Patch the parts that an estimate ranks first, exactly, and bound what the others can do.

        I_S = m(base | n <- n(donor) for n in S) - m(base),    each of the other parts in 8 random subsets S
        d_n = mean(I_S | n in S) - mean(I_S | n not in S),     x = max_n |d_n| + t_c se(d_n)

    Were effects to add up, d_n would estimate I(n) without bias; t_c is Student's two-sided quantile at confidence c
    with Welch's degrees of freedom. The part with the largest effect stays below its own bound with confidence c, and
    so below x. The procedure is ours, after the paper's diagnostics.

    Args:
        nodes: Which parts.
        metric: What is measured after the last token.
        direction: Noising patches the clean run, denoising the corrupted one.
        rank_by: The estimate that says which parts come first.
        verify: How many parts to patch exactly.
        samples: How many random subsets of the others to patch; with fewer than 4 there is no bound.
        confidence: With which no other part moves the metric by more than the bound.
        seed: Number that fixes the subsets.

    Returns:
        Graph of the verified nodes with their exact effects, the estimates beside them, and the bound.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens; neurons.

    Assumes:
        That effects of the other parts about add up, so that a part does in a random subset what it does alone.

    Misleads:
        Two parts that do the same thing hide each other: each alone moves nothing, and in a subset one may stand for
        both. Then a bound on single parts says little about them together.
    """
    if nodes == "neurons":
        raise Unsuitable("Neurons are too many to be patched one by one; choose heads and MLPs, or queries and keys.")
    settings: dict[str, Any] = {"nodes": nodes, "metric": metric, "direction": direction}
    estimate = (atp_star if rank_by == "AtP*" else attribution_patching)(model, sample, **settings)
    pair, sites = read_pair(model, sample, metric, direction), sites_of(model, nodes)
    found = [Node.parse(each) for each in estimate.nodes]
    order = np.argsort(-np.abs(estimate.values), kind="stable")
    first, rest = order[:verify], order[verify:]
    patcher = Patcher(model, pair, sites)
    values = patcher.effects([(found[each],) for each in first], "verifying the first").numpy()
    bound, note = float("nan"), note_of(pair, patcher.base, patcher.other)
    if samples >= 4 and len(rest):
        chosen = subsets(samples, len(rest), seed)
        rows = [[found[rest[each]] for each in np.flatnonzero(row)] for row in chosen]
        bound = bound_of(chosen, patcher.effects(rows, "patching random subsets").numpy(), confidence)
        note = (
            f"Verified the first {len(first)} of {len(found)} exactly; with {100 * confidence:.3g} % confidence no "
            f"other part moves the metric by more than {bound:.2g} {pair.units}, if effects add up. {note}".strip()
        )
    return Graph(
        tuple(estimate.nodes[each] for each in first), values, tokens=pair.tokens, others=pair.others,
        target=pair.target, units=pair.units, direction=direction, base=patcher.base, donor=patcher.other,
        total=float(np.abs(values).sum()), beside=estimate.values[first], beside_name=rank_by, bound=bound,
        confidence=confidence, note=note,
    )  # fmt: skip


def subsets(samples: int, parts: int, seed: int) -> np.ndarray:
    """Random subsets, bool [subset, part], every part in as many: one that is in hardly any would have no bound."""
    order = torch.rand(samples, parts, generator=torch.Generator().manual_seed(seed)).argsort(0).argsort(0)
    return (order < min(MEMBERS, samples // 2)).numpy()


def bound_of(chosen: np.ndarray, effects: np.ndarray, confidence: float) -> float:
    """x of the formula. chosen: bool [subset, part]; effects: [subset]."""
    from scipy.special import stdtrit

    means, errors = [], []
    for side in (chosen, ~chosen):
        count = side.sum(0)
        usable = np.maximum(count, 2)
        mean = (side * effects[:, None]).sum(0) / usable
        spread = (side * (effects[:, None] - mean) ** 2).sum(0) / (usable - 1)
        means.append(mean)
        # a part that is hardly ever in a subset has shown nothing
        errors.append((np.where(count < 2, np.inf, spread / usable), usable - 1))
    (inside, inside_df), (outside, outside_df) = errors
    error = inside + outside
    with np.errstate(invalid="ignore", divide="ignore"):
        df = error**2 / (inside**2 / inside_df + outside**2 / outside_df)
    df = np.where(np.isfinite(df), np.maximum(df, 1), 1)
    return float((np.abs(means[0] - means[1]) + stdtrit(df, (1 + confidence) / 2) * np.sqrt(error)).max())
