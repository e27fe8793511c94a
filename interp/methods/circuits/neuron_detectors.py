from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.method import Paper, Range, lens
from interp.methods.circuits.head_detectors import places, random_repeats, words
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt, reference_texts
from interp.sites import Site

PAPER = Paper(
    "Gurnee, Wes and Nanda, Neel and Pauly, Matthew and Harvey, Katherine and Troitskii, Dmitrii and "
    "Bertsimas, Dimitris",
    "Finding Neurons in a Haystack: Case Studies with Sparse Probing",
    2023,
    "TMLR",
    "https://arxiv.org/abs/2305.01610",
)
COLUMNS = ("duplicate token", "induction", "first token", "subword merge")
PERMUTED = "permuted labels"
TEXTS, REPEATS, LENGTH = 6, 3, 64
"""How many embedded texts and random repeats are read beside the prompt, and how many tokens of each."""


def no_neurons(model: Any) -> str | None:
    """The reason why a model has no neurons that can be seen, or None."""
    return model.refuses(Site("mlp_post", 0))


@lens("Neuron detectors", PAPER, needs=no_neurons, cost=lambda model, **_: (1 + TEXTS + REPEATS, 0))
def neuron_detectors(
    model: LanguageModel,
    sample: Prompt,
    *,
    top: Annotated[int, Range(1, 1000)] = 20,
    seed: int = 0,
) -> Table:
    """Find the neurons whose activation tells tokens with a simple property from tokens without it.

        AUROC_n = P(a_n(t+) > a_n(t-)) + P(a_n(t+) = a_n(t-)) / 2,    t+ with the property, t- without
        duplicate token:  x_t = x_j for a j < t            induction:  x_(t-1) x_t = x_(j-1) x_j for a 0 < j < t
        first token:  t = 0        subword merge:  t goes on with the word of t - 1

    a is the input of the MLP's last layer, over all tokens t of the prompt, some of the embedded texts and, but for
    subword merge, random tokens said twice. Listed are the neurons whose |AUROC - 1/2| is for any property the largest
    in standard deviations of chance, sqrt((n + m + 1) / 12 n m) for n tokens with it and m without. The last row is
    what chance gives: 1/2 and the largest |AUROC - 1/2| of all neurons when labels are dealt out anew.

    Args:
        top: How many neurons.
        seed: Which random tokens, and how labels are dealt out.

    Returns:
        Table, a row per neuron, AUROC per property; 0.5 where a property does not occur, of which the note speaks.

    Assumes:
        That a neuron speaks by how large its activation is, alone and of one property at a time.

    Misleads:
        It may tell another property apart that goes with this one: a token that came before is a common token, and the
        first has seen nothing. Neurons that share out a property are not found.
    """
    texts = [sample.text, *reference_texts().texts[:TEXTS]]
    ids = [model.inputs(sample), *(model.inputs(Prompt(each), cut=True) for each in texts[1:])]
    ids += [random_repeats(model, ids[0], seed + index) for index in range(REPEATS)]
    ids = [each[:, :LENGTH] for each in ids]
    pieces = [words(model.tokens(each))[:LENGTH] for each in texts] + [[]] * REPEATS
    labels = torch.cat(list(map(properties, ids, pieces)), 1)
    # random tokens are no words, and would be told from those that are
    inside = torch.cat([torch.full((each.shape[1],), bool(own)) for each, own in zip(ids, pieces, strict=True)])

    generator = torch.Generator().manual_seed(seed)

    def deal(labels: Tensor) -> Tensor:
        """Labels of each property, and behind them the same ones permuted."""
        permuted = labels[:, torch.randperm(labels.shape[1], generator=generator)]
        return torch.stack([labels, permuted], 1).flatten(0, 1)

    anywhere, merged = deal(labels[:-1]), deal(labels[-1:, inside])
    found = torch.cat(
        [
            torch.cat([auroc(each, anywhere), auroc(each[inside], merged)], 1).unflatten(1, (len(COLUMNS), 2))
            for each in activations(model, ids)
        ]
    ).numpy()
    real, chance = found[..., 0], found[..., 1]
    # what few tokens have is told apart by chance more often: in standard deviations of labels that are dealt out
    count, whole = labels.sum(1).numpy(), np.array([*[len(inside)] * (len(COLUMNS) - 1), int(inside.sum())])
    away = np.abs(real - 0.5) * np.sqrt(12 * count * (whole - count) / (whole + 1))
    best = np.argsort(-away.max(1), kind="stable")[:top]
    width = len(found) // model.layers
    null = np.abs(chance - 0.5).max(0)
    absent = [name for name, own in zip(COLUMNS, labels, strict=True) if not 0 < int(own.sum()) < len(own)]
    return Table(
        (*(f"L{each // width}N{each % width}" for each in best.tolist()), PERMUTED),
        COLUMNS,
        np.concatenate([real[best], 0.5 + null[None]]),
        "AUROC",
        note=f"With permuted labels the largest |AUROC - 0.5| of {len(found):,} neurons is {null.max():.3f}."
        + (f" Can't occur here: {', '.join(absent)}." if absent else ""),
    )


def activations(model: LanguageModel, ids: list[Int[Tensor, "1 t"]]) -> list[Float[Tensor, "token neuron"]]:
    """What each layer's neurons are at all tokens; of a repeated layer the last time, zero where it is skipped."""
    longest = max(each.shape[1] for each in ids)
    batch = torch.cat([torch.nn.functional.pad(each, (longest - each.shape[1], 0), value=-1) for each in ids])
    sites = [Site("mlp_post", layer) for layer in range(model.layers)]
    with torch.no_grad(), model.record(sites, every=True) as found:
        model(batch, keep=1)
    some = next((each[-1] for each in found.values() if each), torch.zeros(*batch.shape, 1))
    # OPT gives its MLP all tokens in one row
    values = [(found[site][-1] if found[site] else torch.zeros_like(some)).reshape(*batch.shape, -1) for site in sites]
    return [each[batch >= 0].float().cpu() for each in values]


def properties(ids: Int[Tensor, "1 t"], word: list[int]) -> Bool[Tensor, "property t"]:
    """Which tokens have each of the properties in COLUMNS; of which word each is a piece, nothing where of none."""
    same = places(ids)["duplicate token"]
    again = torch.zeros(ids.shape[1], dtype=torch.bool)
    again[1:] = (same[1:, 1:] & same[:-1, :-1]).any(1)
    pieces = torch.tensor(word or [-1] * ids.shape[1])
    merged = torch.zeros_like(again)
    merged[1:] = (pieces[1:] == pieces[:-1]) & (pieces[1:] >= 0)
    return torch.stack([same.any(1), again, torch.arange(ids.shape[1]) == 0, merged])


def auroc(values: Float[Tensor, "token neuron"], labels: Bool[Tensor, "label token"]) -> Float[Tensor, "neuron label"]:
    """The chance that a token with the label has a larger value than one without, ties half; 0.5 where none is either.

    (sum of the ranks of those with it - n (n + 1) / 2) / (n m), equal values of equal rank.
    """
    ordered, order = values.T.contiguous().sort(1)
    at, new = torch.arange(len(values)), torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    below = torch.where(new, at, 0).cummax(1).values
    upto = torch.where(new.roll(-1, 1), at + 1, len(values)).flip(1).cummin(1).values.flip(1)
    ranks = torch.empty(ordered.shape, dtype=torch.double).scatter_(1, order, (below + upto + 1).double() / 2)
    signs = labels.double()
    count = signs.sum(1)
    pairs = count * (signs.shape[1] - count)
    found = (ranks @ signs.T - count * (count + 1) / 2) / pairs.clamp(min=1)
    return torch.where(pairs > 0, found, 0.5)
