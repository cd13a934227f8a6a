"""Search with a user's FAISS index instead of the exact scan: `retrieve.backend = "faiss"`.

The index finds the rows, and each row is scored again with its vector from the store. The scores
are therefore exact, but rows that the index does not find are missing from the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from namedmask.config import RetrieveConfig
from namedmask.errors import ConfigError, InputError, MissingExtraError
from namedmask.retrieve.vectors import FilePart, TopK, VectorStore, file_parts
from namedmask.storage import Place, place_of
from namedmask.storage.place import fetched

_PAIRS = 8192
"""Number of (query, row) pairs per scoring step."""


def load_faiss(extra: str = "cpu") -> Any:
    """Return the module `faiss`.

    Raises:
        MissingExtraError: faiss is not installed, or `extra` is "gpu" and faiss is the CPU build.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            f"a search index needs faiss, which is not installed: {error}. "
            f"Run: pip install 'namedmask[{extra}]'"
        ) from error
    if extra == "gpu" and not hasattr(faiss, "StandardGpuResources"):
        raise MissingExtraError(
            "search.device is 'cuda', but the installed faiss is the CPU build. "
            "Run: pip install 'namedmask[gpu]', or set search.device to 'cpu'."
        )
    return faiss


def read_index(place: Place) -> Any:
    """Return the index in a file. Inverted lists are memory-mapped, not loaded.

    A file on S3 is downloaded to the system's temporary folder first.

    Raises:
        InputError: the file does not exist or is not a FAISS index.
        MissingExtraError: faiss is not installed.
    """
    faiss = load_faiss()
    try:
        with fetched(place) as path:
            if not path.is_file():
                raise FileNotFoundError
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except FileNotFoundError:
        raise InputError(f"FAISS index {place} does not exist. Check retrieve.index.") from None
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{place} cannot be read as a FAISS index: {reason}") from error


def index_top_k(
    index: Any, chunks: Iterable[np.ndarray], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` rows per query that the index finds, with exact scores.

    Args:
        index: a FAISS index over all rows, by inner product or by L2. Both metrics rank unit
            vectors in the same order.
        chunks: the vectors, arrays (N_i, D) float16 or float32, in the row order of the index.
        queries: (C, D) float32.
        k: number of rows to request from the index per query.

    Returns:
        scores (C, min(k, N)) float32, descending, and rows (C, min(k, N)) int64, as from
        `exact_top_k`. At equal scores the lower row comes first, but if several rows tie for the
        last place, the index chooses which of them to return.

    Raises:
        InputError: the index finds too few rows, or rows that do not exist, or a vector is not
            finite.
    """
    rows = _rows_from(index, queries, k)
    scores = _scores_of(chunks, queries, rows)
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _rows_from(index: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (C, min(k, N)) int64 that the index finds for each query, best first."""
    k = min(k, index.ntotal)
    if k == 0:
        return np.empty((len(queries), 0), np.int64)
    _, rows = index.search(np.ascontiguousarray(queries, np.float32), k)
    short = np.flatnonzero((rows < 0).any(axis=1))
    if short.size:
        raise InputError(
            f"retrieve.index finds {(rows[short[0]] >= 0).sum():,} rows for query {short[0]}; "
            f"expected {k:,}. Raise retrieve.nprobe, or lower retrieve.candidates."
        )
    if rows.max() >= index.ntotal:
        raise InputError(
            f"retrieve.index names row {rows.max():,}, but has {index.ntotal:,} vectors. It was "
            "made with ids of its own. Make it again without ids, in the order of the store's rows."
        )
    result: np.ndarray = rows
    return result


def _scores_of(chunks: Iterable[np.ndarray], queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the inner products (C, k) float32 of each query with each of its rows (C, k)."""
    k = rows.shape[1]
    order = np.argsort(rows, axis=None, kind="stable")
    wanted = rows.ravel()[order]
    scores = np.empty(rows.size, np.float32)
    first = 0
    for chunk in chunks:
        begin, end = np.searchsorted(wanted, [first, first + len(chunk)])
        for start in range(begin, end, _PAIRS):
            part = slice(start, min(start + _PAIRS, end))
            vectors = chunk[wanted[part] - first].astype(np.float32, copy=False)
            scores[order[part]] = np.einsum("nd,nd->n", vectors, queries[order[part] // k])
        first += len(chunk)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise InputError(
            f"row {rows.ravel()[bad[0]]}: the vector is not finite. Embed that image again, or "
            "drop it."
        )
    return scores.reshape(rows.shape)


class IndexTopK:
    """A search of the whole store with `retrieve.index`.

    `queries` are (C, D) float32; `count` is the number of vectors in the store.
    """

    def __init__(self, config: RetrieveConfig, queries: np.ndarray, count: int) -> None:
        self._config, self._queries, self._count = config, queries, count

    def __call__(self, part: FilePart) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k) float32 and rows (C, k) int64; `part` must be the whole store.

        Raises:
            InputError: the index does not fit the store or the queries; see also `index_top_k`.
        """
        place = place_of(self._config.index)
        index = read_index(place)
        self._refuse_mismatch(index, next(part.chunks(), None))
        if self._config.nprobe:
            _set_nprobe(index, self._config.nprobe)
        return index_top_k(index, part.chunks(), self._queries, self._config.candidates)

    def _refuse_mismatch(self, index: Any, vectors: np.ndarray | None) -> None:
        """Raise InputError unless the index fits the store and the queries.

        `vectors` is the first chunk of the store, or None if the store is empty.
        """
        place = self._config.index
        if index.ntotal != self._count:
            raise InputError(
                f"{place} has {index.ntotal:,} vectors, the store {self._count:,}. Name the index "
                "of this store in retrieve.index, or set retrieve.backend to 'exact'."
            )
        widths = {self._queries.shape[1]} | ({vectors.shape[1]} if vectors is not None else set())
        if widths != {index.d}:
            raise InputError(
                f"{place} has vectors of {index.d} numbers; the store and the queries have "
                f"{', '.join(map(str, sorted(widths)))}. Make it with the model in embed.model."
            )
        faiss = load_faiss()
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            raise InputError(
                f"{place} uses FAISS metric {index.metric_type}; expected inner product or L2. "
                "Make the index again with one of these."
            )


def _set_nprobe(index: Any, nprobe: int) -> None:
    try:
        load_faiss().ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    except RuntimeError as error:
        raise InputError(
            f"retrieve.nprobe is {nprobe}, but retrieve.index is no IVF index. Set nprobe to 0."
        ) from error


Scan = Callable[[FilePart], tuple[np.ndarray, np.ndarray]]


def scan_of(
    config: RetrieveConfig, store: VectorStore, queries: np.ndarray, parts: int
) -> tuple[Callable[[], Scan], list[FilePart]]:
    """Return a factory for the scan of `retrieve.backend`, and the parts of the store to scan.

    Raises:
        ConfigError: `retrieve.backend` is faiss and `retrieve.index` is empty.
    """
    if config.backend == "exact":
        return partial(TopK, queries, config.candidates), file_parts(store, parts)
    if not config.index:
        raise ConfigError(
            "retrieve.backend is 'faiss', but retrieve.index names no file. Name a FAISS index of "
            "the store's vectors, or set retrieve.backend to 'exact'."
        )
    count = sum(rows for _, _, rows in store.files())
    return partial(IndexTopK, config, queries, count), file_parts(store, 1)
