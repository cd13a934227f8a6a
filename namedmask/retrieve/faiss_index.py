"""A FAISS index file, whoever made it, in place of the exact scan: `retrieve.backend = "faiss"`.

The index finds rows approximately; what a row scores is computed from its vector in the store. So
an answer has exact scores and may lack rows.
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
"""Vectors gathered at once to be scored again."""


def load_faiss(extra: str = "cpu") -> Any:
    """Return the module faiss.

    Raises:
        MissingExtraError: it is not installed, or it is the CPU build where `extra` is "gpu".
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            f"an index needs faiss, which is not installed: {error}. "
            f"Run: pip install 'namedmask[{extra}]'"
        ) from error
    if extra == "gpu" and not hasattr(faiss, "StandardGpuResources"):
        raise MissingExtraError(
            "search.device is 'cuda', but faiss here is the CPU build. "
            "Run: pip install 'namedmask[gpu]', or set search.device to 'cpu'."
        )
    return faiss


def read_index(place: Place) -> Any:
    """Return the index in a file; inverted lists stay on the disk and are read as they are asked.

    A file on S3 is downloaded to the system's temporary folder first.

    Raises:
        InputError: there is no such file, or it is no FAISS index.
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
    """Return what retrieve.exact_top_k would, of the rows that the index finds.

    Args:
        index: of faiss, over all rows; by inner product, or by L2, which ranks unit vectors alike.
        chunks: the vectors, arrays (N_i, D) float16 or float32, in the order of the index.
        queries: (C, D) float32.
        k: rows asked of the index for each query.

    Returns:
        scores (C, min(k, N)) float32, descending, and rows (C, min(k, N)) int64; of equal scores
        the lower row comes first. Which of the rows that tie with the last are among them is the
        index's choice.

    Raises:
        InputError: the index finds fewer rows, or rows that are none; a vector is not finite.
    """
    rows = _found(index, queries, k)
    scores = _scores_of(chunks, queries, rows)
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _found(index: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the rows (C, min(k, N)) int64 that an index finds for each query, best first."""
    k = min(k, index.ntotal)
    if k == 0:
        return np.empty((len(queries), 0), np.int64)
    _, rows = index.search(np.ascontiguousarray(queries, np.float32), k)
    short = np.flatnonzero((rows < 0).any(axis=1))
    if short.size:
        raise InputError(
            f"the index finds {(rows[short[0]] >= 0).sum():,} rows for query {short[0]}; expected "
            f"{k:,}. Raise retrieve.nprobe, or lower retrieve.candidates."
        )
    if rows.max() >= index.ntotal:
        raise InputError(
            f"the index names row {rows.max():,} of {index.ntotal:,}: it was made with ids of its "
            "own. Make it again without ids, in the order of the store's rows."
        )
    return rows


def _scores_of(chunks: Iterable[np.ndarray], queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the inner product (C, k) float32 of each query with each of its rows (C, k)."""
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
    """The best rows of a whole store for all queries, as `retrieve.index` finds them."""

    def __init__(self, config: RetrieveConfig, queries: np.ndarray, count: int) -> None:
        self._config, self._queries, self._count = config, queries, count

    def __call__(self, part: FilePart) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k) float32 and rows (C, k) int64; `part` is the whole store.

        Raises:
            InputError: the index is not of these vectors; see also `index_top_k`.
        """
        place = place_of(self._config.index)
        index = read_index(place)
        self._refuse_others(index, next(part.chunks(), None))
        if self._config.nprobe:
            _set_nprobe(index, self._config.nprobe)
        return index_top_k(index, part.chunks(), self._queries, self._config.candidates)

    def _refuse_others(self, index: Any, vectors: np.ndarray | None) -> None:
        place = self._config.index
        if index.ntotal != self._count:
            raise InputError(
                f"{place} has {index.ntotal:,} vectors, the store {self._count:,}. Give the index "
                "that was made of this store, or set retrieve.backend to 'exact'."
            )
        widths = {self._queries.shape[1]} | ({vectors.shape[1]} if vectors is not None else set())
        if widths != {index.d}:
            raise InputError(
                f"{place} has vectors of {index.d} numbers; the store and the queries have "
                f"{', '.join(map(str, sorted(widths)))}. Was it made with the model in embed.model?"
            )
        faiss = load_faiss()
        if index.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
            raise InputError(
                f"{place} measures by FAISS metric {index.metric_type}; expected inner product or "
                "L2. Make it again with one of these."
            )


def _set_nprobe(index: Any, nprobe: int) -> None:
    try:
        load_faiss().ParameterSpace().set_index_parameter(index, "nprobe", nprobe)
    except RuntimeError as error:
        raise InputError(
            f"retrieve.nprobe is {nprobe}, but retrieve.index is no IVF index. Set it to 0."
        ) from error


Scan = Callable[[FilePart], tuple[np.ndarray, np.ndarray]]


def scan_of(
    config: RetrieveConfig, store: VectorStore, queries: np.ndarray, parts: int
) -> tuple[Callable[[], Scan], list[FilePart]]:
    """Return what makes the scan of `retrieve.backend`, and the parts of the store it is given.

    Raises:
        ConfigError: the backend is faiss and no index is named.
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
