"""Linear maps from one variable to another, in closed form from their covariances (float64 throughout)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """A covariance S = Q diag(values) Q^T, without the directions in which there is no variance to speak of."""

    vectors: Float[Tensor, "d kept"]
    values: Float[Tensor, kept]

    @staticmethod
    def of(covariance: Float[Tensor, "d d"], tolerance: float) -> Factor:
        """tolerance: directions with less than this share of the largest variance are left out."""
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > tolerance * values[-1].clamp(min=0)
        return Factor(vectors[:, kept], values[kept])

    @property
    def whitening(self) -> Float[Tensor, "kept d"]:
        """W with W S W^T = 1."""
        return (self.vectors / self.values.sqrt()).T

    @property
    def precision(self) -> Float[Tensor, "d d"]:
        """S's pseudoinverse, W^T W."""
        return self.whitening.T @ self.whitening

    @property
    def colouring(self) -> Float[Tensor, "d kept"]:
        """W's pseudoinverse."""
        return self.vectors * self.values.sqrt()


def ridge(x: Factor, covariance_yx: Float[Tensor, "d_y d_x"], penalty: float) -> Float[Tensor, "d_y d_x"]:
    """The map that minimises E |y - T x|^2 + penalty |T|^2 (both without their means).

        T = S_yx Q diag(1 / (values + penalty)) Q^T

    With n rows this is scikit-learn's Ridge(alpha = n penalty). An infinite penalty gives zero: the mean.
    """
    return (covariance_yx @ x.vectors / (x.values + penalty)) @ x.vectors.T


def held_out_errors(
    x: Factor,
    precision: Float[Tensor, "d_y d_y"],
    covariance_yx: Float[Tensor, "d_y d_x"],
    penalties: Float[Tensor, penalty],
    second: Float[Tensor, "kept kept"],
    cross: Float[Tensor, "d_y d_x"],
    total: float,
) -> Float[Tensor, penalty]:
    """E (y - T x)^T P (y - T x) on other data for the ridge of every penalty, from one product each.

    precision: P, the inverse covariance of y. second: Q^T (E x x^T) Q; cross: E y x^T; total: E y^T P y, all there and
    about the means of the fitting data.
    """
    read = covariance_yx @ x.vectors
    weighed = precision @ read
    linear = (weighed * (cross @ x.vectors)).sum(0)
    quadratic = second * (read.T @ weighed)
    shrunk = 1 / (x.values + penalties[:, None])
    return total - 2 * shrunk @ linear + ((shrunk @ quadratic) * shrunk).sum(1)


@dataclass(frozen=True)
class Canonical:
    """Canonical correlations, largest first, and the directions x_i = x . xs[:, i], y_i = y . ys[:, i] of variance 1.

    As many as y has directions: where x has fewer, the last rho and xs are zero. loadings: S_yy ys, what one unit of
    y_i is of y.
    """

    rho: Float[Tensor, kept]
    xs: Float[Tensor, "d_x kept"]
    ys: Float[Tensor, "d_y kept"]
    loadings: Float[Tensor, "d_y kept"]


def canonical(x: Factor, y: Factor, covariance_yx: Float[Tensor, "d_y d_x"]) -> Canonical:
    """Canonical correlation analysis: the singular values of S_yy^-1/2 S_yx S_xx^-1/2."""
    left, rho, right = torch.linalg.svd(y.whitening @ covariance_yx @ x.whitening.T)
    beyond = max(len(left) - len(rho), 0)
    xs = F.pad(x.whitening.T @ right[: len(rho)].T, (0, beyond))
    return Canonical(F.pad(rho.clamp(max=1), (0, beyond)), xs, y.whitening.T @ left, y.colouring @ left)


def reduced_rank(found: Canonical, rank: int) -> Float[Tensor, "d_y d_x"]:
    """The map of that rank that minimises E |W (y - T x)|^2 in the metric that whitens y.

    T_r = sum_{i <= r} rho_i loadings_i xs_i^T
    """
    return (found.loadings[:, :rank] * found.rho[:rank]) @ found.xs[:, :rank].T


def truncated(operator: Float[Tensor, "d_y d_x"], rank: int) -> Float[Tensor, "d_y d_x"]:
    """The map of that rank that is nearest to a map in the plain metric: its largest singular values."""
    left, values, right = torch.linalg.svd(operator, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]
