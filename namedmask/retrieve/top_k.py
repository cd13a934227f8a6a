"""Vectors × categories → the exact best candidates, and which of them make up the archives.

Three pure steps, each told what the others found:

1. `exact_top_k` scans vectors that never have to be in memory together.
2. `next_to_try` names the candidates of a category to fetch and judge in this round.
3. `pick_archive` walks the ranks over the statuses so far and gives every candidate its status.

Steps 2 and 3 repeat until the archive is full or there is nothing left to try; then the archive is
the best-ranked candidates that pass every check, however many rounds it took.

Cost in CPU seconds: 2.5 for 12 categories over 1,000,000 × 768 float16 vectors (k 500), 13 for 919
with reading and start; see docs/results.md; 0.2 to pick one archive from 3,000 candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, reduce
from typing import Literal

import numpy as np

from namedmask.errors import InputError


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
    from namedmask.retrieve import scan as top_k  # torch, which the other steps do without

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

    `parts`: scores (C, k_i) float32 and rows (C, k_i) int64 each, in any order. They are merged as
    they come, so two are in memory at a time.
    """
    return reduce(partial(_merged, k), parts)


def _merged(
    k: int, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
