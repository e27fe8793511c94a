import numpy as np
import pytest

from kernels.dbscan import dbscan, dbscan_reference


def distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_the_reference(seed):
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 60))
    centres = generator.normal(0, 3, (4, 2))
    points = centres[generator.integers(0, 4, n)] + generator.normal(0, 0.6, (n, 2))
    between = distances(points)
    for eps in (0.0, 0.3, 0.6, 5.0):
        for least in (1, 2, 4):
            assert dbscan(between, eps, least).tolist() == dbscan_reference(between, eps, least).tolist()


def test_planted_clusters_chains_and_noise():
    line = np.stack([np.arange(10) * 0.9, np.zeros(10)], 1)  # connected only through its neighbours
    blob = np.array([[20.0, 0], [20.1, 0], [20, 0.1]])
    alone = np.array([[50.0, 50.0]])
    labels = dbscan(distances(np.concatenate([line, blob, alone])), 1.0, 3)
    assert labels.tolist() == [0] * 10 + [1] * 3 + [-1]


def test_a_border_point_goes_to_the_nearest_core_whatever_the_order():
    points = np.array([[0, 0.0], [0.1, 0], [0.2, 0], [1.1, 0], [1.9, 0], [2.0, 0], [2.1, 0]])
    labels = dbscan(distances(points), 0.95, 4)
    assert labels[3] == labels[4] or labels[3] == labels[2]
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(points))
        mixed = dbscan(distances(points[order]), 0.95, 4)
        same = labels[order][:, None] == labels[order][None]
        assert ((mixed[:, None] == mixed[None]) == same).all()
