"""Vectors, block by block → the best rows of each query, exactly, for less than the full product.

Every score that counts is the plain float32 dot product of one row and one query, summed in one
fixed order whatever stands beside them: so the answer is a full sort of those scores, bit for bit
the same however the rows are cut. That costs too much for every pair; screens.py goes before it
and leaves the pairs that may still be among the best.
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
"""Pairs of a row and a query looked at together: what they need stays near the processor."""

_BLOCK_ROWS = (512, 4096)

_SCORED_PAIRS = 1 << 19
"""Pairs scored at once; of the first blocks, and of vectors all alike, no pair is out."""

_ON_CARD = 8
"""A graphics card takes blocks this much larger."""

_ENOUGH_QUERIES = 256
"""From here on the faster product outweighs making whole numbers of the rows."""

_TOO_MANY = 0.15
"""Share of pairs from which on a float32 product is cheaper than a dot product of each."""

_REST_BLOCKS = 8
"""Blocks for which a screen that let too much through is left out; then it is fitted again."""

_MAX_ROWS = 1 << 32
_NOTHING = np.iinfo(np.int64).min


class Scan(Protocol):
    """What takes blocks of rows in order and answers with the best."""

    block_rows: int

    def add(self, block: np.ndarray, longest: float, first: int) -> None:
        """Take rows `first`… (B, D) float32, B ≤ `block_rows`, none longer than `longest`."""

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 descending and rows (C, k') int64, ties by lower row."""


def new_scan(queries: np.ndarray, k: int, device: str) -> Scan:
    """Return a scan for queries (C, D) float32 on `device`: cpu, cuda, or auto: cuda if there.

    Raises:
        InputError: `cuda` is asked for and torch sees none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return CpuScan(queries, k)
    return TorchScan(queries, k, torch_device(device, "retrieve"))


def blocks(
    chunks: Iterable[np.ndarray], width: int, block_rows: int, first: int
) -> Iterator[tuple[np.ndarray, float, int]]:
    """Yield all rows as (B, D) float32 blocks, their greatest norm, and how many came before.

    All but the last have `block_rows` rows; each is overwritten by the next. Messages count rows
    from `first`.

    Raises:
        InputError: a chunk of another width or type; a vector that is zero or not finite.
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
            part = np.require(part, requirements=["C", "W"])  # torch takes no other array
            buffer[filled : filled + len(part)].copy_(torch.from_numpy(part))
            start, filled = start + len(part), filled + len(part)
            if filled == block_rows:
                yield buffer.numpy(), longest(buffer.numpy(), first + done, "row"), done
                done, filled = done + filled, 0
    if filled:
        block = buffer[:filled].numpy()
        yield block, longest(block, first + done, "row"), done


def longest(vectors: np.ndarray, first: int, kind: str) -> float:
    """Return the greatest norm of vectors (N, D) float32, 0 of none.

    Raises:
        InputError: one is zero or not finite, or so far from unit length that products of two would
            overflow or vanish.
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    bad = np.flatnonzero(~((squares > 2.0**-100) & (squares < 2.0**126)))
    if bad.size:
        vector = vectors[bad[0]]
        what = "not finite" if not np.isfinite(vector).all() else "far too long or too short"
        raise InputError(
            f"{kind} {first + bad[0]}: the vector is {what if vector.any() else 'zero'}; expected "
            "unit length. Embed that image again, or drop it."
        )
    return float(np.sqrt(squares.max(initial=0)))


class CpuScan:
    """The scan on the processor. `screened` and `scored` count pairs, `scored` those not out."""

    def __init__(self, queries: np.ndarray, k: int) -> None:
        count, width = queries.shape
        self.block_rows = int(np.clip(_BLOCK_PAIRS // max(1, count), *_BLOCK_ROWS))
        self.screened = self.scored = 0
        self._queries = torch.from_numpy(queries)
        self._best = Best(count, k, self.block_rows)
        norms = np.linalg.norm(queries.astype(np.float64), axis=1)
        self._float = FloatBounds(queries, norms)
        fast = count >= _ENOUGH_QUERIES and int8_is_fast(width)
        self._int8 = Int8Bounds(queries, norms, self.block_rows) if fast else None
        self._rest = 0

    def add(self, block: np.ndarray, longest: float, first: int) -> None:
        """Take rows (B, D) float32; see `Scan`."""
        pairs = self._pairs(block, longest)
        self.screened += len(block) * len(self._queries)
        self.scored += len(pairs)
        for start in range(0, len(pairs), _SCORED_PAIRS):
            part = pairs[start : start + _SCORED_PAIRS]
            rows, queries = np.divmod(part, len(self._queries))
            scores = dot_products(torch.from_numpy(block), self._queries, rows, queries)
            self._best.add(queries, scores, first + rows)

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 descending and rows (C, k') int64, ties by lower row."""
        return unpack(self._best.answer())

    def _pairs(self, block: np.ndarray, longest: float) -> np.ndarray:
        """Return row · C + query, ascending, of every pair that may be among the best."""
        floors = self._best.floors
        count = len(block) * len(floors)
        if not np.isfinite(floors).all():
            return np.arange(count)
        if self._int8 and not self._rest:
            pairs = self._int8.pairs(block, longest, floors)
            if len(pairs) <= _TOO_MANY * count:
                return pairs
            self._rest = _REST_BLOCKS
            self._int8.forget()
        self._rest = max(0, self._rest - 1)
        return self._float.pairs(block, longest, floors)


def dot_products(
    block: torch.Tensor, queries: torch.Tensor, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Return (P,) float32 dot products of row `rows[p]` of block and `columns[p]` of queries.

    Args:
        block, queries: (B, D) and (C, D) float32.
        rows, columns: (P,) int64, ordered by row, then by column.

    One after the other, each summed along its own two vectors: a result knows nothing of the rest.
    """
    starts = np.searchsorted(rows, np.arange(len(block) + 1))
    with warnings.catch_warnings():  # "sparse CSR is in beta"; the tests hold it to what is said
        warnings.simplefilter("ignore", UserWarning)
        wanted = torch.sparse_csr_tensor(
            torch.from_numpy(starts),
            torch.from_numpy(columns),
            torch.from_numpy(np.zeros(len(columns), np.float32)),
            size=(len(block), len(queries)),
            check_invariants=False,
        )
        found = torch.sparse.sampled_addmm(wanted, block, queries.T, beta=0.0)
    scores: np.ndarray = found.values().numpy()
    return scores


class Best:
    """The best of every query so far, unordered, as keys; see `pack`.

    `floors` (C,) float32: a score not above it is too late. Rows only grow, so an equal one is.
    """

    def __init__(self, count: int, k: int, block_rows: int) -> None:
        self._k, self._spare = k, max(64, k // 4)
        self._keys = np.full((count, k + self._spare + block_rows), _NOTHING)
        self._filled = np.zeros(count, np.int64)
        self.floors = np.full(count, -np.inf, np.float32)

    def add(self, queries: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
        """Take scores (P,) float32 of pairs: each query with a row of the block at most once."""
        keep = scores > self.floors[queries]
        queries, keys = queries[keep], pack(scores[keep], rows[keep])
        counts = np.bincount(queries, minlength=len(self.floors))
        starts = np.cumsum(counts) - counts
        small = queries.astype(np.uint16) if len(counts) < 1 << 16 else queries
        order = np.argsort(small, kind="stable")  # of two bytes a radix sort
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
        """Keep only the k best of these queries and raise their floors."""
        if not len(queries):
            return
        width = int(self._filled[queries].max())
        kept = np.partition(self._keys[queries, :width], width - self._k, axis=1)[:, -self._k :]
        self._keys[queries, : self._k] = kept
        self._keys[queries, self._k : width] = _NOTHING
        self._filled[queries] = self._k
        self.floors[queries] = unpack(kept.min(axis=1))[0]


def pack(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return int64 keys that ascend with the float32 score and, of equal ones, with earlier rows.

    Raises:
        InputError: a row does not fit into 32 bits.
    """
    if len(rows) and rows.max() >= _MAX_ROWS:
        raise InputError(
            f"one scan takes {_MAX_ROWS:,} vectors; got more. Scan parts of the files with `first` "
            "and put the answers together with merge_top_k."
        )
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0 becomes 0
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys: np.ndarray = (ordered << 32) | (_MAX_ROWS - 1 - rows)
    return keys


def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 scores and int64 rows of keys that `pack` made, in their shape."""
    ordered = keys >> 32
    bits = np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32)
    return bits.view(np.float32), _MAX_ROWS - 1 - (keys & (_MAX_ROWS - 1))


class TorchScan:
    """The scan on a graphics card: the full float32 product, always of one shape, and a top-k."""

    def __init__(self, queries: np.ndarray, k: int, device: torch.device) -> None:
        pairs = _ON_CARD * _BLOCK_PAIRS
        high = _ON_CARD * _BLOCK_ROWS[1]
        self.block_rows = int(np.clip(pairs // max(1, len(queries)), _BLOCK_ROWS[0], high))
        self._queries = torch.from_numpy(queries).to(device)
        self._padded = torch.zeros((self.block_rows, queries.shape[1]), device=device)
        self._keys = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
        self._k = k

    def add(self, block: np.ndarray, longest: float, first: int) -> None:
        """Take rows (B, D) float32; see `Scan`."""
        self._padded[: len(block)] = torch.from_numpy(block).to(self._padded.device)
        scores = self._product()[:, : len(block)].contiguous()
        bits = (scores + 0.0).view(torch.int32).to(torch.int64)
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        rows = torch.arange(first, first + len(block), device=scores.device)
        keys = torch.cat([self._keys, (ordered << 32) | (_MAX_ROWS - 1 - rows)], dim=1)
        self._keys = keys.topk(min(self._k, keys.shape[1]), dim=1).values

    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 descending and rows (C, k') int64, ties by lower row."""
        return unpack(self._keys.cpu().numpy())

    def _product(self) -> torch.Tensor:
        """Return scores (C, B) float32; what allows TF32 elsewhere does not count here."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return self._queries @ self._padded.T
        finally:
            torch.set_float32_matmul_precision(before)
