"""The index that `namedmask search` asks: made once of a run's vectors, kept in the run folder.

`index/` holds `rows.arrow` (every row with its vector, read by row through the page cache),
`index.faiss`, and `manifest.json`, written last: of which commits it was made, its kind, how deep
it searches and the recall that was measured. For other vectors or another kind it is made again.

Whatever an index finds is scored again exactly: its codes decide what is found, not its rank.

Memory while it is made: one wave, the training rows, and the index itself (4 bytes a number when
flat or hnsw, 1 when ivfsq, 1/8 when ivfpq). Cost on 2 virtual cores: docs/results.md.
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

FLAT_ROWS = 100_000
"""Vectors up to which `auto` is flat: a query takes 35 ms at 768 numbers a vector."""

IVFSQ_ROWS = 4_000_000
"""Vectors up to which `auto` is ivfsq: 3 GB of memory at 768 numbers a vector."""


@dataclass(frozen=True)
class Kind:
    """A kind of index, and how its search is deepened until it finds enough."""

    recipe: Callable[[int, int], str]  # vectors, their length → what faiss.index_factory reads
    depths: tuple[int, ...]
    over: int  # rows asked of it over rows wanted
    fewest: int = 1  # vectors it can be made of


def _lists(count: int) -> int:
    """Return how many inverted lists: about 2 √N, so that training and adding cost minutes."""
    return int(2 ** round(math.log2(2 * math.sqrt(count))))


def _codes(dim: int) -> int:
    """Return how many bytes stand for a vector: one for 8 numbers, or for the next that divides."""
    return next(dim // size for size in range(min(8, dim), dim + 1) if dim % size == 0)


_PROBES = (4, 8, 16, 32, 64, 128, 256, 512)

KINDS: dict[str, Kind] = {
    "flat": Kind(lambda count, dim: "Flat", (0,), over=1),
    "hnsw": Kind(lambda count, dim: "HNSW32", (64, 128, 256, 512, 1024, 2048), over=1),
    "ivfsq": Kind(lambda count, dim: f"IVF{_lists(count)},SQ8", _PROBES, over=4, fewest=1000),
    "ivfpq": Kind(
        lambda count, dim: f"IVF{_lists(count)},PQ{_codes(dim)}", _PROBES, over=20, fewest=1000
    ),
}


class Rows:
    """Every row of a store in one local file, mapped: only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self.dim = reader.schema.field("embedding").type.list_size

    def __len__(self) -> int:
        return int(self._ends[-1])

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors, (N_i, D) float32 each."""
        yield from map(self._vectors, self._batches)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (U, D) float32 of the rows (U,) int64, ascending."""
        found = [np.empty((0, self.dim), np.float32)]
        for batch, places in self._by_batch(rows):
            found.append(self._vectors(batch)[places])
        return np.concatenate(found)

    def table(self, rows: np.ndarray) -> pa.Table:
        """Return sample_id, url and caption of the rows (U,) int64, in their order."""
        ascending = np.sort(rows)
        names = ["sample_id", "url", "caption"]
        parts = [
            batch.select(names).take(pa.array(places))
            for batch, places in self._by_batch(ascending)
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
    """An index and the rows it is of, ready to be asked."""

    def __init__(self, index: Any, kind: str, rows: Rows) -> None:
        self._index, self.kind, self.rows = index, kind, rows

    def deepen(self, depth: int) -> None:
        """Set how deep it searches: one of the kind's `depths`."""
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = depth
        elif self.kind != "flat":
            self._index.nprobe = min(depth, self._index.nlist)

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return scores (≤ k,) float32 and rows (≤ k,) int64, best first, for each of (C, D).

        The scores are exact; of equal ones the lower row comes first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        asked = min(k * KINDS[self.kind].over, len(self.rows))
        found = np.sort(self._index.search(queries, asked)[1], axis=1)
        return [self._best(*one, k) for one in zip(queries, found, strict=True)]

    def _best(self, query: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = found[found >= 0]  # -1 stands where an index found fewer
        scores = np.einsum("nd,d->n", self.rows.vectors(found), query)
        order = np.lexsort((found, -scores))[:k]
        return scores[order], found[order]


def no_vectors(folder: Place) -> InputError:
    """The error for a run folder with nothing to search."""
    return InputError(f"run folder {folder} has no vectors to search. Run 'namedmask embed' first.")


def kind_for(name: str, count: int) -> str:
    """Return the kind that a store of `count` vectors gets.

    `auto` goes by memory and by the time that two cores need to make it: never hnsw.

    Raises:
        ConfigError: there are too few vectors for the kind that was asked for.
    """
    by_size = "flat" if count <= FLAT_ROWS else "ivfsq" if count <= IVFSQ_ROWS else "ivfpq"
    kind = by_size if name == "auto" else name
    if count < KINDS[kind].fewest:
        raise ConfigError(
            f"search.kind is '{kind}', which takes at least {KINDS[kind].fewest:,} vectors; the "
            f"store has {count:,}. Set it to 'auto' or 'flat'."
        )
    return kind


def _refuse_device(kind: str, device: str) -> None:
    """Raise unless this faiss has an index of this kind on this device."""
    faiss = load_faiss("gpu" if device == "cuda" else "cpu")
    if device == "cuda" and kind == "hnsw":
        raise ConfigError("search.kind 'hnsw' runs on the CPU alone. Set search.device to 'cpu'.")
    if device == "cuda" and faiss.get_num_gpus() == 0:
        raise InputError("search.device is 'cuda', but faiss sees no GPU. Set it to 'cpu'.")


def _on_device(index: Any, kind: str, device: str) -> Any:
    """Return the index on `cpu` or `cuda`; never on another device than was asked for."""
    if device == "cpu":
        return index
    faiss = load_faiss("gpu")
    options = faiss.GpuClonerOptions()
    options.useFloat16 = kind == "ivfpq"  # its tables of 96 codes do not fit a block otherwise
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
