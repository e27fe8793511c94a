import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge

from kernels.linear_maps import Factor, canonical, held_out_errors, reduced_rank, ridge, truncated


def data(n: int, d: int, rank: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """y = x A + noise, A of that rank; x with directions of very different spread."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.geomspace(1, 0.01, d) + 3
    a = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, d))
    return x, x @ a + noise * rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) - 5


def covariances(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = (torch.from_numpy(each - each.mean(0)) for each in (x, y))
    return a.T @ a / len(a), b.T @ b / len(a), b.T @ a / len(a)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 10.0, 100.0, 1e3, 2e3, 5e3, 1e4])
def test_ridge_is_scikit_learns_at_every_penalty(alpha, seed):
    x, y = data(400, 12, 6, 0.5, seed)
    xx, _, yx = covariances(x, y)
    expected = Ridge(alpha=alpha).fit(x, y)
    found = ridge(Factor.of(xx, 1e-14), yx, alpha / len(x))
    assert np.abs(found.numpy() - expected.coef_).max() < 1e-8 * np.abs(expected.coef_).max()


def test_ridge_without_a_penalty_is_least_squares_and_with_an_infinite_one_the_mean():
    x, y = data(400, 12, 6, 0.5, 0)
    xx, _, yx = covariances(x, y)
    factor = Factor.of(xx, 1e-14)
    expected = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0].T
    assert np.abs(ridge(factor, yx, 0.0).numpy() - expected).max() < 1e-7 * np.abs(expected).max()
    assert not ridge(factor, yx, float("inf")).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_errors_on_other_data_are_those_of_predicting_it(seed):
    x, y = data(600, 10, 4, 0.7, seed)
    (x, y), (other_x, other_y) = (x[:400], y[:400]), (x[400:], y[400:])
    xx, yy, yx = covariances(x, y)
    factor, whitening = Factor.of(xx, 1e-14), Factor.of(yy, 1e-14).whitening
    penalties = torch.tensor([0.0, 0.01, 1.0, 100.0, float("inf")], dtype=torch.float64)
    a, b = torch.from_numpy(other_x - x.mean(0)), torch.from_numpy(other_y - y.mean(0))
    total = float((b @ whitening.T).square().sum(1).mean())
    second = factor.vectors.T @ (a.T @ a / len(a)) @ factor.vectors
    found = held_out_errors(factor, Factor.of(yy, 1e-14).precision, yx, penalties, second, b.T @ a / len(a), total)
    for penalty, error in zip(penalties.tolist(), found.tolist(), strict=True):
        left = (b - a @ ridge(factor, yx, penalty).T) @ whitening.T
        assert error == pytest.approx(float(left.square().sum(1).mean()), rel=1e-9)
    assert found[-1] == pytest.approx(total)


def test_canonical_correlations_are_scikit_learns():
    x, y = data(500, 6, 6, 2.0, 0)
    xx, yy, yx = covariances(x, y)
    found = canonical(Factor.of(xx, 1e-14), Factor.of(yy, 1e-14), yx)
    peer = CCA(n_components=2, max_iter=5000, tol=1e-12).fit(x, y)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(*(each.T for each in peer.transform(x, y)), strict=True)]
    assert np.allclose(found.rho[:2], expected, atol=1e-5)
    u, v = (x - x.mean(0)) @ found.xs.numpy(), (y - y.mean(0)) @ found.ys.numpy()
    assert np.allclose(u.T @ u / len(x), np.eye(6), atol=1e-8) and np.allclose(v.T @ v / len(x), np.eye(6), atol=1e-8)
    assert np.allclose(u.T @ v / len(x), np.diag(found.rho), atol=1e-8)


def whitened_error(t: torch.Tensor, x: np.ndarray, y: np.ndarray) -> float:
    a, b = (torch.from_numpy(each - each.mean(0)) for each in (x, y))
    whitening = Factor.of(b.T @ b / len(b), 1e-14).whitening
    return float(((b - a @ t.T) @ whitening.T).square().sum(1).mean())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_no_map_of_that_rank_does_better_than_the_reduced_rank_one(rank, seed):
    x, y = data(500, 8, 8, 1.5, seed)
    xx, yy, yx = covariances(x, y)
    found = canonical(Factor.of(xx, 1e-14), Factor.of(yy, 1e-14), yx)
    best = reduced_rank(found, rank)
    assert np.linalg.matrix_rank(best.numpy(), tol=1e-8) == rank
    error = whitened_error(best, x, y)
    assert error == pytest.approx(8 - float((found.rho[:rank] ** 2).sum()), rel=1e-8)
    least_squares = ridge(Factor.of(xx, 1e-14), yx, 0.0)
    assert whitened_error(truncated(least_squares, rank), x, y) >= error - 1e-9
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        left, right = (torch.randn(8, rank, generator=generator, dtype=torch.float64) for _ in range(2))
        assert whitened_error(best + 0.01 * left @ right.T if rank == 8 else left @ right.T, x, y) > error
    if rank == 8:
        assert torch.allclose(best, least_squares, atol=1e-8)


def test_truncating_keeps_the_largest_singular_values():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    left = matrix - truncated(matrix, 3)
    assert float(left.norm()) == pytest.approx(float(values[3:].norm())) and truncated(matrix, 7).allclose(matrix)


def test_directions_without_variance_are_left_out():
    xx = torch.diag(torch.tensor([4.0, 1.0, 1e-9, 0.0], dtype=torch.float64))
    factor = Factor.of(xx, 1e-6)
    assert factor.values.tolist() == [1.0, 4.0]
    assert torch.allclose(factor.whitening @ xx @ factor.whitening.T, torch.eye(2, dtype=torch.float64))
