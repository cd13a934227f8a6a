"""Clusters of vectors: equal sizes, like with like, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from namedmask.experts.clusters import balanced_clusters


def unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths, np.float32)


def around(centers: np.ndarray, each: int, seed: int = 0) -> np.ndarray:
    """Return `each` vectors near every center, the centers taking turns."""
    rng = np.random.default_rng(seed)
    spread = np.tile(centers, (each, 1))
    return unit(spread + 0.05 * rng.normal(size=spread.shape))


@pytest.mark.parametrize("seed", range(5))
def test_clusters_put_like_with_like_whatever_the_seed(seed: int) -> None:
    vectors = around(np.eye(8)[:4], each=6)
    expected = [list(range(start, 24, 4)) for start in range(4)]
    assert balanced_clusters(vectors, 4, seed) == expected


@pytest.mark.parametrize(("rows", "count"), [(7, 3), (919, 50), (5, 5), (5, 1), (10, 4)])
def test_clusters_hold_every_row_once_and_sizes_differ_by_one(rows: int, count: int) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(rows, 16)))
    clusters = balanced_clusters(vectors, count, seed=0)
    assert sorted(row for cluster in clusters for row in cluster) == list(range(rows))
    sizes = {len(cluster) for cluster in clusters}
    assert len(clusters) == count and max(sizes) - min(sizes) <= 1
    assert balanced_clusters(vectors, count, seed=0) == clusters
    assert [cluster[0] for cluster in clusters] == sorted(cluster[0] for cluster in clusters)


def test_clusters_of_a_lopsided_set_stay_equal_and_closer_than_by_chance() -> None:
    vectors = unit(np.concatenate([around(np.eye(8)[:1], 15), around(np.eye(8)[1:3], 3)]))
    clusters = balanced_clusters(vectors, 3, seed=0)
    assert [len(cluster) for cluster in clusters] == [7, 7, 7]
    within = np.mean([(vectors[one] @ vectors[one].T).mean() for one in clusters])
    rng = np.random.default_rng(0)
    by_chance = [vectors[rng.permutation(21)[:7]] for _ in range(50)]
    assert within > np.mean([(one @ one.T).mean() for one in by_chance]) + 0.05


def test_clusters_of_equal_vectors_are_clusters_all_the_same() -> None:
    clusters = balanced_clusters(unit(np.ones((6, 4))), 3, seed=0)
    assert [len(cluster) for cluster in clusters] == [2, 2, 2]
