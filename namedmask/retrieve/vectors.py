"""The vectors that retrieval scans, either the run's own or published ones, cut into parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from namedmask.config import Config
from namedmask.retrieve.published import PublishedStore, VectorFile
from namedmask.retrieve.top_k import exact_top_k
from namedmask.run.ledger import Ledger
from namedmask.run.stores import EmbeddingStore, read_vectors
from namedmask.storage import Place, place_of

VectorStore: TypeAlias = EmbeddingStore | PublishedStore


def open_vectors(config: Config, ledger: Ledger) -> VectorStore:
    """Return the run's own vectors, or the published ones if `vectors.source` is set.

    Raises:
        InputError: the published files do not agree; see PublishedStore.
    """
    if not config.vectors.source:
        return EmbeddingStore(ledger)
    return PublishedStore(place_of(config.vectors.source), config.metadata)


@dataclass(frozen=True)
class FilePart:
    """Consecutive files of vectors, and the row number of their first vector in the store."""

    paths: Sequence[Place | VectorFile]
    first: int

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors of the files in order, as arrays (N_i, D) float16 or float32."""
        for path in self.paths:
            if isinstance(path, VectorFile):
                yield from path.chunks()
            else:
                yield read_vectors(path)


def file_parts(store: VectorStore, count: int) -> list[FilePart]:
    """Return the store's files as at most `count` parts with about equal numbers of files."""
    files = [(path, first) for path, first, rows in store.files() if rows]
    size = max(1, math.ceil(len(files) / count))
    cut = [files[start : start + size] for start in range(0, len(files), size)]
    return [FilePart([path for path, _ in part], part[0][1]) for part in cut] or [FilePart([], 0)]


class TopK:
    """A search for the `k` best rows of a part of the store per query; see `exact_top_k`.

    `queries` are (C, D) float32.
    """

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self._queries, self._k = queries, k

    def __call__(self, part: FilePart) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k') float32 and rows (C, k') int64, numbered within the whole store."""
        return exact_top_k(part.chunks(), self._queries, self._k, part.first)
