"""Exact top-k search: for each category query, the vectors with the highest inner products.

Retrieval consists of three pure functions, which get each other's results as arguments:

1. `exact_top_k` ranks the candidates of each category. It reads the vectors chunk by chunk, so they
   never have to fit into memory together.
2. `next_to_try` (pick.py) returns the candidates of one category to fetch and check next.
3. `pick_archive` (pick.py) gives each candidate of one category a status, from the statuses of the
   images checked so far. The candidates with status `ok` form the archive.

The functions 2 and 3 alternate until the archive is full or no candidate is left to try. Then the
archive has the best-ranked candidates that pass every check, however many rounds were needed.

Cost in CPU seconds: 2.5 for 12 categories over 1,000,000 × 768 float16 vectors (k = 500); 13 for
919 categories, including reading and startup (see docs/results.md); 0.2 to pick one archive from
3,000 candidates.
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
    """Return the `k` highest inner products of each query and the numbers of their rows.

    Args:
        chunks: arrays (N_i, D) float16 or float32; row numbers continue from chunk to chunk.
        queries: (C, D) float32.
        k: number of rows to keep per query, at least 1.
        first: row number of the first vector, if `chunks` are only a part of all vectors.
        device: auto is cuda if torch sees a GPU, else cpu.

    Returns:
        scores (C, min(k, N)) float32, descending, and rows (C, min(k, N)) int64. At equal scores
        the lower row comes first. The result is the same, bit for bit, however the rows are
        divided into chunks, or into calls whose answers `merge_top_k` merges. Memory: O(C·k), one
        chunk and 0.1 GB.

    Raises:
        InputError: `k` is below 1; a chunk has another width or type; a vector is zero or not
            finite (the message names its row); or `device` is cuda and torch sees no GPU.
    """
    # imported here because scan.py loads torch, which the other functions do not need
    from namedmask.retrieve.scan import blocks, largest_norm, new_scan

    if k < 1:
        raise InputError(f"top-k needs k of at least 1; got {k}.")
    queries = np.ascontiguousarray(queries, np.float32)
    largest_norm(queries, 0, "query")  # refuses bad queries
    scan = new_scan(queries, k, device)
    for block, max_norm, before in blocks(chunks, queries.shape[1], scan.block_rows, first):
        scan.add(block, max_norm, before)
    scores, rows = scan.answer()
    return scores, rows + first


def merge_top_k(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` best rows of several answers of `exact_top_k`, as one answer.

    Args:
        parts: per answer, scores (C, k_i) float32 and rows (C, k_i) int64. No two answers share a
            row. The order of the answers does not matter. At most two of them are in memory.
        k: number of rows to keep per query.
    """
    return reduce(partial(_merged, k), parts)


def _merged(
    k: int, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
