from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import Unsuitable, progress
from interp.method import Paper, Range, SAEName, Unset, lens
from interp.methods.features._saes import open_sae
from interp.model import LanguageModel
from interp.results import Table
from interp.sae import SAE
from interp.samples import TextSet

PAPER = Paper(
    "Ma, Da and Shang, Gonghu and Chen, Zhi and Qin, Libo and Luo, Yijie and Pan, Lei and Fan, Shuai and Chen, Lu and "
    "Yu, Kai",
    "Task-Specific Data Selection for Instruction Tuning via Monosemantic Neuronal Activations",
    2025,
    "arXiv",
    "https://arxiv.org/abs/2503.15573",
)
BATCH = 16
"""How many texts run together; it changes no result beyond rounding."""


@lens(
    "MoNA",
    PAPER,
    cost=lambda model, task, sample=None, **_: (
        len(getattr(sample, "texts", range(100))) + (len(task.texts) if task else 0),
        0,
    ),
)
def mona(
    model: LanguageModel,
    sample: TextSet,
    *,
    task: Annotated[TextSet | None, Unset("the first text of the set")] = None,
    sae: Annotated[str, SAEName()] = "",
    k: Annotated[int, Range(1, 4096)] = 192,
    keep: Annotated[float, Range(0.001, 1)] = 0.05,
) -> Table:
    """Rank the texts of a set by how much they use the features that the texts of a task use.

        z = 1/T sum_t top_k(f(t)),     z_task = mean over the task's texts of z
        J(z, z_task) = sum_i min(z_i, z_task,i) / sum_i max(z_i, z_task,i),     0 / 0 = 0

    Features that fire negatively (abstopk) count by their magnitude. Special tokens are left out.

    Args:
        task: Texts like those wanted; the first text of the set unless given.
        sae: The SAE or transcoder; the model's own past the middle unless given.
        k: How many activations of each token are kept; where fewer features fire, all of them.
        keep: The share of the set that is kept.

    Returns:
        Table, the nearest text first: its similarity from 0 to 1, its number in the set, and 1 where it is kept.

    Raises:
        Unsuitable: no texts, or none with a token.

    Assumes:
        That what the model makes of a text, in mean over its tokens, tells what training on it would do.

    Misleads:
        Texts that are near in form (lists, questions) are near here, whether or not they teach the task. A task of few
        texts is a task about their words.
    """
    found = open_sae(model, sae)
    wanted = task.texts if task is not None else sample.texts[:1]
    if not sample.texts or not wanted:
        raise Unsuitable("There is nothing to rank; give texts, and texts of the task.")
    texts = list(dict.fromkeys((*sample.texts, *wanted)))
    means = dict(zip(texts, profiles(model, found, texts, k), strict=True))
    pool = np.stack([means[each] for each in sample.texts])
    values = jaccard(pool, np.mean([means[each] for each in wanted], 0))
    order = np.argsort(-values, kind="stable")
    count = max(1, round(keep * len(order)))
    kept = np.arange(len(order)) < count
    return Table(
        tuple(sample.texts[each] for each in order), ("similarity", "number", "kept"),
        np.stack([values[order], order, kept], 1).astype(float),
        note=f"{count:,} of {len(order):,} texts are kept, those from {values[order[count - 1]]:.3f} on.",
    )  # fmt: skip


def jaccard(z: Float[np.ndarray, "text d_sae"], other: Float[np.ndarray, d_sae]) -> Float[np.ndarray, text]:
    """J(z, other) of each row: the sum of the smaller values over that of the larger ones; 0 where both are 0."""
    most = np.maximum(z, other).sum(1)
    return np.divide(np.minimum(z, other).sum(1), most, out=np.zeros(len(z)), where=most > 0)


def profiles(model: LanguageModel, found: SAE, texts: list[str], k: int) -> Float[np.ndarray, "text d_sae"]:
    """z of every text: the mean over its tokens of the k largest activations of each."""
    special = torch.tensor(sorted(set(getattr(model.tokenizer, "all_special_ids", ()))), device=model.device)
    site = model.resolve(found.site)
    order = sorted(range(len(texts)), key=lambda each: len(texts[each]))
    out = np.zeros((len(texts), found.d_sae))
    for first in progress.track(range(0, len(order), BATCH), "reading the texts"):
        some = order[first : first + BATCH]
        ids = model.inputs([texts[each] for each in some], cut=True)
        with torch.no_grad(), model.record([site], every=True) as seen:
            model(ids, keep=1)
            if not seen[site]:
                continue
            x = found.rows(seen[site][-1], model)
            counts = (ids >= 0) & ~torch.isin(ids, special)
            for row, number in enumerate(some):
                out[number] = _profile(found, x[row][counts[row]], k)
    return out


def _profile(found: SAE, x: Float[Tensor, "token d_in"], k: int) -> np.ndarray:
    if not len(x):
        return np.zeros(found.d_sae)
    f = found.encode(x).abs()
    if k < found.d_sae:
        values, at = f.topk(k, dim=1)
        f = torch.zeros_like(f).scatter(1, at, values)
    return f.double().mean(0).cpu().numpy()
