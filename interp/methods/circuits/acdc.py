from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp import progress
from interp.method import Paper, Range, lens
from interp.methods.circuits._edge_patching import EdgePatcher, Reader, Sources
from interp.methods.circuits._pairs import STILL, no_pairs, note_of, read_pair
from interp.model import LanguageModel
from interp.results import Graph, Residual
from interp.samples import PromptPair

PAPER = Paper(
    "Conmy, Arthur and Mavor-Parker, Augustine and Lynch, Aengus and Heimersheim, Stefan and Garriga-Alonso, Adrià",
    "Towards Automated Circuit Discovery for Mechanistic Interpretability",
    2023,
    "NeurIPS",
    "https://arxiv.org/abs/2304.14997",
)
TOKENS = 4096
"""How many tokens run together at most, all streams counted; it changes no result beyond rounding."""


def passes(model: LanguageModel, **_: Any) -> tuple[float, float]:
    """About four tries for each edge; how many it takes depends on what is cut."""
    heads, shared = model.parts.heads, model.parts.kv_heads
    earlier = [1 + layer * (heads + 1) for layer in range(model.layers)]
    edges = sum((heads + 2 * shared + 1) * each + heads for each in earlier) + 1 + model.layers * (heads + 1)
    return 4 * edges, 0


@lens("ACDC", PAPER, needs=no_pairs, cost=passes)
def acdc(
    model: LanguageModel,
    sample: PromptPair,
    *,
    measure: Literal["KL divergence", "logit difference"] = "KL divergence",
    threshold: Annotated[float, Range(0.0001, 10.0)] = 0.01,
) -> Graph:
    """Cut connections one by one, from the logits back to the input, wherever the answer hardly changes.

        cut u -> v for good if  D(circuit without u -> v) - D(circuit) < tau
        D(C) = KL(p_model | p_C)  or  |m(C) - m(model)|,  m the logit difference
        a cut edge carries the corrupted run's activation:  in_v = stream - sum over cut u of (u - u(corrupted))

    Parts are the input, heads by query, key and value, MLPs and the logits, each at all tokens together. Every edge
    is patched exactly, with those cut before it left cut. Several are tried in one batch on a guess of what becomes of
    those before them, and only tries whose guess was right are used, so the order is as if one came after the other.

    Args:
        measure: How far the circuit is from the model after the last token.
        threshold: By how much it may become larger for an edge to be cut, in nats or logits.

    Returns:
        Graph of the edges that are kept; the weight is by how much the measure would have grown without it, at its
        turn. A part's value is the sum of what leaves it.

    Raises:
        Unsuitable: prompts of unequal length, or the same; an answer or foil of several tokens.

    Assumes:
        That an edge that hardly matters at its turn belongs to no circuit, though the order is arbitrary.

    Misleads:
        Of two edges that do the same the first is cut and the second kept. Small rises, each below the threshold, add
        up: the residual says how far the circuit has come from the model.
    """
    pair = read_pair(model, sample)
    patcher = EdgePatcher(model, pair)
    full = patcher.base_logits.double()
    chances = full.log_softmax(0)

    def distance(logits: Tensor) -> Tensor:
        if measure == "KL divergence":
            return (chances.exp() * (chances - logits.double().log_softmax(-1))).sum(-1)
        return (pair.score(logits) - pair.score(full[None])).abs()

    cut: dict[Reader, Sources] = {}
    heard = {patcher.logits}
    edges: list[tuple[int, int, str, float]] = []
    now = 0.0
    for reader in progress.track(patcher.readers(), "cutting edges"):
        if patcher.number(reader) not in heard:
            continue  # nothing reads this part any more, so all that it reads is cut and changes nothing
        left, guess, bold = patcher.sources(reader), True, 1
        gone: Sources = frozenset()
        while left:
            most = max(1, TOKENS // (pair.length * (len(set(cut.values())) + patcher.group + 1)))
            tried = left[: min(bold, most)]
            bold *= 2  # twice as many after each guess that was right
            # guessed that all of them are cut, or that none is
            worlds = [gone | frozenset(tried[: n + 1] if guess else tried[n : n + 1]) for n in range(len(tried))]
            found = distance(patcher.run(cut, reader, worlds)).tolist()
            for source, value in zip(tried, found, strict=True):
                left.remove(source)
                if falls := value - now < threshold:
                    gone, now = gone | {source}, value
                else:
                    edges.append((source, patcher.number(reader), reader.port, value - now))
                    heard.add(source)
                if falls != guess:
                    guess, bold = falls, 1
                    break
        if gone:
            cut[reader] = gone
    return _graph(model, patcher, edges, cut, measure, now)


def _graph(
    model: LanguageModel,
    patcher: EdgePatcher,
    edges: list[tuple[int, int, str, float]],
    cut: dict[Reader, Sources],
    measure: str,
    distance: float,
) -> Graph:
    pair = patcher.pair
    runs = torch.stack([patcher.base_logits, patcher.donor_logits, patcher.run(cut)[0]])
    base, donor, circuit = pair.score(runs).tolist()
    units = "nat" if measure == "KL divergence" else "logit"
    note = note_of(pair, base, donor)
    if not note:
        share = (circuit - donor) / (base - donor)
        note = (
            f"{len(edges)} of {sum(len(patcher.sources(each)) for each in patcher.readers())} edges are kept; they "
            f"alone make {share:.0%} of the logit difference between both prompts."
        )
    weights = np.array([weight for *_, weight in edges])
    order = np.argsort(-weights, kind="stable")
    ends = np.array([edge[:2] for edge in edges], int).reshape(-1, 2)
    values = np.bincount(ends[:, 0], weights, patcher.logits + 1)
    gap = abs(circuit - base) / max(abs(base - donor), STILL)
    return Graph(
        tuple(map(str, patcher.nodes())), values, ends[order], weights[order],
        tuple(edges[each][2] for each in order), pair.tokens, pair.others, pair.target, units, pair.direction,
        base, donor, float(np.abs(weights).sum()), note=note,
        residual=Residual(gap, "gap of the circuit to the model, as a share of the difference of the prompts"),
    )  # fmt: skip
