"""Vectors × categories → the exact best candidates, and which of them make up the archives.

Three pure steps, each told what the others found:

1. `exact_top_k` scans vectors that never have to be in memory together.
2. `next_to_try` names the candidates of a category to fetch and judge in this round.
3. `pick_archive` walks the ranks over the verdicts so far and gives every candidate its status.

Steps 2 and 3 repeat until the archive is full or there is nothing left to try; then the archive is
the best-ranked candidates that pass every check, however many rounds it took.

Differs: the method takes the first 500 of one list and does not refill it; its near duplicates are
connected components over that list, which change when the list grows.

Cost in CPU seconds: 2.5 for 12 categories over 1,000,000 × 768 float16 vectors (k 500), 13 for 919
with reading and start; see docs/results.md; 0.2 to pick one archive from 3,000 candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.categories import CategorySet
from namedmask.errors import InputError

PENDING = "pending"
"""Status of a candidate that nobody has fetched and judged yet."""

NEAR_DUPLICATE = "near_duplicate"

SURPLUS = "surplus"
"""Status of a good candidate that came after the archive was full."""


def exact_top_k(
    chunks: Iterable[np.ndarray],
    queries: np.ndarray,
    k: int,
    first: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` highest inner products of each query and the rows they belong to.

    Args:
        chunks: arrays (N_i, D) float16 or float32; rows count on from one chunk to the next.
        queries: (C, D) float32.
        k: how many to keep, at least 1.
        first: the number of the first row, where these are not all.
        device: auto is cuda where there is one.

    Returns:
        scores (C, min(k, N)) float32, descending, and rows (C, min(k, N)) int64; of equal scores
        the lower row comes first. How the rows are cut into chunks, or into calls whose answers
        `merge_top_k` puts together, changes no bit. Memory: O(C·k), one chunk and 0.1 GB.

    Raises:
        InputError: a chunk of another width or type than expected; a vector that is zero or not
            finite, with its row.
    """
    from namedmask import top_k  # torch, which the other steps do without

    if k < 1:
        raise InputError(f"top-k needs k of at least 1; got {k}.")
    queries = np.ascontiguousarray(queries, np.float32)
    top_k.longest(queries, 0, "query")
    scan = top_k.new_scan(queries, k, device)
    for block, longest, before in top_k.blocks(chunks, queries.shape[1], scan.block_rows, first):
        scan.add(block, longest, before)
    scores, rows = scan.answer()
    return scores, rows + first


def merge_top_k(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` best of several answers of `exact_top_k` over different rows, as one answer.

    `parts`: scores (C, k_i) float32 and rows (C, k_i) int64 each, in any order.
    """
    scores, rows = (np.concatenate(one, axis=1) for one in zip(*parts, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def candidates_table(
    category_set: CategorySet,
    scores: np.ndarray,
    rows: np.ndarray,
    sample_ids: Sequence[str],
    urls: Sequence[str],
) -> pa.Table:
    """Return one pending candidate (schema.CANDIDATES) for each entry of a top-k answer.

    Args:
        scores, rows: (C, k) as `exact_top_k` returns them, in the order of the category set.
        sample_ids, urls: of every scanned row; indexed by the entries of `rows`.
    """
    count, k = rows.shape
    flat = rows.ravel().tolist()
    columns = {
        "category": np.repeat(np.array(category_set.names, object), k),
        "label_id": np.repeat(np.arange(1, count + 1, dtype=np.uint16), k),
        "rank": np.tile(np.arange(k, dtype=np.int32), count),
        "score": scores.ravel(),
        "sample_id": [sample_ids[row] for row in flat],
        "url": [urls[row] for row in flat],
        "status": [PENDING] * len(flat),
        "duplicate_of": [None] * len(flat),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema.CANDIDATES]
    return pa.Table.from_arrays(arrays, schema=schema.CANDIDATES)


def pick_archive(
    sample_ids: Sequence[str],
    embeddings: np.ndarray,
    verdicts: Mapping[str, str],
    size: int,
    cosine: float,
) -> list[tuple[str, str | None]]:
    """Return each candidate's status, and the candidate it duplicates, for one category.

    A candidate is accepted when no verdict speaks against it and it is not too close to a
    better-ranked accepted one. The first `size` accepted are the archive.

    Args:
        sample_ids: the candidates in the order of their ranks.
        embeddings: (N, D) float32, unit L2 norm, in the same order.
        verdicts: what fetching and checking found: `ok` or the reason against; absent where
            nobody looked yet.
        size: images wanted.
        cosine: candidates at least this close are near duplicates.

    Returns:
        (status, duplicate_of), ranks ascending; the status is `ok` in the archive, the verdict
        where it speaks against, `near_duplicate`, `surplus`, or `pending` where a candidate would
        be accepted but has no verdict. Answers below a pending one may still change.
    """
    close = embeddings @ embeddings.T >= cosine
    blocker = np.full(len(sample_ids), -1)
    answers: list[tuple[str, str | None]] = []
    accepted = 0
    for rank, sample_id in enumerate(sample_ids):
        verdict = verdicts.get(sample_id, PENDING)
        if verdict not in (schema.OK, PENDING):
            answers.append((verdict, None))
        elif blocker[rank] >= 0:
            answers.append((NEAR_DUPLICATE, sample_ids[blocker[rank]]))
        else:
            blocker[close[rank] & (blocker < 0)] = rank
            full = accepted >= size
            answers.append((SURPLUS if full and verdict == schema.OK else verdict, None))
            accepted += 1
    return answers


def next_to_try(
    statuses: Sequence[str], size: int, pass_rate: float, overfetch: float
) -> list[int]:
    """Return the ranks of the pending candidates to fetch and judge next, ascending.

    Enough to fill the archive at the observed `pass_rate` with `overfetch` to spare, and at least
    every pending candidate that stands where the archive would be. Empty when the archive is full
    and settled, or when nothing is pending.

    Args:
        statuses: of one category's candidates by rank, as `pick_archive` returns them.
        pass_rate: share of tried candidates that were accepted, in [0, 1]; 1 before any was tried.
        overfetch: at least 1.
    """
    missing = size - statuses.count(schema.OK)
    pending = [rank for rank, status in enumerate(statuses) if status == PENDING]
    if missing <= 0 or pass_rate <= 0:
        return pending if missing > 0 else []
    uncovered = max(0, missing - statuses.count(SURPLUS))
    expected = min(uncovered / pass_rate * overfetch, len(pending))  # a tiny rate makes it infinite
    return pending[: max(missing, math.ceil(expected))]
