"""Published vectors in clip-retrieval's layout, read in byte ranges without loading whole files.

`<folder>/img_emb/img_emb_0.npy`: (N, D) float16 or float32, about unit L2 norm.
`<folder>/metadata/metadata_0.parquet`: the N rows of these vectors, in the same order, with the
column `url` and the columns that the filters of `metadata` need.

With published vectors, only candidate images are downloaded.

A file of vectors and a table belong together if their names end in the same number. Row numbers
continue from file to file, in the order of these numbers. All headers and footers are checked
before any vector is read.

A scan uses the stored vectors without normalizing them, because rounding to float16 changes a norm
by at most 1e-4. `take` and `tables` return vectors that are normalized in float32.

Cost: a few small requests per opened file, and one read of all its bytes per scan. For candidates,
`take` reads single vectors, and the needed metadata columns of each row group that contains a
candidate; for LAION-5B these are most row groups.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask import schema
from namedmask.config import MetadataConfig, PoolSection
from namedmask.errors import InputError
from namedmask.metadata import clean as metadata
from namedmask.storage import Place
from namedmask.storage.files import digest
from namedmask.storage.place import READERS, opened, readable
from namedmask.storage.read_ahead import prefetch_one

RANGE_BYTES = 32 << 20
"""Bytes of vectors per request in a scan."""

GAP_BYTES = 64 << 10
"""Largest gap, in bytes, between two wanted vectors that are read by the same request."""

NORM_TOLERANCE = 0.01
"""Tolerance for the L2 norm of a published vector, which should be 1."""

_HEAD_BYTES = 4096

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors with the table of its rows, checked by `open_file`."""

    path: Place
    table: Place
    rows: int
    width: int
    dtype: str
    start: int  # byte offset of the first vector

    @property
    def row_bytes(self) -> int:
        """Return the size of one vector in bytes."""
        return self.width * np.dtype(self.dtype).itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield all vectors in order, as arrays (N_i, D) in the stored dtype, about 32 MB each.

        Raises:
            InputError: the file cannot be read, or is shorter than its header declares.
        """
        size = self._rows_in(RANGE_BYTES)
        with _input_errors(self.path), opened(self.path) as file:
            ranges = [(row, min(size, self.rows - row)) for row in range(0, self.rows, size)]
            yield from prefetch_one(self._read(file, first, count) for first, count in ranges)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return vectors (U, D) float32, unit L2 norm, of `rows` (U,) int64, ascending.

        Raises:
            InputError: as `chunks`, or a stored vector is not about unit length.
        """
        is_far = np.diff(rows) > self._rows_in(GAP_BYTES)
        is_next = np.diff(rows // self._rows_in(RANGE_BYTES)) > 0
        groups = np.split(rows, np.flatnonzero(is_far | is_next) + 1)
        with _input_errors(self.path), opened(self.path) as file:
            parts = [
                self._read(file, int(group[0]), int(group[-1] - group[0]) + 1)[group - group[0]]
                for group in groups
                if len(group)
            ]
        if not parts:
            return np.empty((0, self.width), np.float32)
        vectors = np.concatenate(parts).astype(np.float32)
        return _unit(vectors, self.path, rows)

    def _rows_in(self, count: int) -> int:
        return max(1, count // self.row_bytes)

    def _read(self, file: io.RawIOBase, first: int, count: int) -> np.ndarray:
        array = np.empty((count, self.width), self.dtype)
        view = array.view(np.uint8).reshape(-1)
        file.seek(self.start + first * self.row_bytes)
        done = 0
        while done < len(view):
            count_read = file.readinto(view[done:].data) or 0
            if not count_read:
                raise InputError(
                    f"{self.path} ends in row {first + done // self.row_bytes}; its header "
                    f"declares {self.rows} rows. Copy the file again."
                )
            done += count_read
        return array


class PublishedStore:
    """A folder of published vectors, with the same interface as `run.stores.EmbeddingStore`."""

    def __init__(self, folder: Place, config: MetadataConfig) -> None:
        """Open and check all files.

        Raises:
            InputError: a file is missing or unreadable, does not follow the layout, or disagrees
                with another file on the number of rows or the width of the vectors.
        """
        self._config = config
        pairs = _pairs(folder)
        self._opened = _map_threads(open_file, pairs)
        _refuse_widths(self._opened)
        self.width = self._opened[0].width
        self.count = sum(file.rows for file in self._opened)
        # by row: the status of each row that `take` has read and the metadata filters exclude
        self.row_statuses: dict[int, str] = {}

    def digest(self) -> str:
        """Return one sha256, hex, over the filters and each file's path, shape and dtype."""
        rules = self._config.model_dump_json(exclude=set(PoolSection.model_fields) | {"source"})
        files = [f"{file.path} {file.rows} {file.width} {file.dtype}" for file in self._opened]
        return digest([rules, *files])

    def require_width(self, width: int, model: str) -> None:
        """Raise InputError unless the vectors have `width` elements, as those of `model` have."""
        if self.width != width:
            raise InputError(
                f"vectors.source: {self._opened[0].path} has vectors {self.width} wide; "
                f"embed.model '{model}' makes them {width} wide. Set embed.model and "
                "embed.weights to the model that the publisher of the vectors names."
            )

    def files(self) -> list[tuple[VectorFile, int, int]]:
        """Return, per file, the file, the number of its first row, and its number of rows."""
        firsts = np.cumsum([0, *(file.rows for file in self._opened)]).tolist()
        return [(file, first, file.rows) for file, first in zip(self._opened, firsts, strict=False)]

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield tables (sample_id, url, caption) with their vectors, one per `RANGE_BYTES` read.

        The vectors are (N_i, D) float32, unit L2 norm. Rows that the filters of `metadata` exclude
        are left out. The errors are as in `take`.
        """
        for file in self._opened:
            described = metadata.rows_of(file.table, np.arange(file.rows), self._config)
            first = 0
            for chunk in file.chunks():
                numbers = np.arange(first, first + len(chunk))
                vectors = _unit(chunk.astype(np.float32), file.path, numbers)
                part = described.slice(first, len(chunk))
                good = schema.alive(part)
                yield part.select(["sample_id", "url", "caption"]).take(good), vectors[good]
                first += len(chunk)

    def take(self, rows: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        """Return the sample ids, urls and vectors (U, D) float32, unit L2 norm, of some rows.

        `rows` are (U,) int64, ascending. Rows that the filters of `metadata` exclude are included,
        and their statuses are added to `row_statuses`.

        Raises:
            InputError: a file cannot be read, or a stored vector is not about unit length.
            SchemaError: a table has no urls.
        """
        wanted = []
        for file, first, count in self.files():
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin < end:
                wanted.append((file, rows[begin:end] - first))
        parts = _map_threads(partial(_take, self._config), wanted)
        if not parts:
            return [], [], np.empty((0, self.width), np.float32)
        table = pa.concat_tables([table for table, _ in parts])
        ids: list[str] = table["sample_id"].to_pylist()
        statuses = zip(rows.tolist(), table["status"].to_pylist(), strict=True)
        self.row_statuses.update((row, status) for row, status in statuses if status != schema.OK)
        return ids, table["url"].to_pylist(), np.concatenate([vectors for _, vectors in parts])


def open_file(pair: tuple[Place, Place]) -> VectorFile:
    """Return a file of vectors with its table, after checking that they agree.

    Only the header, the first vector and the table's footer are read.

    Raises:
        InputError: the file and the table disagree, or one of them is unreadable or malformed.
    """
    path, table = pair
    with _input_errors(path), opened(path) as raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        file: BinaryIO = io.BufferedReader(raw, _HEAD_BYTES)
        shape, fortran, dtype = _header(file, path)
        start = file.tell()
        if len(shape) != 2 or fortran or dtype not in (np.float16, np.float32):
            raise InputError(
                f"{path} holds {shape} {dtype}{', column by column' if fortran else ''}; expected "
                "(N, D) float16 or float32, row by row (numpy.ascontiguousarray)."
            )
        vectors = VectorFile(path, table, shape[0], shape[1], dtype.str, start)
        if size != start + vectors.rows * vectors.row_bytes:
            raise InputError(
                f"{path} has {size:,} bytes; its header asks for "
                f"{start + vectors.rows * vectors.row_bytes:,}. Copy the file again."
            )
        if vectors.rows:
            first = np.frombuffer(file.read(vectors.row_bytes), dtype).astype(np.float32)
            _unit(first[None], path, np.zeros(1, np.int64))
    try:
        with pq.ParquetFile(readable(table)) as described:
            count = described.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{table} cannot be read as a table: {error}") from error
    if count != vectors.rows:
        raise InputError(
            f"{path} has {vectors.rows:,} vectors, {table} {count:,} rows; expected one row per "
            "vector, in the same order. Copy both files again from where they were published."
        )
    return vectors


def is_published(folder: Place) -> bool:
    """Return whether a folder has the two subfolders of clip-retrieval's layout."""
    return (folder / "img_emb").is_dir() and (folder / "metadata").is_dir()


def _header(file: BinaryIO, path: Place) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return the shape, whether the array is in Fortran order, and the dtype.

    The new position in the file is the first byte of the data.
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        return readers[version](file)
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as .npy: {error}") from error


def _take(
    config: MetadataConfig, wanted: tuple[VectorFile, np.ndarray]
) -> tuple[pa.Table, np.ndarray]:
    """Return a table of `schema.METADATA` of some rows of a file, and vectors (U, D) float32."""
    file, rows = wanted
    return metadata.rows_of(file.table, rows, config), file.take(rows)


def _pairs(folder: Place) -> list[tuple[Place, Place]]:
    vectors = _by_number(folder / "img_emb", "*.npy")
    tables = _by_number(folder / "metadata", "*.parquet")
    alone = sorted(vectors.keys() ^ tables.keys())
    if alone:
        number = alone[0]
        present, missing = vectors.get(number), "metadata/*.parquet"
        if present is None:
            present, missing = tables[number], "img_emb/*.npy"
        raise InputError(
            f"{present} has no counterpart: {folder} has {len(vectors)} img_emb/*.npy and "
            f"{len(tables)} metadata/*.parquet, none of {missing} with the number {number}. Copy "
            "the missing file, or move away the one without a counterpart."
        )
    if not vectors:
        raise InputError(
            f"vectors.source: {folder} has no img_emb/*.npy; expected the layout that "
            "clip-retrieval writes: img_emb/img_emb_0.npy with metadata/metadata_0.parquet."
        )
    return [(vectors[number], tables[number]) for number in sorted(vectors)]


def _by_number(folder: Place, pattern: str) -> dict[int, Place]:
    numbered: dict[int, Place] = {}
    paths: list[Place] = sorted(folder.glob(pattern), key=str)
    for path in paths:
        digits = re.search(r"\d+$", path.stem)
        number = int(digits[0]) if digits else -1
        if number in numbered:
            raise InputError(
                f"{numbered[number]} and {path} end in the same number, or in none; expected one "
                "file per number. Move one of them away."
            )
        numbered[number] = path
    return numbered


def _refuse_widths(files: Sequence[VectorFile]) -> None:
    first = files[0]
    for file in files:
        if file.width != first.width:
            raise InputError(
                f"{first.path} has vectors {first.width} wide, {file.path} {file.width}; expected "
                "one width. The files come from different models; keep those of one model."
            )


def _unit(vectors: np.ndarray, path: Place, rows: np.ndarray) -> np.ndarray:
    """Return the vectors with unit L2 norm, (U, D) float32; `rows` (U,) are for error messages."""
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
    if bad.size:
        raise InputError(
            f"{path}: the vector of row {rows[bad[0]]} has length {norms[bad[0]]:.4f}; expected 1. "
            "Normalize the vectors, or drop that row from both files."
        )
    result: np.ndarray = vectors / norms[:, None]
    return result


def _map_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return `function(item)` of each item, from many threads, because they mostly wait for I/O."""
    with ThreadPoolExecutor(READERS, "namedmask-published") as threads:
        return list(threads.map(function, items))


@contextmanager
def _input_errors(path: Place) -> Iterator[None]:
    """Raise InputError in place of an OSError of a file system or of S3."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
