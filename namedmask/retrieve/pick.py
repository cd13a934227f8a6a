"""Which candidates make up an archive, and which to try next: pure functions over statuses.

Differs: the method takes the first 500 of one list and does not refill it; its near duplicates are
connected components over that list, which change when the list grows.
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
"""How likely a round after the first may leave an archive short that its candidates could fill."""


def near_neighbors(vectors: np.ndarray, cosine: float, *, chained: bool = False) -> list[list[int]]:
    """Return for each vector the better-ranked ones at least `cosine` close, ascending.

    Args:
        vectors: (N, D) float32, unit L2 norm, in the order of their ranks.
        cosine: 1 is off, not even equal vectors are close: rounding would decide which of them are.
        chained: what is close to something close counts as well, and only the best-ranked of each
            such connected component is named. Method: so; it depends on the length of the list.
    """
    if cosine >= 1:
        return [[] for _ in vectors]
    close = np.tril(vectors @ vectors.T >= cosine, -1)
    if not chained:
        return [np.flatnonzero(row).tolist() for row in close]
    _, component = connected_components(csr_matrix(close), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    heads = first[inverse].tolist()
    return [[head] if head != rank else [] for rank, head in enumerate(heads)]


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
    """Return each candidate's status, and the candidate it duplicates, for one category.

    A candidate is accepted when no verdict speaks against it and it is not too close to a
    better-ranked accepted one, by its vector or by its pixels. The first `size` accepted are the
    archive. A sample id that comes again is `duplicate_url`.

    Args:
        sample_ids: the candidates in the order of their ranks.
        neighbors: of each candidate, as `near_neighbors` returns them.
        checked: what fetching and checking found: `ok` or the reason against; absent where
            nobody looked yet.
        size: images wanted.
        chained: a candidate with a neighbor is a near duplicate whatever became of that one, as in
            the method.
        replenish_faces: an image with a face makes room for the next one. Method: no, it leaves a
            gap in the archive.
        hashes: 64 bits of the pixels, see images.hash_of; those without the verdict `ok` are not
            looked at, so that what an earlier try has left changes nothing.
        hash_distance: candidates that differ in at most so many bits are near duplicates; 0: not.

    Returns:
        (status, duplicate_of), ranks ascending; the status is `ok` in the archive, the verdict
        where it speaks against, `near_duplicate`, `surplus`, or `pending` where a candidate would
        be accepted but has no verdict. Answers below a pending one may still change.
    """
    is_accepted = np.zeros(len(sample_ids), bool)
    answers: list[tuple[str, str | None]] = []
    places = 0
    seen: set[str] = set()
    if hash_distance:
        good = {one: bits for one, bits in hashes.items() if checked.get(one) == schema.OK}
        alike = np.tril(_alike(sample_ids, good, hash_distance), -1)
        pairs = zip(neighbors, alike, strict=True)
        neighbors = [sorted({*near, *np.flatnonzero(row).tolist()}) for near, row in pairs]
    for rank, sample_id in enumerate(sample_ids):
        if sample_id in seen:
            answers.append((schema.DUPLICATE_URL, None))
            continue
        seen.add(sample_id)
        verdict = checked.get(sample_id, PENDING)
        near = neighbors[rank] if chained else [one for one in neighbors[rank] if is_accepted[one]]
        leaves_gap = verdict == HAS_FACE and not replenish_faces
        if near and (leaves_gap or verdict in (schema.OK, PENDING)):
            answers.append((NEAR_DUPLICATE, sample_ids[near[0]]))
            continue
        is_accepted[rank] = verdict in (schema.OK, PENDING)
        full = places >= size and verdict == schema.OK
        answers.append((SURPLUS if full else verdict, None))
        places += bool(is_accepted[rank]) or leaves_gap
    return answers


def _alike(sample_ids: Sequence[str], hashes: Mapping[str, int], distance: int) -> np.ndarray:
    """Return (N, N) bool: which candidates have hashes that differ in at most `distance` bits."""
    bits = np.array([hashes.get(one, 0) for one in sample_ids], np.uint64)
    known = np.array([one in hashes for one in sample_ids], bool)
    near = np.bitwise_count(bits[:, None] ^ bits) <= distance
    return near & known & known[:, None]


def gaps(statuses: Sequence[str], size: int) -> int:
    """Return how many of the first `size` places are lost to faces that are not replaced."""
    places = [one for one in statuses if one in (schema.OK, PENDING, SURPLUS, HAS_FACE)]
    return places[:size].count(HAS_FACE)


def next_to_try(
    statuses: Sequence[str], size: int, pass_rate: float, overfetch: float
) -> list[int]:
    """Return the ranks of the pending candidates to fetch and judge next, ascending.

    Where enough good ones are known, all that rank above the last of those that would be kept: then
    the archive is settled. Else enough to fill it at the observed `pass_rate` with `overfetch` to
    spare, or all but surely, whichever is more. Empty when the archive is full and settled, or when
    nothing is pending.

    Args:
        statuses: of one category's candidates by rank, as `pick_archive` returns them.
        pass_rate: share of tried candidates that were accepted, in [0, 1]; 1 before any was tried.
        overfetch: at least 1.
    """
    good = [rank for rank, status in enumerate(statuses) if status in (schema.OK, SURPLUS)]
    pending = [rank for rank, status in enumerate(statuses) if status == PENDING]
    missing = size - len(good)
    if missing <= 0:
        return [rank for rank in pending if size > 0 and rank < good[size - 1]]
    if pass_rate <= 0:
        return pending
    expected = min(missing / pass_rate * overfetch, len(pending))  # a tiny rate makes it infinite
    tries = np.arange(1, len(pending) + 1)
    is_sure = bdtr(missing - 1, tries, pass_rate) <= SHORT_BY_CHANCE  # far above a few's mean
    sure = tries[is_sure][0] if is_sure.any() else len(pending)
    return pending[: max(math.ceil(expected), sure)]
