"""What the lenses of features share: the SAE and its index, what it reads on a sample, and names for its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import Missing, Unsuitable, feature_index, hooks, sae
from interp._index_close import _unembedding as reads_outputs
from interp.feature_index import Index
from interp.method import Paper
from interp.methods.reading._prompts import chosen
from interp.model import LanguageModel, Model, VisionModel, gradient
from interp.results import FeatureList
from interp.sae import SAE
from interp.samples import Image, Prompt, Target
from interp.sites import HEADED

BRICKEN = Paper(
    "Bricken, Trenton and Templeton, Adly and Batson, Joshua and Chen, Brian and Jermyn, Adam and Conerly, Tom and "
    "others",
    "Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
    2023,
    "Transformer Circuits Thread",
    "https://transformer-circuits.pub/2023/monosemantic-features",
)
TEMPLETON = Paper(
    "Templeton, Adly and Conerly, Tom and Marcus, Jonathan and Lindsey, Jack and Bricken, Trenton and Chen, Brian and "
    "others",
    "Scaling Monosemanticity: Extracting Interpretable Features from Claude 3 Sonnet",
    2024,
    "Transformer Circuits Thread",
    "https://transformer-circuits.pub/2024/scaling-monosemanticity",
)
LABEL = 4
"""Promoted tokens that stand for a feature."""


def open_sae(model: Model, name: str) -> SAE:
    """The SAE of that name, the model's own for none, on its device and seen to fit it."""
    found = sae.load(name or sae.first(model), model.device)
    with hooks.alone():  # whether it fits depends on no intervention
        found.check(model)
    return found


def open_index(model: Model, found: SAE, key: str = "") -> Index | None:
    """The index of that key, or the one there is, or None.

    Raises:
        Missing: an index is named that is not here.
    """
    index = feature_index.find(model, found, key)
    if index is None:
        if key:
            raise Missing("This is about an index that is not kept here; build it on the Features page.")
        return None
    return _opened(index.path, index.path.stat().st_mtime_ns)


@lru_cache(8)
def _opened(path: Path, _: int) -> Index:
    """The same one again, with what was read of it."""
    return Index(path)


def need_index(model: Model, found: SAE, key: str = "") -> Index:
    """`open_index`, where nothing can be said without one."""
    index = open_index(model, found, key)
    if index is None:
        raise Unsuitable(f"{found.name} has no index yet; build one on the Features page, or by build_index.")
    return index


def feature_of(found: SAE, feature: int) -> int:
    """The feature's number, seen to be one."""
    if not 0 <= feature < found.d_sae:
        raise Unsuitable(f"{found.name} has features 0 to {found.d_sae - 1:,}, not {feature:,}.")
    return feature


# ------------------------------------------------------------------------------------------------- what an SAE reads


@dataclass(frozen=True)
class Seen:
    """What an SAE reads on a sample.

    rows: which rows of the activation count; x: [row, d_in], those. places: where each lies among the sample's tokens
    or patches, which have `shape`: (token,) or (height, width).
    """

    sae: SAE
    rows: Int[Tensor, row]
    x: Float[Tensor, "row d_in"]
    places: Int[np.ndarray, row]
    shape: tuple[int, ...]
    reached: bool = True

    def encode(self) -> Float[Tensor, "row d_sae"]:
        """The activations; of a layer that is skipped nothing fires."""
        with torch.no_grad():
            f = self.sae.encode(self.x)
        return f if self.reached else torch.zeros_like(f)

    def grid(self, f: Float[Tensor, "row n"]) -> Float[np.ndarray, "n ..."]:
        """Activations at the sample's tokens or patches, zero at those that do not count."""
        whole = np.zeros((f.shape[1], int(np.prod(self.shape))))
        whole[:, self.places] = f.double().cpu().numpy().T
        return whole.reshape(-1, *self.shape)


def look(
    model: Model, sample: Prompt | Image, saes: Sequence[SAE], positions: Sequence[int] = ()
) -> tuple[list[Seen], Float[Tensor, choice]]:
    """What each SAE reads on a sample under the interventions in force, and the (last) logits.

    positions: the tokens, or patches row by row, that count; none for all but special tokens.

    Raises:
        Unsuitable: the sample is not of the model's kind, or has no such position.
    """
    fits(model, sample)
    sites = tuple(dict.fromkeys(model.resolve(each.site) for each in saes))

    def run() -> tuple[Any, ...]:
        with torch.no_grad(), model.record(sites, every=True) as found:
            logits = _logits(model, sample)
        # of a layer that is repeated the last pass counts
        return *(found[site][-1] if found[site] else None for site in sites), logits

    key = sample.text if isinstance(sample, Prompt) else sample.sha256
    *activations, logits = model.cached(("read by SAEs", key, sites), run)
    by_site = dict(zip(sites, activations, strict=True))
    return [_seen(model, sample, each, by_site[model.resolve(each.site)], positions) for each in saes], logits


def _logits(model: Any, sample: Any) -> Float[Tensor, choice]:
    return model(sample, keep=1)[0, -1] if isinstance(model, LanguageModel) else model(sample)[0]


def fits(model: Model, sample: object) -> None:
    """See that the sample is of the kind that the model looks at."""
    wanted = Prompt if isinstance(model, LanguageModel) else Image
    if not isinstance(sample, wanted):
        kind = "a prompt" if wanted is Prompt else "an image"
        raise Unsuitable(f"{model.name} looks at {kind}, not at this {type(sample).__name__.lower()}.")


def _seen(
    model: Model, sample: Prompt | Image, found: SAE, activation: Tensor | None, positions: Sequence[int]
) -> Seen:
    if isinstance(model, LanguageModel):
        ids = model.inputs(sample)[0].tolist()  # type: ignore[arg-type]
        special = set(getattr(model.tokenizer, "all_special_ids", ()))
        plain = [place for place, each in enumerate(ids) if each not in special] or list(range(len(ids)))
        at, shape, what = np.arange(len(ids)), (len(ids),), "tokens"
    else:
        if activation is None:
            raise Unsuitable(f"{found.site} is not reached under these interventions; choose another SAE.")
        numbers = _laid(model, found, activation)
        at, shape, what = numbers.ravel(), numbers.shape, "patches"
        plain = list(range(at.size))
    places = list(positions) or plain
    if wrong := [each for each in places if not 0 <= each < len(at)]:
        raise Unsuitable(f"The sample has {what} 0 to {len(at) - 1}, not {wrong[0]}.")
    rows = torch.as_tensor(at[places], device=found.W_dec.device)
    if activation is None:
        x = torch.zeros(len(rows), found.d_in, device=rows.device)
    else:
        x = found.rows(activation, model).flatten(0, 1)[rows]
    return Seen(found, rows, x, np.array(places), tuple(shape), activation is not None)


def _laid(model: Any, found: SAE, activation: Tensor) -> Int[np.ndarray, "height width"]:
    """Where each patch lies among the rows of an image's activation."""
    count = int(np.prod(found.rows(activation, model).shape[:2]))
    if activation.dim() == 4 and model.resolve(found.site).kind not in HEADED:
        return np.arange(count).reshape(activation.shape[2:])
    try:
        maps = model.grid(found.site)(torch.arange(count, dtype=torch.float64).view(1, -1, 1))
    except Unsuitable:  # no map: a row of its own
        return np.arange(count)[None]
    return maps[0, 0].long().numpy()


@dataclass(frozen=True)
class Attributed:
    """How a metric's slope on what an SAE reconstructs is shared: sum of `parts` + bias + error = whole."""

    parts: Float[Tensor, "row d_sae"]
    bias: float
    error: float
    whole: float


def attribute(
    model: Model, sample: Prompt | Image, seen: Sequence[Seen], metric: Callable[[Tensor], Tensor]
) -> list[Attributed]:
    """Attribution of features to a metric of the (last) logits [choice], the SAEs in place with their errors kept.

        a_i(t) = f_i(t) <d x_hat(t)/d f_i, g(t)>,     g(t) = d metric / d x(t)
        sum_ti a_i(t) + sum_t <x_hat(f = 0), g(t)> + sum_t <x(t) - x_hat(t), g(t)> = sum_t <x(t), g(t)>

    x is the activation at the SAE's target; since the error is kept, it is x_hat + error and has one gradient.
    """
    sites = tuple(dict.fromkeys(model.resolve(each.sae.target) for each in seen if each.reached))
    with torch.enable_grad(), model.record(sites, grad=True, every=True) as found:
        score = metric(_logits(model, sample))
    reached = {site: found[site][-1] for site in sites if found[site]}
    slopes = dict(zip(reached, gradient(score, list(reached.values()), loose=True), strict=True)) if reached else {}
    out = []
    for each in seen:
        target, one = model.resolve(each.sae.target), each.sae
        f = each.encode()
        parts = torch.zeros_like(f, dtype=torch.float64)
        if target not in slopes or not each.reached:
            out.append(Attributed(parts, 0.0, 0.0, 0.0))
            continue
        g, y = (
            one.rows(value.detach(), model, target).flatten(0, 1)[each.rows].double()
            for value in (slopes[target], reached[target])
        )
        with torch.no_grad():
            for row, (active, slope) in enumerate(zip(f, g, strict=True)):
                features = active.nonzero()[:, 0]
                rows = one.directions(each.x[row], features).double()
                parts[row, features] = active[features].double() * (rows @ slope)
            empty, whole = (one.decode(value, each.x).double() for value in (torch.zeros_like(f), f))
        out.append(
            Attributed(parts, float((empty * g).sum()), float(((y - whole) * g).sum()), float((y * g).sum()))
        )  # fmt: skip
    return out


def metric_of(
    model: Any, target: Target, foil: Target, logits: Float[Tensor, choice]
) -> tuple[Callable[[Tensor], Tensor], str]:
    """The target's logit, less the foil's where one is given, and its name."""
    if isinstance(model, VisionModel):
        index = model.class_index(target, logits[None])
        other = None if foil.name is None else model.class_index(foil)
        name = model.labels[index] + ("" if other is None else f" over {model.labels[other]}")
        if other == index:
            raise Unsuitable("Target and foil are the same class; choose two.")
    else:
        index, other, name = chosen(model, target, foil, logits)
    return lambda each: each[index] - (each[other] if other is not None else 0.0), name


# --------------------------------------------------------------------------------------------------- names of features


def readout(model: Model, found: SAE) -> tuple[Float[Tensor, "feature d"], Float[Tensor, "output d"]] | None:
    """Decoder rows and what reads outputs off them, less the mean of all outputs; None where none can."""
    with torch.no_grad():
        read = reads_outputs(model, found)
        return None if read is None else (read[0], read[1] - read[1].mean(0))


def words(model: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens, or classes, by their numbers."""
    return tuple(
        model.labels[each] if isinstance(model, VisionModel) else model.token_text(each) for each in map(int, ids)
    )


def labels(model: Model, found: SAE, index: Index | None, features: Sequence[int]) -> tuple[str, ...]:
    """For each feature what it promotes most; empty where nothing can be said."""
    at = np.asarray(features, int)
    if index is not None and hasattr(index, "promoted_ids"):
        rows = index.promoted_ids[at][:, :LABEL]
    elif (read := readout(model, found)) is not None:
        directions, outputs = read
        rows = (directions[at] @ outputs.T).topk(min(LABEL, len(outputs))).indices.cpu().numpy()
    else:
        return ("",) * len(at)
    texts = dict(zip(map(int, np.unique(rows)), words(model, np.unique(rows).tolist()), strict=True))
    return tuple(" ".join(texts[int(each)].strip() or repr(texts[int(each)]) for each in row) for row in rows)


def listed(
    model: Any,
    picked: Sequence[tuple[SAE, int]],
    values: np.ndarray,
    units: str,
    indexes: dict[str, Index | None],
    *,
    tokens: Sequence[str] = (),
    grid: np.ndarray | None = None,
    reasons: Sequence[str] = (),
    **facts: Any,
) -> FeatureList:
    """The features of `picked`, best first, with all that their indexes know of them."""
    density, maximum, examples, marks, names = [], [], [], [], dict[tuple[str, int], str]()
    for found in dict.fromkeys(found for found, _ in picked):
        own = [feature for other, feature in picked if other is found]
        named = zip(own, labels(model, found, indexes[found.name], own), strict=True)
        names |= {(found.name, feature): label for feature, label in named}
    for found, feature in picked:
        index = indexes[found.name]
        density.append(np.nan if index is None else float(index.density[feature]))
        maximum.append(np.nan if index is None else float(index.maximum[feature]))
        example, mark = best_context(model, index, feature)
        examples.append(example)
        marks.append(mark)
    return FeatureList(
        np.array([feature for _, feature in picked], int), np.asarray(values, float),
        tuple(names[found.name, feature] for found, feature in picked), units,
        tuple(found.name for found, _ in picked), tuple(tokens), np.zeros((0, 0)) if grid is None else grid,
        np.array(density), np.array(maximum), tuple(examples), np.array(marks, int), tuple(reasons), **facts,
    )  # fmt: skip


def best_context(model: Model, index: Index | None, feature: int) -> tuple[tuple[str, ...], int]:
    """The tokens of the context where it fires most, and which of them fired; none of a dead feature or on images."""
    top = index.page(feature, model).top if index is not None else ()
    return (top[0].tokens, top[0].at) if top and top[0].tokens else ((), 0)


def shown_tokens(model: Any, sample: Prompt | Image) -> tuple[str, ...]:
    """The tokens of a prompt; none for an image."""
    return tuple(model.tokens(sample.text)) if isinstance(sample, Prompt) else ()


def best(values: np.ndarray, top: int) -> np.ndarray:
    """The numbers of the largest values above zero, largest first, earlier ones first among equals."""
    order = np.argsort(-values, kind="stable")[:top]
    return order[values[order] > 0]
