"""Means and covariances of many variables over any number of rows, in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Sums of V variables of width d and of the products of pairs of them.

        n,    s_v = sum_t (x_v(t) - c_v),    P_ij = sum_t (x_i(t) - c_i) (x_j(t) - c_j)^T    for (i, j) in pairs

    c_v is the mean of the first rows, taken off beforehand so that float32 products keep their digits where a mean is
    large. Products of float32 rows are summed in float64; of float64 rows they are float64 throughout.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.pairs = tuple(pairs)
        self.n = 0
        self.shift = self.sums = torch.zeros(0, 0, dtype=torch.float64)
        self.products = torch.zeros(0, 0, 0, dtype=torch.float64)
        self._where = {pair: number for number, pair in enumerate(self.pairs)}

    def add(self, x: Float[Tensor, "variable row d"]) -> None:
        """Take in rows; some thousand together are fast and lose no digits."""
        if not x.shape[1]:
            return
        if not self.n:
            self._begin(x.mean(1))
        self.n += x.shape[1]
        d = x.shape[2]
        # side by side, so that all products with one variable are one product of matrices, of which none is copied
        centred = (x - self.shift.to(x)[:, None]).transpose(0, 1).reshape(x.shape[1], -1)
        self.sums += centred.sum(0, dtype=torch.float64).view(-1, d).cpu()
        for j, firsts in self._columns.items():
            column = centred[:, j * d : (j + 1) * d]
            for start, stop in firsts:
                products = (centred[:, start * d : stop * d].T @ column).view(-1, d, d).cpu()
                for i, product in zip(range(start, stop), products, strict=True):
                    self.products[self._where[i, j]] += product

    def _begin(self, mean: Float[Tensor, "variable d"]) -> None:
        self.shift = mean.double().cpu()
        self.sums = torch.zeros_like(self.shift)
        self.products = torch.zeros(len(self.pairs), mean.shape[1], mean.shape[1], dtype=torch.float64)

    @cached_property
    def _columns(self) -> dict[int, list[tuple[int, int]]]:
        """For each second variable the runs of first ones, start and stop."""
        columns: dict[int, list[int]] = {}
        for i, j in self.pairs:
            columns.setdefault(j, []).append(i)
        runs: dict[int, list[tuple[int, int]]] = {}
        for j, firsts in columns.items():
            for i in sorted(firsts):
                own = runs.setdefault(j, [])
                if own and own[-1][1] == i:
                    own[-1] = own[-1][0], i + 1
                else:
                    own.append((i, i + 1))
        return runs

    def merge(self, other: Moments) -> None:
        """Take in what another has seen."""
        if not other.n:
            return
        if not self.n:
            self._begin(other.shift)
        moved = other.shift - self.shift
        for (i, j), mine, theirs in zip(self.pairs, self.products, other.products, strict=True):
            mine += theirs
            mine += torch.outer(other.sums[i] + other.n * moved[i], moved[j])
            mine += torch.outer(moved[i], other.sums[j])
        self.sums += other.sums + other.n * moved
        self.n += other.n

    def mean(self, v: int) -> Float[Tensor, d]:
        """The mean of a variable."""
        return self.shift[v] + self.sums[v] / self.n

    def covariance(self, i: int, j: int) -> Float[Tensor, "d_i d_j"]:
        """E (x_i - mean) (x_j - mean)^T, over n."""
        flipped = (i, j) not in self._where
        a, b = (j, i) if flipped else (i, j)
        found = self.products[self._where[a, b]] / self.n - torch.outer(self.sums[a] / self.n, self.sums[b] / self.n)
        return found.T if flipped else found

    def state(self) -> dict[str, np.ndarray]:
        """All of it as arrays."""
        return {
            "n": np.array([self.n]), "shift": self.shift.numpy(), "sums": self.sums.numpy(),
            "products": self.products.numpy(),
        }  # fmt: skip

    def load(self, state: Mapping[str, np.ndarray]) -> Moments:
        """Go on from what `state` gave."""
        self.n = int(state["n"][0])
        self.shift, self.sums, self.products = (torch.tensor(state[key]) for key in ("shift", "sums", "products"))
        return self


def moments_reference(
    x: Float[np.ndarray, "variable row d"], i: int, j: int
) -> tuple[Float[np.ndarray, d], Float[np.ndarray, "d d"]]:
    """The mean of variable i and its covariance with j, from all rows at once in float64."""
    a, b = (np.asarray(x[v], np.float64) for v in (i, j))
    return a.mean(0), (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)
