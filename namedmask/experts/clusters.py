"""Balanced clustering of unit vectors by cosine similarity.

Cost on one core: 0.6 s for 919 random vectors of 768 numbers in 50 clusters, 2 s in 200 clusters.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDS = 50
"""Largest number of k-means rounds; the clusters converge long before."""


def balanced_clusters(vectors: np.ndarray, count: int, seed: int) -> list[list[int]]:
    """Return `count` clusters of row numbers whose sizes differ by at most one.

    The algorithm is k-means by cosine similarity, with fixed cluster sizes. Each round assigns the
    rows to the clusters so that the sum of similarities to the cluster means is as large as
    possible. Rows ascend within a cluster, and clusters are in order of their lowest row.

    Args:
        vectors: (N, D) float32, unit L2 norm.
        count: number of clusters, at most N.
        seed: seed for the choice of the initial means.
    """
    rows = len(vectors)
    means = vectors[_spread(vectors, count, np.random.default_rng(seed))]
    cluster_of_place = np.arange(rows) % count  # a cluster has one place per member
    labels = np.full(rows, -1)
    for _ in range(ROUNDS):
        row, place = linear_sum_assignment(-(vectors @ means.T)[:, cluster_of_place])
        assigned = np.empty(rows, np.int64)
        assigned[row] = cluster_of_place[place]
        if np.array_equal(assigned, labels):
            break
        labels = assigned
        means = np.stack([vectors[labels == cluster].mean(axis=0) for cluster in range(count)])
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return sorted(np.flatnonzero(labels == cluster).tolist() for cluster in range(count))


def _spread(vectors: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Return `count` rows far from one another; each is the farthest from the rows before it."""
    chosen = [int(rng.integers(len(vectors)))]
    nearest = vectors @ vectors[chosen[0]]
    for _ in range(count - 1):
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen
