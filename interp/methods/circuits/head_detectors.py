from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int

from interp import Unsuitable
from interp.method import Paper, lens
from interp.model import LanguageModel
from interp.results import Table
from interp.samples import Prompt
from interp.sites import Site

PAPER = Paper(
    "Olsson, Catherine and Elhage, Nelson and Nanda, Neel and Joseph, Nicholas and DasSarma, Nova and "
    "Henighan, Tom and Mann, Ben and others",
    "In-context Learning and Induction Heads",
    2022,
    "arXiv",
    "https://arxiv.org/abs/2209.11895",
)
COLUMNS = ("previous token", "duplicate token", "induction", "subword merge", "first token")
UNIFORM = "uniform attention"
CELLS = 2**26
"""The largest number of attention weights, over all layers and heads, that are looked at."""
REPEATED = 24
"""How many random tokens are repeated."""


def no_pattern(model: Any) -> str | None:
    """The reason why a model's attention can't be seen, or None."""
    return model.refuses(Site("pattern", 0))


@lens("Head detectors", PAPER, needs=no_pattern, cost=lambda model, **_: (1, 0))
def head_detectors(
    model: LanguageModel,
    sample: Prompt,
    *,
    on: Literal["random repeats", "this prompt"] = "random repeats",
    seed: int = 0,
) -> Table:
    """Score every head by how much it looks where a known kind of head looks.

        score_h = mean over t in T of sum over j in S(t) of p_h,tj,    T = {t : S(t) not empty}
        previous token:  S(t) = {t - 1}            duplicate token:  S(t) = {j < t : x_j = x_t}
        induction:  S(t) = {0 < j < t : x_(j-1) = x_t}        first token:  S(t) = {0}, t > 0
        subword merge:  S(t) = {j < t : j is an earlier piece of the word of t}

    x are tokens. Random repeats are tokens drawn from the vocabulary, then the same again: nothing but the repetition
    can be known of them, and an induction head looks one behind the last time. Pieces of words are always those of the
    prompt. A last row has the scores of a head that looks everywhere alike, p_tj = 1 / (t + 1).

    Args:
        on: Repeated random tokens, or the tokens of the prompt.
        seed: Which random tokens.

    Returns:
        Table, a row per head, in attention from 0 to 1; 0 where a pattern can't occur, of which the note speaks. Of a
        layer that is repeated the last time counts; one that is skipped looks nowhere.

    Raises:
        Unsuitable: a prompt so long that its patterns would fill the memory.

    Assumes:
        That where a head looks says what it does.

    Misleads:
        A head can look there and write nothing, or do so on random tokens only. A head that rests on the first token
        when it has nothing to do scores low where it has seldom something to do.
    """
    prompt = model.inputs(sample)
    if model.layers * model.parts.heads * prompt.shape[1] ** 2 > CELLS:
        most = int((CELLS / model.layers / model.parts.heads) ** 0.5)
        raise Unsuitable(
            f"The prompt has {prompt.shape[1]} tokens; the patterns of {model.name} can be seen up to {most}."
        )
    runs = [prompt]
    if on == "random repeats":
        runs.append(random_repeats(model, prompt, seed))
    masks = {
        **{name: (len(runs) - 1, mask) for name, mask in places(runs[-1]).items()},
        "subword merge": (0, same_word(model, sample)),
    }
    used = sorted({run for run, _ in masks.values()})
    patterns = {run: look(model, runs[run]) for run in used}
    rows = [f"L{layer}H{head}" for layer in range(model.layers) for head in range(model.parts.heads)]
    values = np.zeros((len(rows) + 1, len(COLUMNS)))
    for column, name in enumerate(COLUMNS):
        run, mask = masks[name]
        can = mask.any(1)
        if not bool(can.any()):
            continue
        masses = (patterns[run] * mask).sum(-1)[:, can].mean(-1)
        uniform = (mask.sum(1) / torch.arange(1, len(mask) + 1))[can].double().mean()
        values[:, column] = [*masses.tolist(), float(uniform)]
    absent = [name for name in COLUMNS if not bool(masks[name][1].any())]
    note = f"Can't occur here: {', '.join(absent)}." if absent else ""
    return Table((*rows, UNIFORM), COLUMNS, values, "attention", note=note)


def random_repeats(model: LanguageModel, prompt: Int[torch.Tensor, "1 token"], seed: int) -> Int[torch.Tensor, "1 t"]:
    """Tokens drawn from the vocabulary, each once, then all again, behind the special token that prompts begin with."""
    generator = torch.Generator().manual_seed(seed)
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    ordinary = torch.tensor(
        [each for each in range(min(len(model.tokenizer), model.config.vocab_size)) if each not in special]
    )
    begin = prompt[0, :1] if int(prompt[0, 0]) in special else prompt[0, :0]
    count = min(REPEATED, len(ordinary), (model.limit - len(begin)) // 2)
    drawn = ordinary[torch.randperm(len(ordinary), generator=generator)[:count]].to(prompt)
    return torch.cat([begin, drawn, drawn])[None]


def look(model: LanguageModel, ids: Int[torch.Tensor, "1 token"]) -> torch.Tensor:
    """Every head's pattern [head of all layers, query, key]; of a repeated layer the last, zero where it is skipped."""
    sites = [Site("pattern", layer) for layer in range(model.layers)]

    def run() -> tuple[torch.Tensor, ...]:
        with torch.no_grad(), model.record(sites, every=True) as found:
            model(ids, keep=1)
        none = torch.zeros(model.parts.heads, ids.shape[1], ids.shape[1])
        return tuple(found[site][-1][0].float().cpu() if found[site] else none for site in sites)

    key = ("patterns", tuple(ids[0].tolist()))
    return torch.cat(model.cached(key, run)).double()


def places(ids: Int[torch.Tensor, "1 token"]) -> dict[str, Bool[torch.Tensor, "query key"]]:
    """Where each kind of head looks, from the tokens alone."""
    tokens = ids[0].cpu()
    count = len(tokens)
    before = torch.ones(count, count, dtype=torch.bool).tril(-1)
    same = tokens[:, None] == tokens
    after = torch.zeros_like(before)
    after[:, 1:] = same[:, :-1]
    first = torch.zeros_like(before)
    first[1:, 0] = True
    return {
        "previous token": torch.eye(count).roll(-1, 1).bool() & before,
        "duplicate token": same & before,
        "induction": after & before,
        "first token": first,
    }


def same_word(model: LanguageModel, sample: Prompt) -> Bool[torch.Tensor, "query key"]:
    """Which earlier tokens are pieces of the same word: letters and digits that nothing parts."""
    texts = model.tokens(sample.text)
    word = torch.tensor(words(texts))
    return ((word[:, None] == word) & (word >= 0)).tril(-1)


def words(texts: list[str]) -> list[int]:
    """The number of the word that each token is a piece of; -1 where it holds no letter or digit."""
    found, number, open_ = [], -1, False
    for text in texts:
        inside = [each.isalnum() for each in text]
        if not any(inside):
            found.append(-1)
            open_ = open_ and not text  # an empty text is a byte of a character that is still to come
            continue
        if not (open_ and inside[0]):
            number += 1
        found.append(number)
        open_ = inside[-1]
    return found
