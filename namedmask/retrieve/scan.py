"""Exact top-k over vectors that arrive block by block.

A score is the float32 dot product of one row and one query, always summed in the same order. The
scores therefore do not depend on how the rows are cut into blocks, and the answer equals a full
sort of all scores, bit for bit. On the CPU, bounds.py first excludes the pairs that cannot be among
the best, because exact scores for all pairs would cost too much.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch

from namedmask.config.registry import torch_device
from namedmask.errors import InputError
from namedmask.retrieve.bounds import FloatBounds, Int8Bounds, int8_is_fast

_BLOCK_PAIRS = 1 << 22
"""Number of (row, query) pairs per block, so that their products stay in the CPU cache."""

_BLOCK_ROWS = (512, 4096)
"""Smallest and largest number of rows per block."""

_SCORED_PAIRS = 1 << 19
"""Number of pairs per exact scoring step.

It limits memory where the bounds exclude nothing, as in the first blocks or among equal vectors.
"""

_GPU_FACTOR = 8
"""Factor by which blocks on a GPU are larger than on the CPU."""

_ENOUGH_QUERIES = 256
"""Smallest number of queries for which int8 products save more time than quantization takes."""

_TOO_MANY = 0.15
"""If the int8 bounds leave more than this share of pairs, a float32 product is cheaper."""

_FLOAT_BLOCKS = 8
"""Number of blocks that use float32 bounds after the int8 bounds excluded too few pairs.

The int8 bounds are then fitted again.
"""

_MAX_ROWS = 1 << 32
_EMPTY_KEY = np.iinfo(np.int64).min


class Scan(Protocol):
    """A running top-k: `add` blocks of rows in order, then ask for the `answer`."""

    block_rows: int

    def add(self, block: np.ndarray, max_norm: float, first: int) -> None:
        """Add one block of rows.

        Args:
            block: (B, D) float32, B ≤ `block_rows`.
            max_norm: the largest L2 norm of its rows, up to rounding.
            first: the number of its first row.
        """

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32, descending, and rows (C, k') int64.

        k' is the smaller of k and the number of rows. At equal scores the lower row comes first.
        """


def new_scan(queries: np.ndarray, k: int, device: str) -> Scan:
    """Return a scan for queries (C, D) float32 on `device`: cpu, cuda or auto.

    `auto` is cuda if torch sees a GPU, else cpu.

    Raises:
        InputError: `device` is cuda and torch sees no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return CpuScan(queries, k)
    return TorchScan(queries, k, torch_device(device, "retrieve"))


def blocks(
    chunks: Iterable[np.ndarray], width: int, block_rows: int, first: int
) -> Iterator[tuple[np.ndarray, float, int]]:
    """Yield each block (B, D) float32, its largest row norm, and the number of rows yielded before.

    All blocks but the last have `block_rows` rows. All blocks share their memory, so that each
    block overwrites the previous block. Error messages count rows from `first`.

    Raises:
        InputError: a chunk has another width or type, or a vector is zero or not finite.
    """
    buffer = torch.empty((block_rows, width), dtype=torch.float32)
    filled, done = 0, 0
    for chunk in chunks:
        if (
            chunk.ndim != 2
            or chunk.shape[1] != width
            or chunk.dtype not in (np.float16, np.float32)
        ):
            raise InputError(
                f"vectors from row {first + done + filled} on are {chunk.shape} {chunk.dtype}; "
                f"expected (N, {width}) float16 or float32, as wide as the queries. Were they made "
                "by the model that embed.model names?"
            )
        start = 0
        while start < len(chunk):
            part = chunk[start : start + block_rows - filled]
            part = np.require(part, requirements=["C", "W"])  # torch accepts no other arrays
            buffer[filled : filled + len(part)].copy_(torch.from_numpy(part))
            start, filled = start + len(part), filled + len(part)
            if filled == block_rows:
                yield buffer.numpy(), largest_norm(buffer.numpy(), first + done, "row"), done
                done, filled = done + filled, 0
    if filled:
        block = buffer[:filled].numpy()
        yield block, largest_norm(block, first + done, "row"), done


def largest_norm(vectors: np.ndarray, first: int, kind: str) -> float:
    """Return the largest L2 norm of vectors (N, D) float32; 0 if N is 0.

    Error messages call vector i "`kind` `first` + i".

    Raises:
        InputError: a vector is zero or not finite, or so far from unit length that dot products
            would overflow or underflow.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    bad = np.flatnonzero(~((squares > 2.0**-100) & (squares < 2.0**126)))
    if bad.size:
        vector = vectors[bad[0]]
        fault = "not finite" if not np.isfinite(vector).all() else "far too long or too short"
        raise InputError(
            f"{kind} {first + bad[0]}: the vector is {fault if vector.any() else 'zero'}; expected "
            "unit length. Embed that image again, or drop it."
        )
    return float(np.sqrt(squares.max(initial=0)))


class CpuScan:
    """The scan on the CPU.

    `pairs_seen` is the number of all (row, query) pairs, and `pairs_scored` the number of pairs
    that the bounds did not exclude.
    """

    def __init__(self, queries: np.ndarray, k: int) -> None:
        count, width = queries.shape
        self.block_rows = int(np.clip(_BLOCK_PAIRS // max(1, count), *_BLOCK_ROWS))
        self.pairs_seen = self.pairs_scored = 0
        self._queries = torch.from_numpy(queries)
        self._best = Best(count, k, self.block_rows)
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        self._float = FloatBounds(queries, norms)
        fast = count >= _ENOUGH_QUERIES and int8_is_fast(width)
        self._int8 = Int8Bounds(queries, norms, self.block_rows) if fast else None
        self._float_blocks = 0  # blocks until the int8 bounds are tried again

    def add(self, block: np.ndarray, max_norm: float, first: int) -> None:
        """Add rows (B, D) float32; see `Scan.add`."""
        pairs = self._pairs(block, max_norm)
        self.pairs_seen += len(block) * len(self._queries)
        self.pairs_scored += len(pairs)
        for start in range(0, len(pairs), _SCORED_PAIRS):
            part = pairs[start : start + _SCORED_PAIRS]
            rows, queries = np.divmod(part, len(self._queries))
            scores = dot_products(torch.from_numpy(block), self._queries, rows, queries)
            self._best.add(queries, scores, first + rows)

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 and rows (C, k') int64; see `Scan.answer`."""
        return unpack(self._best.answer())

    def _pairs(self, block: np.ndarray, max_norm: float) -> np.ndarray:
        """Return row · C + query, ascending, of each pair that may be among the best."""
        floors = self._best.floors
        count = len(block) * len(floors)
        if not np.isfinite(floors).all():
            return np.arange(count)
        if self._int8 and not self._float_blocks:
            pairs = self._int8.pairs(block, max_norm, floors)
            if len(pairs) <= _TOO_MANY * count:
                return pairs
            self._float_blocks = _FLOAT_BLOCKS
            self._int8.reset()
        self._float_blocks = max(0, self._float_blocks - 1)
        return self._float.pairs(block, max_norm, floors)


def dot_products(
    block: torch.Tensor, queries: torch.Tensor, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Return (P,) float32: the dot products of `block[rows[p]]` and `queries[columns[p]]`.

    Each product is summed on its own, so it does not depend on the other pairs.

    Args:
        block, queries: (B, D) and (C, D) float32.
        rows, columns: (P,) int64, ordered by row, then by column.
    """
    starts = np.searchsorted(rows, np.arange(len(block) + 1))
    with warnings.catch_warnings():  # "sparse CSR is in beta"; tests check the results
        warnings.simplefilter("ignore", UserWarning)
        wanted = torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(columns),
            torch.from_numpy(np.zeros(len(columns), np.float32)),
            size=(len(block), len(queries)),
            check_invariants=False,
        )
        products = torch.sparse.sampled_addmm(wanted, block, queries.T, beta=0.0)
    scores: np.ndarray = products.values().numpy()
    return scores


class Best:
    """The best rows of each query so far, as unordered keys (see `pack`).

    Only a score above the floor of its query, in `floors` (C,) float32, can still be among the
    best. A score equal to the floor loses the tie, because row numbers only grow.
    """

    def __init__(self, count: int, k: int, block_rows: int) -> None:
        self._k, self._spare = k, max(64, k // 4)
        self._keys = np.full((count, k + self._spare + block_rows), _EMPTY_KEY)
        self._filled = np.zeros(count, np.int64)
        self.floors = np.full(count, -np.inf, np.float32)

    def add(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        """Add the scores (P,) float32 of pairs of `queries` (P,) and `rows` (P,), both int64.

        All rows are in the same block, and no pair occurs twice.
        """
        keep = scores > self.floors[queries]
        queries, keys = queries[keep], pack(scores[keep], rows[keep])
        counts = np.bincount(queries, minlength=len(self.floors))
        starts = np.cumsum(counts) - counts
        small = queries.astype(np.uint16) if len(counts) < 1 << 16 else queries
        order = np.argsort(small, kind="stable")  # uint16: NumPy uses a radix sort
        queries = queries[order]
        places = np.arange(len(queries)) - starts[queries] + self._filled[queries]
        self._keys[queries, places] = keys[order]
        self._filled += counts
        limits = np.where(np.isneginf(self.floors), self._k, self._k + self._spare)
        self._drop(np.flatnonzero(self._filled >= limits))

    def answer(self) -> np.ndarray:
        """Return keys (C, k') int64, descending."""
        count = int(self._filled.max(initial=0))
        return np.sort(self._keys[:, :count], axis=1)[:, ::-1][:, : self._k]

    def _drop(self, queries: np.ndarray) -> None:
        """Drop all but the k best rows of these queries, and raise the floors to the k-th score."""
        if not len(queries):
            return
        width = int(self._filled[queries].max())
        best = np.partition(self._keys[queries, :width], width - self._k, axis=1)[:, -self._k :]
        self._keys[queries, : self._k] = best
        self._keys[queries, self._k : width] = _EMPTY_KEY
        self._filled[queries] = self._k
        self.floors[queries] = unpack(best.min(axis=1))[0]


def pack(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (P,) int64 keys that order pairs by float32 score and, at equal scores, by row.

    The best pair has the largest key.

    Raises:
        InputError: a row number does not fit into 32 bits.
    """
    if len(rows) and rows.max() >= _MAX_ROWS:
        raise InputError(
            f"one scan takes at most {_MAX_ROWS:,} vectors; got more. Scan parts of the files, "
            "each with its own `first`, and merge the answers with merge_top_k."
        )
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0 becomes 0
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys: np.ndarray = (ordered << 32) | (_MAX_ROWS - 1 - rows)
    return keys


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the float32 scores and int64 rows of keys from `pack`, each in the keys' shape."""
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return bits.view(np.float32), _MAX_ROWS - 1 - (keys & (_MAX_ROWS - 1))


class TorchScan:
    """The scan on a GPU; each block takes a full float32 product of a fixed shape, then a top-k."""

    def __init__(self, queries: np.ndarray, k: int, device: torch.device) -> None:
        pairs = _GPU_FACTOR * _BLOCK_PAIRS
        high = _GPU_FACTOR * _BLOCK_ROWS[1]
        self.block_rows = int(np.clip(pairs // max(1, len(queries)), _BLOCK_ROWS[0], high))
        self._queries = torch.from_numpy(queries).to(device)
        self._padded = torch.zeros((self.block_rows, queries.shape[1]), device=device)
        self._keys = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
        self._k = k

    def add(self, block: np.ndarray, max_norm: float, first: int) -> None:
        """Add rows (B, D) float32; see `Scan.add`."""
        self._padded[: len(block)] = torch.from_numpy(block).to(self._padded.device)
        scores = self._product()[:, : len(block)].contiguous()
        bits = (scores + 0.0).view(torch.int32).to(torch.int64)
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        rows = torch.arange(first, first + len(block), device=scores.device)
        keys = torch.cat([self._keys, (ordered << 32) | (_MAX_ROWS - 1 - rows)], dim=1)
        self._keys = keys.topk(min(self._k, keys.shape[1]), dim=1).values

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 and rows (C, k') int64; see `Scan.answer`."""
        return unpack(self._keys.cpu().numpy())

    def _product(self) -> torch.Tensor:
        """Return scores (C, B) float32, computed without TF32, even if TF32 is enabled globally."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return self._queries @ self._padded.T
        finally:
            torch.set_float32_matmul_precision(before)
