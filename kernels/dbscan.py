"""DBSCAN: clusters are what dense points connect; points in no cluster are noise."""

import numpy as np
from jaxtyping import Float, Int


def dbscan(distances: Float[np.ndarray, "n n"], eps: float, min_samples: int) -> Int[np.ndarray, "n"]:
    """Give each point the number of its cluster, from 0, or -1 for noise.

    A point with `min_samples` points within `eps`, itself among them, is a core point. Core points within `eps` of each
    other share a cluster. Any other point belongs to the cluster of its nearest core point within `eps`; the original
    takes whichever cluster came first, which depends on the order of the points.
    """
    near = distances <= eps
    core = near.sum(1) >= min_samples
    labels = np.full(len(distances), -1)
    clusters = 0
    for start in np.flatnonzero(core):
        if labels[start] >= 0:
            continue
        frontier = np.zeros(len(distances), dtype=bool)
        frontier[start] = True
        while frontier.any():
            labels[frontier] = clusters
            frontier = near[frontier].any(0) & core & (labels < 0)
        clusters += 1
    if clusters:
        to_core = np.where(core, distances, np.inf)
        nearest = to_core.argmin(1)
        border = ~core & (to_core[np.arange(len(labels)), nearest] <= eps)
        labels[border] = labels[nearest[border]]
    return labels


def dbscan_reference(distances: Float[np.ndarray, "n n"], eps: float, min_samples: int) -> Int[np.ndarray, "n"]:
    """The same by the definitions, one pair at a time."""
    n = len(distances)
    core = [i for i in range(n) if sum(distances[i, j] <= eps for j in range(n)) >= min_samples]
    cluster = {i: i for i in core}
    changed = True
    while changed:
        changed = False
        for i in core:
            for j in core:
                if distances[i, j] <= eps and cluster[j] > cluster[i]:
                    cluster[j], changed = cluster[i], True
    numbers = {first: number for number, first in enumerate(sorted(set(cluster.values())))}
    labels = np.full(n, -1)
    for i in range(n):
        reach = [j for j in core if distances[i, j] <= eps]
        if i in cluster:
            labels[i] = numbers[cluster[i]]
        elif reach:
            labels[i] = numbers[cluster[min(reach, key=lambda j: distances[i, j])]]
    return labels
