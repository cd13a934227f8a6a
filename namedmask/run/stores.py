"""The stores of rows in a run folder: fetched images, vectors, and checked images.

Each store has two files per wave. `wave-…` holds the good rows. `tombstones-…` holds sample id, url
and status (schema.ROW_TOMBSTONES) of the rows that failed or were rejected.

* `fetched/` has the images that the verb `fetch` downloaded (schema.FETCHED). No other verb reads
  it.
* `embeddings/` (`EmbeddingStore`) has image vectors (schema.EMBEDDINGS). Row numbers in retrieval
  count the good rows of all waves, in order.
* `images/` (archive.checked_images) has the images that pass every check (schema.IMAGES). The
  pixels of a rejected image are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.errors import InputError, SchemaError
from namedmask.images.hashes import hash_of
from namedmask.images.limits import limit_of_checked
from namedmask.run import layout
from namedmask.run.layout import EMBEDDINGS, FETCHED, IMAGES
from namedmask.run.ledger import Commit, Ledger, write_unit
from namedmask.storage import Place
from namedmask.storage import place as storage
from namedmask.storage.files import (
    Content,
    TableWriter,
    digest,
    read_parquet,
    row_hashes,
)

GOOD = {FETCHED: schema.FETCHED, EMBEDDINGS: schema.EMBEDDINGS, IMAGES: schema.IMAGES}
"""Schema of the good rows, by store."""


class WaveWriter:
    """Commits a wave that comes slice by slice; one row group of it is in memory at a time.

    It is a context manager. If the block ends without `commit`, the store stays as it was.
    """

    def __init__(
        self,
        folder: Place,
        store_name: str,
        unit: str,
        input_digest: str = "",
        over: Commit | None = None,
    ) -> None:
        """Prepare to commit the wave `unit`, or to replace the files of its record `over`."""
        self._folder, self._store_name, self._unit = folder, store_name, unit
        self._input_digest, self._over = input_digest, over
        self._good_rows, self._dead = 0, [schema.ROW_TOMBSTONES.empty_table()]
        self._stack = ExitStack()

    def __enter__(self) -> WaveWriter:
        path = self._folder / self._file("wave")
        self._scratch = self._stack.enter_context(storage.scratch(path))
        self._writer = TableWriter(self._scratch, GOOD[self._store_name])
        self._stack.callback(self._writer.abandon)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, table: pa.Table) -> None:
        """Add rows of the wave; a row is good if its status is `ok`."""
        is_ok = pc.equal(table["status"], schema.OK)
        self.add_parted(table.filter(is_ok), table.filter(pc.invert(is_ok)))

    def add_parted(self, good: pa.Table, dead: pa.Table) -> None:
        """Add the good rows and the dead rows of a slice of the wave."""
        self._writer.write(schema.conform(good, GOOD[self._store_name], self._store_name))
        self._dead.append(schema.conform(dead, schema.ROW_TOMBSTONES, self._store_name))
        self._good_rows += good.num_rows

    def commit(self) -> Commit:
        """Commit all rows that were added; return the commit record."""
        self._writer.close()
        dead = pa.concat_tables(self._dead)
        statuses = dead["status"].to_pylist()
        edition = f".{digest(row_hashes(dead, ('sample_id', 'status')))[:8]}" if self._over else ""
        files: dict[str, Content] = {
            self._file("wave", edition): partial(_move, self._scratch),
            self._file("tombstones", edition): dead,
        }
        if self._over and files.keys() == self._over.files.keys():
            return self._over
        return write_unit(
            self._folder, self._store_name, self._unit, files,
            rows=self._good_rows + len(statuses),
            counts=schema.counts_by_status([schema.OK] * self._good_rows + statuses),
            input_digest=self._input_digest, over=self._over,
        )  # fmt: skip

    def _file(self, kind: str, edition: str = "") -> str:
        return layout.wave_file(self._store_name, kind, self._unit + edition)


def _move(scratch: Path, path: Path) -> None:
    scratch.replace(path)


def file_of(commit: Commit, kind: str) -> str:
    """Return the path of a wave's file in the run folder; `kind` is `wave` or `tombstones`."""
    return next(name for name in commit.files if name.partition("/")[2].startswith(f"{kind}-"))


class EmbeddingStore:
    """The image vectors of a run, wave by wave."""

    row_statuses: Mapping[int, str] = MappingProxyType({})
    """Statuses of excluded rows, by row number; empty, because only good rows have vectors."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def digest(self) -> str:
        """Return one sha256, hex, over all files of vectors."""
        commits = self._ledger.commits(EMBEDDINGS).values()
        return digest(commit.files[file_of(commit, "wave")]["sha256"] for commit in commits)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors of each wave, (N, D) float32, unit L2 norm; skip waves without vectors.

        Raises:
            InputError: a file is unreadable.
            SchemaError: a vector is null, or has another length than the others.
        """
        for path, _, count in self.files():
            if count:
                yield read_vectors(path)

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield, per wave with vectors, a table (sample_id, url, caption) and its vectors.

        The vectors are (N, D) float32, unit L2 norm, as from `chunks`.

        Raises:
            InputError, SchemaError: as `chunks`.
        """
        for path, _, count in self.files():
            if count:
                table = _whole(path, count, ["sample_id", "url", "caption", "embedding"])
                yield table.drop_columns("embedding"), vectors_of(table, path)

    def take(self, rows: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        """Return the sample ids, urls and vectors (U, D) float32, unit L2 norm, of some rows.

        `rows` are (U,) int64, ascending.

        Raises:
            InputError, SchemaError: as `chunks`.
        """
        ids: list[str] = []
        urls: list[str] = []
        vectors = []
        for path, first, count in self.files():
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin == end:
                continue
            table = _whole(path, count, ["sample_id", "url", "embedding"])
            part = table.take(rows[begin:end] - first)
            ids += part["sample_id"].to_pylist()
            urls += part["url"].to_pylist()
            vectors.append(vectors_of(part, path))
        wide = [part for part in vectors if len(part)]
        return ids, urls, np.concatenate(wide) if wide else np.empty((0, 0), np.float32)

    def files(self) -> list[tuple[Place, int, int]]:
        """Return, per wave, the file of vectors, the number of its first row, and its row count."""
        files, first = [], 0
        for commit in self._ledger.commits(EMBEDDINGS).values():
            count = commit.counts.get(schema.OK, 0)
            path = self._ledger.folder / file_of(commit, "wave")
            files.append((path, first, count))
            first += count
        return files


def findings_of(folder: Place, unit: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return the statuses and the hashes of a committed unit of checked images, by sample id."""
    statuses: dict[str, str] = {}
    hashes: dict[str, int] = {}
    for kind, columns in (("wave", ["hash"]), ("tombstones", [])):
        path = folder / layout.wave_file(IMAGES, kind, unit)
        table = read_parquet(path, ["sample_id", "status", *columns])
        statuses.update(statuses_by_id(table))
        hashes.update(hashes_by_id(table))
    return statuses, hashes


def _whole(path: Place, count: int, columns: list[str]) -> pa.Table:
    """Return columns of a wave's file; raise InputError unless it has as many rows as recorded."""
    table = read_parquet(path, columns)
    if table.num_rows != count:
        raise InputError(
            f"{path} has {table.num_rows:,} rows; its commit record says {count:,}. Remove both "
            "files and run the verb again."
        )
    return table


def statuses_by_id(table: pa.Table) -> dict[str, str]:
    """Return the status of each row of a table, by sample id."""
    return dict(zip(table["sample_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def hashes_by_id(table: pa.Table) -> dict[str, int]:
    """Return the perceptual hash of each row of a table that has a hash, by sample id."""
    if "hash" not in table.column_names:
        return {}
    pairs = zip(table["sample_id"].to_pylist(), table["hash"].to_pylist(), strict=True)
    return {sample_id: bits for sample_id, bits in pairs if bits is not None}


def with_hashes(table: pa.Table) -> pa.Table:
    """Return a table of checked images with the perceptual hashes of good images as `hash`."""
    rows = schema.alive(table)
    good = table.select(["image", "image_height", "image_width"]).take(rows).to_pydict()
    triples = zip(*good.values(), strict=True)
    hashes = [hash_of(data, limit_of_checked(*size)) for data, *size in triples]
    return schema.update(table, rows, {"hash": hashes})


def read_vectors(path: Place) -> np.ndarray:
    """Return the vectors in a file of a wave, (N, D) float32, unit L2 norm.

    Raises:
        InputError, SchemaError: as `EmbeddingStore.chunks`.
    """
    return vectors_of(read_parquet(path, ["embedding"]), path)


def vectors_of(table: pa.Table, path: Place) -> np.ndarray:
    """Return the column `embedding` as (N, D) float32.

    Raises:
        SchemaError: a vector is null, or has another length than the others.
    """
    column = table["embedding"]
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if None in widths or len(widths) > 1:
        found = ", ".join("null" if width is None else str(width) for width in widths)
        raise SchemaError(
            f"{path}: column 'embedding' has vectors of length {found}; expected one length. "
            "Remove this file and the commit record that names it, and run 'embed' again."
        )
    flat = pc.list_flatten(column).to_numpy().astype(np.float32, copy=False)
    result: np.ndarray = flat.reshape(table.num_rows, widths[0] if widths else 0)
    return result
