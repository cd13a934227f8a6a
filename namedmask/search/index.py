"""The index of `namedmask search`: its kinds, its rows on disk, and the search.

make.py makes the index once per set of vectors. The rows that the index finds are scored again from
their exact vectors. Compressed codes can therefore lose rows, but cannot change scores or their
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask.errors import ConfigError, InputError
from namedmask.retrieve.faiss_index import load_faiss
from namedmask.storage import Place

RECALL_AT = 50
"""Number of best rows per query over which the recall is measured."""

FLAT_ROWS = 100_000
"""Largest number of vectors for which `auto` is flat (35 ms per query at width 768)."""

IVFSQ_ROWS = 4_000_000
"""Largest number of vectors for which `auto` is ivfsq (3 GB of memory at width 768)."""


@dataclass(frozen=True)
class Kind:
    """A kind of index, and the search depths that are tried until the recall is reached."""

    recipe: Callable[[int, int], str]  # (count, width) → argument of faiss.index_factory
    depths: tuple[int, ...]  # efSearch of hnsw or nprobe of ivf, ascending
    overfetch: int  # number of rows requested and scored exactly, per row wanted
    min_vectors: int = 1


def num_lists(count: int) -> int:
    """Return the number of inverted lists for `count` vectors, a power of two near 2 √count.

    With this number of lists, training and filling the index takes minutes.
    """
    return int(2 ** round(math.log2(2 * math.sqrt(count))))


def _codes(dim: int) -> int:
    """Return the number of one-byte codes per vector of `dim` numbers.

    A code stands for 8 numbers, or for the next larger count that divides `dim`.
    """
    return next(dim // size for size in range(min(8, dim), dim + 1) if dim % size == 0)


_PROBES = (4, 8, 16, 32, 64, 128, 256, 512)

KINDS: dict[str, Kind] = {
    "flat": Kind(lambda count, dim: "Flat", (0,), overfetch=1),
    "hnsw": Kind(lambda count, dim: "HNSW32", (64, 128, 256, 512, 1024, 2048), overfetch=1),
    "ivfsq": Kind(
        lambda count, dim: f"IVF{num_lists(count)},SQ8", _PROBES, overfetch=4, min_vectors=1000
    ),
    "ivfpq": Kind(
        lambda count, dim: f"IVF{num_lists(count)},PQ{_codes(dim)}",
        _PROBES,
        overfetch=20,
        min_vectors=1000,
    ),
}
"""The kinds of index, by the name that `search.kind` gives."""


class Rows:
    """All rows of a store in one memory-mapped local file; only requested rows are read."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self.dim = reader.schema.field("embedding").type.list_size

    def __len__(self) -> int:
        return int(self._ends[-1])

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors in row order, as arrays (N_i, D) float32, unit L2 norm."""
        yield from map(self._vectors, self._batches)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (U, D) float32 of `rows` (U,) int64, which must be ascending."""
        parts = [np.empty((0, self.dim), np.float32)]
        for batch, offsets in self._by_batch(rows):
            parts.append(self._vectors(batch)[offsets])
        return np.concatenate(parts)

    def table(self, rows: np.ndarray) -> pa.Table:
        """Return sample_id, url and caption of `rows` (U,) int64, in the given order."""
        ascending = np.sort(rows)
        names = ["sample_id", "url", "caption"]
        parts = [
            batch.select(names).take(pa.array(offsets))
            for batch, offsets in self._by_batch(ascending)
        ]
        return pa.Table.from_batches(parts).take(np.searchsorted(ascending, rows))

    def _by_batch(self, rows: np.ndarray) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            first = self._ends[number - 1] if number else 0
            yield self._batches[number], rows[numbers == number] - first

    def _vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        flat: np.ndarray = batch.column("embedding").flatten().to_numpy()
        return flat.reshape(-1, self.dim)


class SearchIndex:
    """A FAISS index with the rows that it was made of."""

    def __init__(self, index: Any, kind: str, rows: Rows) -> None:
        self._index, self.kind, self.rows = index, kind, rows

    def set_depth(self, depth: int) -> None:
        """Set the search depth, one of the kind's `depths`; a larger depth is slower and better."""
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = depth
        elif self.kind != "flat":
            self._index.nprobe = min(depth, self._index.nlist)

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return, per query, scores (≤ k,) float32 and rows (≤ k,) int64, best first.

        `queries` are (C, D) float32, unit L2 norm. The scores are exact. At equal scores the lower
        row comes first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        count = min(k * KINDS[self.kind].overfetch, len(self.rows))
        found = np.sort(self._index.search(queries, count)[1], axis=1)
        return [self._best(query, rows, k) for query, rows in zip(queries, found, strict=True)]

    def _best(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rows[rows >= 0]  # FAISS returns -1 for rows that it did not find
        scores = np.einsum("nd,d->n", self.rows.vectors(rows), query)
        order = np.lexsort((rows, -scores))[:k]
        return scores[order], rows[order]


def no_vectors(folder: Place) -> InputError:
    """Return the error for a run folder that has nothing to search."""
    return InputError(f"run folder {folder} has no vectors to search. Run 'namedmask embed' first.")


def kind_for(name: str, count: int) -> str:
    """Return the kind of index for a store of `count` vectors; `name` is a kind or `auto`.

    `auto` chooses by memory and by the time that two cores need to make the index. It never
    chooses hnsw.

    Raises:
        ConfigError: the store has too few vectors for this kind.
    """
    by_size = "flat" if count <= FLAT_ROWS else "ivfsq" if count <= IVFSQ_ROWS else "ivfpq"
    kind = by_size if name == "auto" else name
    if count < KINDS[kind].min_vectors:
        raise ConfigError(
            f"search.kind is '{kind}', which needs at least {KINDS[kind].min_vectors:,} vectors; "
            f"the store has {count:,}. Set search.kind to 'auto' or 'flat'."
        )
    return kind


def refuse_device(kind: str, device: str) -> None:
    """Raise unless the installed faiss can use an index of this kind on this device.

    Raises:
        ConfigError: the kind has no version for a GPU.
        InputError: faiss sees no GPU.
        MissingExtraError: faiss is not installed, or is the CPU build.
    """
    faiss = load_faiss("gpu" if device == "cuda" else "cpu")
    if device == "cuda" and kind == "hnsw":
        raise ConfigError("search.kind 'hnsw' runs only on a CPU. Set search.device to 'cpu'.")
    if device == "cuda" and faiss.get_num_gpus() == 0:
        raise InputError(
            "search.device is 'cuda', but faiss sees no GPU. Set search.device to 'cpu'."
        )


def on_device(index: Any, kind: str, device: str) -> Any:
    """Return the index on `device`, `cpu` or `cuda`; there is no fallback to the CPU."""
    if device == "cpu":
        return index
    faiss = load_faiss("gpu")
    options = faiss.GpuClonerOptions()
    # the float32 tables of 96 codes do not fit into the shared memory of a thread block
    options.useFloat16 = kind == "ivfpq"
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
