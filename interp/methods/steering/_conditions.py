"""Conditions of steering: how like a prompt is to a direction, the threshold that tells examples apart, and rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp import Unsuitable, directions, progress
from interp.directions import Direction
from interp.method import Paper
from interp.methods.steering._contrast import BATCH, FOLDS, Make, Streams
from interp.model import LanguageModel
from interp.sites import Site

CAST = Paper(
    "Lee, Bruce W. and Padhi, Inkit and Ramamurthy, Karthikeyan Natesan and Miehling, Erik and Dognin, Pierre and "
    "Nagireddy, Manish and Dhurandhar, Amit",
    "Programming Refusal with Conditional Activation Steering",
    2025,
    "ICLR",
    "https://arxiv.org/abs/2409.05907",
)
Similarity = Literal["cosine of tanh", "projection"]
Fires = Literal["as fitted", "above", "below"]
LONGEST = 400
"""Characters of a rule."""
_NAMED = re.compile(
    r"(?P<name>[a-z0-9_-]{1,40}/[a-z0-9_.-]{1,60}|\b[0-9a-f]{64}\b)(@(?P<layer>\d{1,3}))?"
    r"(\s*(?P<side>[<>])\s*(?P<threshold>-?\d{1,9}(\.\d{1,12})?))?"
)
_THIS = re.compile(r"\bthis\b")
Array = np.ndarray


# ---------------------------------------------------------------------------------------------------------- similarity


def similarity(h: Float[Tensor, "*batch d"], c: Float[Tensor, "*#batch d"], kind: str) -> Float[Tensor, "*batch"]:
    """How like the mean stream of a prompt is to a condition vector c, float64.

    cosine of tanh: cos(h, tanh(p)), p = c <c, h> / <c, c>, which is the same for c and -c; projection: <c, h> / <c, c>.
    """
    h, c = h.double(), c.double()
    along = (h * c).sum(-1) / c.square().sum(-1).clamp(min=1e-30)
    if kind == "projection":
        return along
    return torch.nn.functional.cosine_similarity(h, torch.tanh(along.unsqueeze(-1) * c), dim=-1)


def mean_of(h: Float[Tensor, "batch position d"], counts: Bool[Tensor, "#batch position"]) -> Float[Tensor, "batch d"]:
    """The mean over the tokens that count, float32; what stands at the others may be anything."""
    chosen = counts.unsqueeze(-1)
    return torch.where(chosen, h.float(), 0.0).sum(1) / chosen.sum(1).clamp(min=1)


def last_of(counts: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch position"]:
    """Of the tokens that count, the last of each row."""
    return counts & (counts.flip(1).cumsum(1).flip(1) == 1)


def prompt_means(
    model: LanguageModel, texts: Sequence[str], layers: Sequence[int], last: bool = False
) -> Float[Tensor, "text layer d"]:
    """The mean (last) stream of each text after these layers, as the interventions in force leave it, on the CPU."""
    sites = [Site("resid_post", layer) for layer in layers]
    special = torch.tensor(sorted(model.tokenizer.all_special_ids), dtype=torch.long, device=model.device)

    def read() -> Tensor:
        out: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda each: len(texts[each]))
        for some in progress.track([order[at : at + BATCH] for at in range(0, len(order), BATCH)], "reading examples"):
            ids = model.inputs([texts[each] for each in some], cut=True)
            with torch.no_grad(), model.record(sites, every=True) as found:
                model(ids, keep=1)
            counts = last_of(ids >= 0) if last else counted(ids >= 0, torch.isin(ids, special))
            means = torch.stack([mean_of(found[site][-1], counts) for site in sites], 1).cpu()
            for number, each in zip(some, means, strict=True):
                out[number] = each
        return torch.stack(out)

    return model.cached(("mean streams", tuple(texts), tuple(layers), last), read)


def counted(known: Bool[Tensor, "batch position"], special: Bool[Tensor, "batch position"]) -> Bool[Tensor, ...]:
    """Which tokens stand for a prompt: those that are known (no padding) and not special, all known where none is."""
    plain = known & ~special
    return torch.where(plain.any(1, keepdim=True), plain, known)


# ---------------------------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Told:
    """How many examples a threshold tells right and wrong; firing is being told positive."""

    hits: Array
    false_alarms: Array
    misses: Array
    rejections: Array

    @property
    def precision(self) -> Array:
        """The share of those it fires on that are positive; 0 where it never fires."""
        return self.hits / np.maximum(self.hits + self.false_alarms, 1)

    @property
    def recall(self) -> Array:
        """The share of the positive ones that it fires on."""
        return self.hits / np.maximum(self.hits + self.misses, 1)

    @property
    def f1(self) -> Array:
        """2 hits / (2 hits + false alarms + misses); 0 where it tells nothing right."""
        return 2 * self.hits / np.maximum(2 * self.hits + self.false_alarms + self.misses, 1)


def told(positive: Float[Array, p], negative: Float[Array, n], threshold: Float[Array, "*t"], above: bool) -> Told:
    """What firing strictly above (or below) each threshold makes of examples of these similarities."""
    at = np.asarray(threshold, float)[..., None]
    hits, alarms = (((each > at) if above else (each < at)).sum(-1) for each in (positive, negative))
    return Told(hits, alarms, len(positive) - hits, len(negative) - alarms)


def threshold_of(positive: Float[Array, p], negative: Float[Array, n]) -> tuple[float, bool, float]:
    """The threshold that tells examples apart with the largest F1, whether to fire above it, and that F1.

    Every way to cut the examples in two is tried; a threshold lies in the middle between two similarities, of equally
    good ones where they are farthest apart.
    """
    values = np.unique(np.concatenate([positive, negative]))
    if len(values) < 2:
        return float(values[0]), True, 0.0
    cuts, gaps = (values[1:] + values[:-1]) / 2, np.diff(values)

    def best(above: bool) -> tuple[float, float, bool, float]:
        f1 = told(positive, negative, cuts, above).f1
        at = np.lexsort((gaps, f1))[-1]
        return float(f1[at]), float(gaps[at]), above, float(cuts[at])

    f1, _, above, cut = max(best(True), best(False))
    return cut, above, f1


def judged_conditions(make: Make, kind: str, seed: int) -> Callable[[Streams, Streams], Mapping[str, Array]]:
    """Facts of a condition vector at every layer: "threshold", "fires above" (1 or 0), and "f1".

    Threshold and side are those of all examples. F1 is of held-out ones: vector, threshold and side come from the other
    folds, and hits, false alarms and misses of all folds are added up; NaN with fewer than two examples a side.
    """

    def facts(positive: Streams, negative: Streams) -> Mapping[str, Array]:
        def scores(c: Tensor, *sides: Streams) -> list[Array]:
            return [similarity(each, c.to(each), kind).T.cpu().numpy() for each in sides]  # [layer, example]

        whole = scores(make(positive, negative), positive, negative)
        chosen = [threshold_of(p, n) for p, n in zip(*whole, strict=True)]
        f1 = np.full(len(chosen), np.nan)
        folds = min(FOLDS, len(positive), len(negative))
        if folds >= 2:
            generator = np.random.default_rng(seed)
            parts = [generator.permutation(len(each)) % folds for each in (positive, negative)]
            if len(positive) == len(negative):  # pairs stay pairs
                parts[1] = parts[0]
            sums = np.zeros((3, len(chosen)))
            for fold in range(folds):
                kept, held = (
                    [
                        each[torch.from_numpy((part == fold) == out)]
                        for each, part in zip((positive, negative), parts, strict=True)
                    ]
                    for out in (False, True)
                )
                c = make(*kept)
                cuts = [threshold_of(p, n)[:2] for p, n in zip(*scores(c, *kept), strict=True)]
                for layer, (p, n) in enumerate(zip(*scores(c, *held), strict=True)):
                    one = told(p, n, np.array(cuts[layer][0]), cuts[layer][1])
                    sums[:, layer] += one.hits, one.false_alarms, one.misses
            f1 = 2 * sums[0] / np.maximum(2 * sums[0] + sums[1] + sums[2], 1)
        return {
            "threshold": np.array([each[0] for each in chosen]),
            "fires above": np.array([float(each[1]) for each in chosen]),
            "f1": f1,
        }

    return facts


# ---------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """A vector after a layer, and the side of a threshold on which a prompt meets the condition.

    kind: the similarity. last: whether a prompt is judged at its last token rather than by the mean of all.
    """

    vector: Float[Tensor, d]
    layer: int
    threshold: float
    above: bool
    kind: str
    last: bool = False

    def met(self, h: Float[Tensor, "batch d"]) -> Bool[Tensor, batch]:
        """Which prompts of these mean streams meet it."""
        s = similarity(h, self.vector.to(h.device), self.kind)
        return s > self.threshold if self.above else s < self.threshold


def opened(model: LanguageModel, name: str) -> Direction:
    """The direction of that name; where none is named, the model's first that was fitted as a condition, or its first.

    Raises:
        Missing: it is not here. Unsuitable: it does not fit, or there is none.
    """
    fitted = [] if name else [each for each in directions.available(model) if "threshold" in each.facts]
    return directions.load(fitted[0].key if fitted else name, model)


def kind_of(direction: Direction) -> str:
    """How likeness to it is measured."""
    return str(direction.about.get("similarity", "cosine of tanh"))


def at_last(direction: Direction) -> bool:
    """Whether prompts are judged at their last token: where a condition vector was fitted there."""
    return "threshold" in direction.facts and direction.about.get("token") == "last"


def best_layer(direction: Direction, last: int) -> int:
    """The layer up to `last` where it tells best: as `Direction.best` does.

    Raises:
        Unsuitable: it is known after later layers only.
    """
    layers = [each for each in direction.layers if each <= last]
    if not layers:
        raise Unsuitable(
            f"{direction.name} is known from layer {direction.layers[0]} on, above the layer that is steered "
            f"({last}); steer a later layer, or choose another condition."
        )
    for which in ("f1", "accuracy"):
        known = [direction.fact(which, each) for each in layers]
        if not np.isnan(known).all():
            return layers[int(np.nanargmax(known))]
    return layers[len(layers) // 2]


def condition_of(
    model: LanguageModel, name: str, layer: int | None, threshold: float | None, fires: Fires, last: int
) -> Condition:
    """A condition that can be told before what leaves layer `last` is changed.

    Raises:
        Unsuitable: it lies above that layer, or has no threshold.
    """
    found = opened(model, name)
    at = best_layer(found, last) if layer is None else layer
    if at > last:
        raise Unsuitable(
            f"The condition is read after layer {at} and the stream changed after layer {last}, before that is known; "
            f"read it after layer {last} or an earlier one, or steer a later layer."
        )
    vector = found.at(at)
    level = found.fact("threshold", at) if threshold is None else threshold
    if np.isnan(level):
        raise Unsuitable(
            f"{found.name} was not fitted as a condition, so it has no threshold; give one, or make a condition vector."
        )
    above = found.fact("fires above", at) != 0 if fires == "as fitted" else fires == "above"
    return Condition(vector, at, level, above, kind_of(found), at_last(found))


Rule = Callable[[Sequence[Tensor]], Bool[Tensor, "batch"]]
Named = Callable[[str, int | None, float | None, Fires], Condition]


def rule_of(text: str, this: Callable[[], Condition], named: Named) -> tuple[list[Condition], Rule]:
    """Read a rule: the conditions it names, and what makes of each one's answer that of the whole.

    Conditions are joined by and, or, not and brackets, `not` before `and` before `or`. One is `this`, or a direction's
    name, with @LAYER where it is not to be the layer that tells best, and with > or < and a number where it is not to
    be the fitted threshold.

    Raises:
        Unsuitable: it can't be read.
    """
    wrong = Unsuitable(
        'A rule joins conditions by and, or, not and brackets, as "this and not stories/topic@1 > 0.4" does; '
        "write it like that."
    )
    found: list[Condition] = []
    places: dict[Any, int] = {}

    def place(key: Any, make: Callable[[], Condition]) -> str:
        if key not in places:
            places[key] = len(found)
            found.append(make())
        return f" c{places[key]} "

    def put(match: re.Match[str]) -> str:
        name, layer, side, threshold = (match[each] for each in ("name", "layer", "side", "threshold"))
        fires: Fires = "as fitted" if side is None else "above" if side == ">" else "below"
        at, level = None if layer is None else int(layer), None if threshold is None else float(threshold)
        return place((name, at, level, fires), lambda: named(name, at, level, fires))

    joined = r"([()\s]|\b(and|or|not)\b)*"
    if len(text) > LONGEST or not re.fullmatch(joined, _THIS.sub(" ", _NAMED.sub(" ", text))):
        raise wrong
    plain = _THIS.sub(lambda _: place("this", this), _NAMED.sub(put, text))
    try:
        tree = ast.parse(" ".join(plain.split()), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise wrong from None

    def holds(node: ast.expr, met: Sequence[Tensor]) -> Tensor:
        match node:
            case ast.BoolOp(op, values):
                join = torch.logical_and if isinstance(op, ast.And) else torch.logical_or
                return reduce(join, (holds(each, met) for each in values))
            case ast.UnaryOp(ast.Not(), inner):
                return ~holds(inner, met)
            case ast.Name(name):
                return met[int(name[1:])]
        raise wrong

    holds(tree, [torch.zeros(1, dtype=torch.bool)] * len(found))  # c0(c1) is a call, and no rule
    return found, lambda met: holds(tree, met)
