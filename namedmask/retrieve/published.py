"""Vectors that somebody published in clip-retrieval's layout, read in ranges and never whole.

`<folder>/img_emb/img_emb_0.npy`: (N, D) float16 or float32, about unit length.
`<folder>/metadata/metadata_0.parquet`: the N rows they are of, in the same order, with `url` and
whatever the filters of `metadata` look at.

Two files belong together by the number their names end in; all rows in the order of these numbers
are the rows that retrieval speaks of. Everything that can be told by headers and footers is checked
before a vector is read.

Unit length: a scan takes the rows as they are, since rounding to float16 moves no norm by more than
1e-4; `take` normalises, in float32, what it returns, and nothing else does.

Cost: of a file a few small requests when it is opened, and its bytes once when it is scanned. For
the candidates `take` reads single vectors, and of
the metadata the columns it needs in the row groups that hold one: of LAION-5B that is most of them.
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
from namedmask.storage.read_ahead import one_ahead

RANGE_BYTES = 32 << 20
"""Bytes of vectors asked for at once in a scan."""

GAP_BYTES = 64 << 10
"""Unwanted bytes between two wanted vectors that are read along, where a request costs more."""

NORM_TOLERANCE = 0.01

_HEAD_BYTES = 4096

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors and the table of its rows; made by `open_file`, which has checked both."""

    path: Place
    table: Place
    rows: int
    width: int
    dtype: str
    start: int  # of the first vector, in bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one vector."""
        return self.width * np.dtype(self.dtype).itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield all vectors in order, (N, D) as they are stored, about 32 MB at a time.

        Raises:
            InputError: the file cannot be read, or is shorter than its header says.
        """
        size = self._rows_in(RANGE_BYTES)
        with _telling(self.path), opened(self.path) as file:
            ranges = [(row, min(size, self.rows - row)) for row in range(0, self.rows, size)]
            yield from one_ahead(self._read(file, first, count) for first, count in ranges)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return some vectors, (U, D) float32 of unit length; `rows` (U,) int64 ascending.

        Raises:
            InputError: as `chunks`; or a vector is not about unit length.
        """
        is_far = np.diff(rows) > self._rows_in(GAP_BYTES)
        is_next = np.diff(rows // self._rows_in(RANGE_BYTES)) > 0
        groups = np.split(rows, np.flatnonzero(is_far | is_next) + 1)
        with _telling(self.path), opened(self.path) as file:
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
            got = file.readinto(view[done:].data) or 0
            if not got:
                raise InputError(
                    f"{self.path} ends in row {first + done // self.row_bytes}; its header says "
                    f"{self.rows}. Copy the file again."
                )
            done += got
        return array


class PublishedStore:
    """A folder of published vectors; to retrieval the same as stores.EmbeddingStore."""

    def __init__(self, folder: Place, config: MetadataConfig) -> None:
        """Look at every file.

        Raises:
            InputError: a file is missing, unreadable or of another form than the layout's, or has
                not as many rows, or not as wide ones, as another.
        """
        self._config = config
        pairs = _pairs(folder)
        self._opened = _each(open_file, pairs)
        _refuse_widths(self._opened)
        self.width = self._opened[0].width
        self.count = sum(file.rows for file in self._opened)
        self.row_statuses: dict[
            int, str
        ] = {}  # what the metadata says against the rows taken so far

    def digest(self) -> str:
        """Return one sha256, hex, over the names, sizes and kinds of all files, and the filters."""
        rules = self._config.model_dump_json(exclude=set(PoolSection.model_fields) | {"source"})
        files = [f"{one.path} {one.rows} {one.width} {one.dtype}" for one in self._opened]
        return digest([rules, *files])

    def require_width(self, width: int, model: str) -> None:
        """Raise InputError unless the vectors are as wide as those that `model` makes."""
        if self.width != width:
            raise InputError(
                f"vectors.source: {self._opened[0].path} has vectors {self.width} wide; "
                f"embed.model '{model}' makes them {width} wide. Set embed.model and "
                "embed.weights to the model that their publisher names."
            )

    def files(self) -> list[tuple[VectorFile, int, int]]:
        """Return each file, the number of its first row, and how many rows it has."""
        firsts = np.cumsum([0, *(file.rows for file in self._opened)]).tolist()
        return [(file, first, file.rows) for file, first in zip(self._opened, firsts, strict=False)]

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield sample_id, url, caption and unit vectors (N, D) float32, about 32 MB at a time.

        Left out are rows that the filters of `metadata` rule out.
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
        """Return sample_ids, urls and vectors (U, D) float32 of the rows, (U,) int64 ascending.

        What the filters of `metadata` say against one of them is in `row_statuses` afterwards.

        Raises:
            InputError: a file cannot be read, or a vector is not of about unit length.
            SchemaError: a table has no urls.
        """
        wanted = []
        for file, first, count in self.files():
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin < end:
                wanted.append((file, rows[begin:end] - first))
        parts = _each(partial(_take, self._config), wanted)
        if not parts:
            return [], [], np.empty((0, self.width), np.float32)
        table = pa.concat_tables([table for table, _ in parts])
        ids: list[str] = table["sample_id"].to_pylist()
        statuses = zip(rows.tolist(), table["status"].to_pylist(), strict=True)
        self.row_statuses.update((row, status) for row, status in statuses if status != schema.OK)
        return ids, table["url"].to_pylist(), np.concatenate([vectors for _, vectors in parts])


def open_file(pair: tuple[Place, Place]) -> VectorFile:
    """Return a file of vectors with its table, once header and footer are found to agree.

    Raises:
        InputError: they do not, or one is unreadable or of another form.
    """
    path, table = pair
    with _telling(path), opened(path) as raw:
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
        found = VectorFile(path, table, shape[0], shape[1], dtype.str, start)
        if size != start + found.rows * found.row_bytes:
            raise InputError(
                f"{path} has {size:,} bytes; its header asks for "
                f"{start + found.rows * found.row_bytes:,}. Copy the file again."
            )
        if found.rows:
            first = np.frombuffer(file.read(found.row_bytes), dtype).astype(np.float32)
            _unit(first[None], path, np.zeros(1, np.int64))
    try:
        with pq.ParquetFile(readable(table)) as described:
            count = described.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{table} cannot be read as a table: {error}") from error
    if count != found.rows:
        raise InputError(
            f"{path} has {found.rows:,} vectors, {table} {count:,} rows; expected as many, in the "
            "same order. Copy both files again from where they were published."
        )
    return found


def is_published(folder: Place) -> bool:
    """Return whether a folder has the layout, as far as its folders tell."""
    return (folder / "img_emb").is_dir() and (folder / "metadata").is_dir()


def _header(file: BinaryIO, path: Place) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether it lies column by column, and dtype; the file stands at the data."""
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
    """Return some rows of a file, as schema.METADATA and as vectors (U, D) float32."""
    file, rows = wanted
    return metadata.rows_of(file.table, rows, config), file.take(rows)


def _pairs(folder: Place) -> list[tuple[Place, Place]]:
    vectors = _by_number(folder / "img_emb", "*.npy")
    tables = _by_number(folder / "metadata", "*.parquet")
    alone = sorted(vectors.keys() ^ tables.keys())
    if alone:
        number = alone[0]
        there, missing = vectors.get(number), "metadata/*.parquet"
        if there is None:
            there, missing = tables[number], "img_emb/*.npy"
        raise InputError(
            f"{there} has no counterpart: {folder} has {len(vectors)} img_emb/*.npy and "
            f"{len(tables)} metadata/*.parquet, none of {missing} with the number {number}. Copy "
            "what is missing, or move away what is too much."
        )
    if not vectors:
        raise InputError(
            f"vectors.source: {folder} has no img_emb/*.npy; expected the layout that "
            "clip-retrieval writes: img_emb/img_emb_0.npy with metadata/metadata_0.parquet."
        )
    return [(vectors[number], tables[number]) for number in sorted(vectors)]


def _by_number(folder: Place, pattern: str) -> dict[int, Place]:
    found: dict[int, Place] = {}
    paths: list[Place] = sorted(folder.glob(pattern), key=str)
    for path in paths:
        digits = re.search(r"\d+$", path.stem)
        number = int(digits[0]) if digits else -1
        if number in found:
            raise InputError(
                f"{found[number]} and {path} have the same number; expected one file a number."
            )
        found[number] = path
    return found


def _refuse_widths(files: Sequence[VectorFile]) -> None:
    first = files[0]
    for file in files:
        if file.width != first.width:
            raise InputError(
                f"{first.path} has vectors {first.width} wide, {file.path} {file.width}; expected "
                "one width. They are of different models: keep those of one."
            )


def _unit(vectors: np.ndarray, path: Place, rows: np.ndarray) -> np.ndarray:
    """Return (U, D) float32 at unit length; `rows` are their numbers in the file."""
    norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) < NORM_TOLERANCE))
    if bad.size:
        raise InputError(
            f"{path}: the vector of row {rows[bad[0]]} has length {norms[bad[0]]:.4f}; expected 1. "
            "Normalise the vectors, or drop that row from both files."
        )
    return vectors / norms[:, None]


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return what a function makes of each, many at once: it waits for requests."""
    with ThreadPoolExecutor(READERS, "namedmask-published") as threads:
        return list(threads.map(function, items))


@contextmanager
def _telling(path: Place) -> Iterator[None]:
    """Let out as InputError what a file system or S3 says of a file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
