"""How well a linear map does on data it has not seen: transport, its ceiling, their ratio, a null and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCKS = 40
"""Groups of documents that the bootstrap draws from."""
PERMUTATIONS = 10
"""Ways of pairing rows wrongly that the null is taken from."""
ROUNDS = 1000
CONFIDENCE = 0.95
Array = np.ndarray


@dataclass(frozen=True)
class Efficiency:
    """What is transported, of what could be; each (value, low, high) of a 95 % interval.

        c_i = (r_i^2 - s_i^2) / (1 - s_i^2)                    r_i: held-out correlation of canonical pair i
        ceiling(r) = sum_{i <= r} c_i / d,                     s_i^2: the mean of r_i^2 where rows are paired wrongly
        transported = 1 - E |W (y - T x)|^2 / E |W (y - mean)|^2,      W whitens y on the fitting data
        efficiency = transported / max(ceiling, null)          null: what a ceiling of zero reaches in 1 of 20 cases
                     anything from 0 to 1 where the ceiling's interval holds 0
        size = #{i : |atanh r_i| > z s_i},                     z: one of d pairs without a relation in 100 cases

    curve: [rank, 3], efficiency, transported and ceiling of the map of rank 1 ... d by reduced-rank regression.
    participation: (sum r_i)^2 / sum r_i^2 over those that count for the size.
    """

    efficiency: tuple[float, float, float]
    transported: tuple[float, float, float]
    ceiling: tuple[float, float, float]
    size: tuple[float, float, float]
    null: float
    participation: float
    correlations: Float[Array, d]
    curve: Float[Array, "d 3"]


class HeldOut:
    """Sums over held-out rows in the canonical coordinates of one pair, by block of documents.

    sums: [block, 7, i] of x, y, x^2, y^2, x y, (y - T x)^2 and 1, all about the means of the fitting data; null:
    [permutation, i] of x(t) y(t') with t' far from t, and of how many.
    """

    def __init__(self, kept: int) -> None:
        self.sums = torch.zeros(BLOCKS, 7, kept, dtype=torch.float64)
        self.null = torch.zeros(PERMUTATIONS, kept, dtype=torch.float64)

    def add(
        self,
        x: Float[Tensor, "row kept"],
        y: Float[Tensor, "row kept"],
        predicted: Float[Tensor, "row kept"],
        member: Float[Tensor, "block row"],
        offsets: Int[Array, permutation],
    ) -> None:
        """Take in rows. member: 1 where a row is of a block. offsets: how far rows are shifted for the null."""
        parts = (x, y, x * x, y * y, x * y, (y - predicted).square(), torch.ones_like(x))
        for number, part in enumerate(parts):
            self.sums[:, number] += (member @ part).double().cpu()
        for number, offset in enumerate(offsets.tolist()):
            self.null[number] += torch.einsum("tk,tk->k", x[offset:], y[: len(y) - offset]).double().cpu()
            self.null[number] += torch.einsum("tk,tk->k", x[:offset], y[len(y) - offset :]).double().cpu()

    def merge(self, other: HeldOut) -> None:
        """Take in what another has seen."""
        self.sums += other.sums
        self.null += other.null

    def state(self) -> dict[str, Array]:
        return {"sums": self.sums.numpy(), "null": self.null.numpy()}

    def load(self, state: Mapping[str, Array]) -> HeldOut:
        self.sums, self.null = torch.tensor(state["sums"]), torch.tensor(state["null"])
        return self

    def efficiency(self, rho: Float[Array, kept], seed: int = 0) -> Efficiency:
        """All numbers with their intervals: percentiles over resampled blocks, less the bootstrap's own bias.

        rho: the canonical correlations on the fitting data, one for each direction of y.
        """
        width = len(rho)
        sums = self.sums.numpy()
        whole = sums.sum(0)
        n = max(float(whole[6, 0]), 1.0)
        scale = np.sqrt(np.maximum(self._spread(whole, 0) * self._spread(whole, 1), 1e-300))
        wrong = (self.null.numpy() / n - whole[0] / n * whole[1] / n) / scale
        # of each pair its own spread, but not less than that of all: ten draws of one pair say little
        variance = np.minimum(np.maximum((wrong**2).mean(0), (wrong**2).mean()), 0.5)
        # the sum of independent squares is about normal
        null = float(1.645 * np.sqrt(2 * (variance**2).sum()) / width)
        threshold = float(_normal_quantile(1 - 0.01 / max(len(rho), 1) / 2))

        def numbers(total: Array) -> tuple[Array, Array, Array, Array]:
            """total [..., 7, i] -> r_i, c_i, what T leaves of i, what the reduced-rank map leaves of i."""
            count = np.maximum(total[..., 6, :], 1.0)
            x, y, xx, yy, xy, left = (total[..., part, :] / count for part in range(6))
            spread = np.maximum((xx - x * x) * (yy - y * y), 1e-300)
            r = np.clip((xy - x * y) / np.sqrt(spread), -1, 1)
            reduced = yy - 2 * rho * xy + rho**2 * xx
            return r, (r * r - variance) / (1 - variance), yy - left, yy - reduced

        def shares(total: Array) -> tuple[Array, Array, Array, Array]:
            r, c, gain, _ = numbers(total)
            yy = (total[..., 3, :] / np.maximum(total[..., 6, :], 1.0)).sum(-1)
            ceiling = c.sum(-1) / width
            transported = gain.sum(-1) / np.maximum(yy, 1e-300)
            size = (np.abs(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))) > threshold * np.sqrt(variance)).sum(-1)
            return transported / np.maximum(ceiling, null), transported, ceiling, size

        here = shares(whole)
        generator = np.random.default_rng(seed)
        filled = np.flatnonzero(sums[:, 6, 0] > 0)
        weights = generator.multinomial(len(filled), np.full(len(filled), 1 / max(len(filled), 1)), ROUNDS)
        drawn = [np.zeros(0)] * 4
        for start in range(0, ROUNDS, 50):  # a few at a time: they are as wide as the model
            part = shares(np.tensordot(weights[start : start + 50].astype(float), sums[filled], 1))
            drawn = [np.r_[old, new] for old, new in zip(drawn, part, strict=True)]
        # so few blocks vary less among themselves than their distribution does: Student's t, expanded
        free, z = max(len(filled) - 1, 1), _normal_quantile((1 + CONFIDENCE) / 2)
        wider = np.sqrt((free + 1) / free) * (1 + (z**2 + 1) / (4 * free))
        values = [_interval(float(value), each, wider) for value, each in zip(here[:3], drawn[:3], strict=True)]
        if values[2][1] <= 0:  # a share of what may not be there at all
            values[0] = (values[0][0], min(values[0][1], 0.0), max(values[0][2], 1.0))
        # a count is biased by its own threshold; its interval is the percentiles themselves
        size = float(here[3])
        low, high = np.quantile(drawn[3], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        r, c, _, gain = numbers(whole)
        yy = float((whole[3] / n).sum())
        ceilings, gains = np.cumsum(c) / width, np.cumsum(gain) / max(yy, 1e-300)
        there = r[np.abs(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))) > threshold * np.sqrt(variance)]
        participation = float(there.sum() ** 2 / (there**2).sum()) if len(there) else 0.0
        curve = np.stack([gains / np.maximum(ceilings, null), gains, ceilings], 1)
        return Efficiency(
            values[0], values[1], values[2], (size, min(size, float(low)), max(size, float(high))), null,
            participation, r, curve,
        )  # fmt: skip

    @staticmethod
    def _spread(whole: Array, of: int) -> Array:
        n = np.maximum(whole[6], 1.0)
        return whole[2 + of] / n - (whole[of] / n) ** 2


def _interval(value: float, drawn: Array, wider: float) -> tuple[float, float, float]:
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - drawn.mean()
    return value, value + wider * min(float(low), 0.0), value + wider * max(float(high), 0.0)


def _normal_quantile(p: float) -> float:
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def offsets(rows: int, apart: int, seed: int) -> Int[Array, permutation]:
    """How far to shift rows against each other for the null: at least `apart` where there are that many."""
    apart = min(apart, rows // 3)
    return np.random.default_rng(seed).integers(apart, max(rows - apart, apart + 1), PERMUTATIONS)
