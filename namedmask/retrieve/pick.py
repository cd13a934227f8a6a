"""Pick the images of an archive, and the candidates to try next, by pure functions over statuses.

Differs: the method takes the first 500 candidates of a list and does not replace rejected images.
Its near duplicates are connected components over that list, which change when the list grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import bdtr

from namedmask import schema
from namedmask.schema.status import HAS_FACE, NEAR_DUPLICATE, PENDING, SURPLUS

SHORT_BY_CHANCE = 1e-6
"""Accepted probability that the images tried in one round are too few to fill an archive."""


def near_neighbors(vectors: np.ndarray, cosine: float, *, chained: bool = False) -> list[list[int]]:
    """Return, per candidate, the better ranks whose vectors are near duplicates, ascending.

    Args:
        vectors: (N, D) float32, unit L2 norm, in rank order.
        cosine: lowest cosine similarity of near duplicates. 1 turns the search off, even for equal
            vectors, because rounding would decide which of them match.
        chained: near duplicates are the connected components of close vectors, and a candidate
            lists only the best rank of its component. Method: true. The components depend on the
            length of the list.
    """
    if cosine >= 1:
        return [[] for _ in vectors]
    close = np.tril(vectors @ vectors.T >= cosine, -1)
    if not chained:
        return [np.flatnonzero(row).tolist() for row in close]
    _, component = connected_components(csr_matrix(close), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    best_ranks = first[inverse].tolist()
    return [[best] if best != rank else [] for rank, best in enumerate(best_ranks)]


def pick_archive(
    sample_ids: Sequence[str],
    neighbors: Sequence[Sequence[int]],
    checked: Mapping[str, str],
    size: int,
    *,
    chained: bool = False,
    replenish_faces: bool = True,
    hashes: Mapping[str, int] = MappingProxyType({}),
    hash_distance: int = 0,
) -> list[tuple[str, str | None]]:
    """Return the status of each candidate of one category, and the sample id that it duplicates.

    A candidate is accepted if its check did not fail and it is no near duplicate, by vector or by
    perceptual hash, of a better-ranked accepted candidate. The first `size` accepted candidates
    form the archive. A sample id that occurs a second time gets the status `duplicate_url`.

    Args:
        sample_ids: the candidates in rank order.
        neighbors: per candidate, its near duplicates, as `near_neighbors` returns them.
        checked: status of each checked image, by sample id; `ok` if it passed every check. Images
            not checked yet are absent.
        size: number of images wanted.
        chained: a candidate with a neighbor is a near duplicate even if the neighbor was not
            accepted. Method: true.
        replenish_faces: an image with a face is replaced by the next candidate. Method: false; it
            leaves a gap in the archive.
        hashes: 64-bit perceptual hash by sample id, see images.hash_of. Only hashes of images with
            status `ok` count, so that hashes left by an earlier run change nothing.
        hash_distance: candidates whose hashes differ in at most this many bits are near duplicates;
            0 turns the comparison off.

    Returns:
        (status, duplicate_of) per candidate, in rank order. The status is `ok` for the images of
        the archive, `surplus` for good images beyond `size`, `near_duplicate`, `duplicate_url`,
        the status from `checked` for a failed image, or `pending` for a candidate that would be
        accepted but has not been checked. The statuses of candidates ranked after a pending one may
        still change.
    """
    is_accepted = np.zeros(len(sample_ids), bool)
    picked: list[tuple[str, str | None]] = []
    places = 0
    seen: set[str] = set()
    if hash_distance:
        good = {key: bits for key, bits in hashes.items() if checked.get(key) == schema.OK}
        is_similar = np.tril(_similar(sample_ids, good, hash_distance), -1)
        pairs = zip(neighbors, is_similar, strict=True)
        neighbors = [sorted({*near, *np.flatnonzero(row).tolist()}) for near, row in pairs]
    for rank, sample_id in enumerate(sample_ids):
        if sample_id in seen:
            picked.append((schema.DUPLICATE_URL, None))
            continue
        seen.add(sample_id)
        status = checked.get(sample_id, PENDING)
        near = [better for better in neighbors[rank] if chained or is_accepted[better]]
        leaves_gap = status == HAS_FACE and not replenish_faces
        if near and (leaves_gap or status in (schema.OK, PENDING)):
            picked.append((NEAR_DUPLICATE, sample_ids[near[0]]))
            continue
        is_accepted[rank] = status in (schema.OK, PENDING)
        is_surplus = places >= size and status == schema.OK
        picked.append((SURPLUS if is_surplus else status, None))
        places += bool(is_accepted[rank]) or leaves_gap
    return picked


def _similar(sample_ids: Sequence[str], hashes: Mapping[str, int], distance: int) -> np.ndarray:
    """Return (N, N) bool, true where two hashes are known and differ in ≤ `distance` bits."""
    bits = np.array([hashes.get(sample_id, 0) for sample_id in sample_ids], np.uint64)
    known = np.array([sample_id in hashes for sample_id in sample_ids], bool)
    near = np.bitwise_count(bits[:, None] ^ bits) <= distance
    result: np.ndarray = near & known & known[:, None]
    return result


def gaps(statuses: Sequence[str], size: int) -> int:
    """Return how many of the first `size` places of an archive have an image with a face.

    `statuses` are the statuses of one category's candidates in rank order.
    """
    places = [status for status in statuses if status in (schema.OK, PENDING, SURPLUS, HAS_FACE)]
    return places[:size].count(HAS_FACE)


def next_to_try(
    statuses: Sequence[str], size: int, pass_rate: float, overfetch: float
) -> list[int]:
    """Return the ranks of the pending candidates to fetch and check next, ascending.

    If enough good images are known to fill the archive, return every pending candidate that ranks
    above the last image that would be kept, since each of them may displace that image.

    Otherwise return the best-ranked pending candidates, as many as are needed to fill the archive
    at `pass_rate`. Their number is the larger of the expected number of tries times `overfetch` and
    the number of tries that is too small with a probability of at most `SHORT_BY_CHANCE`.

    The result is empty if no candidate is pending, or no pending candidate can change the archive.

    Args:
        statuses: statuses of one category's candidates in rank order, from `pick_archive`.
        size: number of images wanted.
        pass_rate: share of tried candidates that were accepted, in [0, 1]; 1 before the first try.
        overfetch: factor on the expected number of tries, at least 1.
    """
    good = [rank for rank, status in enumerate(statuses) if status in (schema.OK, SURPLUS)]
    pending = [rank for rank, status in enumerate(statuses) if status == PENDING]
    missing = size - len(good)
    if missing <= 0:
        return [rank for rank in pending if size > 0 and rank < good[size - 1]]
    if pass_rate <= 0:
        return pending
    expected = min(missing / pass_rate * overfetch, len(pending))  # a tiny rate gives infinity
    tries = np.arange(1, len(pending) + 1)
    # the mean alone would often fall short when few images are missing
    is_sure = bdtr(missing - 1, tries, pass_rate) <= SHORT_BY_CHANCE
    sure = tries[is_sure][0] if is_sure.any() else len(pending)
    return pending[: max(math.ceil(expected), sure)]
