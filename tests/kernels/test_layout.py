import time

import numpy as np
import pytest
import torch

from kernels.layout import layout, neighbours, principal


def planted(n: int, d: int, clusters: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions around random centres, and which centre each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % clusters
    centres = torch.randn(clusters, d, generator=generator)
    return centres[labels] + noise * torch.randn(n, d, generator=generator), labels


def near_in(points: np.ndarray, k: int) -> torch.Tensor:
    y = torch.from_numpy(points)
    return torch.cdist(y, y).topk(k + 1, largest=False).indices[:, 1:]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("clusters", [5, 40])
def test_planted_clusters_stay_together(seed, clusters):
    vectors, labels = planted(400, 64, clusters, 0.7, seed)
    near = near_in(layout(vectors, seed=seed), 5)
    flat = near_in(principal(torch.nn.functional.normalize(vectors, dim=1)).numpy(), 5)
    together = (labels[near] == labels[:, None]).float().mean()
    assert together > 0.97 and together > (labels[flat] == labels[:, None]).float().mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_more_neighbours_stay_near_than_in_the_principal_plane(seed):
    vectors = torch.randn(300, 12, generator=torch.Generator().manual_seed(seed))
    near = neighbours(vectors, 15)[0]
    kept = lambda points: np.mean(  # noqa: E731
        [len({*a} & {*b}) for a, b in zip(near.tolist(), near_in(points, 15).tolist(), strict=True)]
    )
    flat = principal(torch.nn.functional.normalize(vectors, dim=1)).numpy()
    assert kept(layout(vectors, seed=seed)) > 1.5 * kept(flat)


def test_a_ring_stays_a_ring():
    angle = torch.arange(200) / 200 * 2 * torch.pi
    points = layout(torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.2)], 1))
    steps = np.linalg.norm(np.roll(points, 1, 0) - points, axis=1)
    assert steps.max() < 0.3 and np.linalg.norm(points[:100] - points[100:], axis=1).min() > 0.5


def test_it_is_the_same_every_time_and_fills_the_square():
    vectors = planted(200, 16, 4, 0.5, 0)[0]
    one, two = layout(vectors, seed=3), layout(vectors, seed=3)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, layout(vectors, seed=4))
    assert one.dtype == np.float32 and np.abs(one).max() == 1
    np.testing.assert_allclose((one.max(0) + one.min(0)) / 2, 0, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_few_points(n):
    points = layout(torch.randn(n, 4, generator=torch.Generator().manual_seed(n)))
    assert points.shape == (n, 2) and np.isfinite(points).all() and len({tuple(each) for each in points}) == n


def test_equal_and_zero_vectors_are_placed_too():
    vectors = torch.cat([torch.ones(10, 3), torch.zeros(10, 3), torch.eye(3)])
    points = layout(vectors)
    assert np.isfinite(points).all() and len({tuple(each) for each in points}) == 23


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_neighbours_are_the_largest_cosines(block):
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    ids, cosines = neighbours(vectors, 8, block)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    wanted = (unit @ unit.T).fill_diagonal_(-2).sort(1, descending=True)
    torch.testing.assert_close(cosines, wanted.values[:, :8])
    assert torch.equal(ids, wanted.indices[:, :8])


@pytest.mark.parametrize("d", [1, 2, 30])
def test_the_principal_plane_is_that_of_the_singular_vectors(d):
    vectors = torch.randn(80, d, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.1, d)
    centred = (vectors - vectors.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    wanted = (u * s)[:, :2]
    found = principal(vectors, steps=60).double()
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) >= 0).all()
    for axis in range(min(2, d)):
        sign = torch.sign(wanted[:, axis] @ found[:, axis])
        torch.testing.assert_close(found[:, axis], sign * wanted[:, axis], atol=2e-3, rtol=1e-3)


@pytest.mark.bench
@pytest.mark.parametrize(("n", "seconds"), [(1024, 3), (32_768, 120)])
def test_how_long_it_takes(n, seconds):
    torch.set_num_threads(1)
    vectors = planted(n, 768, 300, 1.0, 0)[0]
    start = time.perf_counter()
    near = neighbours(vectors, 20)
    found = time.perf_counter()
    layout(vectors, near)
    print(f"\n{n} points: neighbours {found - start:.1f} s, layout {time.perf_counter() - found:.1f} s")
    assert time.perf_counter() - found < seconds
