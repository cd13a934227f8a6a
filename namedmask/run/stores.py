"""The stores of rows in a run folder: fetched images, vectors, and checked images.

Each store has two files per wave. `wave-…` holds the good rows. `tombstones-…` holds sample id, url
and status (schema.ROW_TOMBSTONES) of the rows that failed or were rejected.

* `fetched/` has the images that the verb `fetch` downloaded (schema.FETCHED). No other verb reads
  it.
* `embeddings/` (`EmbeddingStore`) has image vectors (schema.EMBEDDINGS). Row numbers in retrieval
  count the good rows of all waves, in order.
* `images/` (`ImageStore`) has the images that pass every check (schema.IMAGES). The pixels of a
  rejected image are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.errors import InputError, SchemaError
from namedmask.images.codec import hash_of
from namedmask.run import layout
from namedmask.run.layout import EMBEDDINGS, FETCHED, IMAGES
from namedmask.run.ledger import Commit, Ledger, write_unit
from namedmask.storage import Place
from namedmask.storage.files import digest, read_parquet

OPEN_UNITS = 4
"""Number of units of checked images that are cached in memory while archives are written."""

GOOD = {FETCHED: schema.FETCHED, EMBEDDINGS: schema.EMBEDDINGS, IMAGES: schema.IMAGES}
"""Schema of the good rows, by store."""


def write_wave(
    folder: Place, store_name: str, unit: str, table: pa.Table, input_digest: str
) -> Commit:
    """Commit the good rows and the tombstones of a wave; return the commit record."""
    is_ok = pc.equal(table["status"], schema.OK)
    dead = table.filter(pc.invert(is_ok))
    files = files_of_wave(store_name, unit, table.filter(is_ok), dead)
    counts = schema.counts_by_status(table["status"].to_pylist())
    return write_unit(
        folder,
        store_name,
        unit,
        files,
        rows=table.num_rows,
        counts=counts,
        input_digest=input_digest,
    )


def files_of_wave(
    store_name: str, name: str, good: pa.Table, dead: pa.Table
) -> dict[str, pa.Table]:
    """Return the tables of good and of dead rows of a wave, by their paths in the run folder."""
    return {
        layout.wave_file(store_name, "wave", name): schema.conform(
            good, GOOD[store_name], store_name
        ),
        layout.wave_file(store_name, "tombstones", name): schema.conform(
            dead, schema.ROW_TOMBSTONES, store_name
        ),
    }


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


class ImageStore:
    """The checked images of a run: statuses of all images, pixels and masks of good images."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._units: dict[str, str] = {}  # sample_id of a good image → its unit
        self.statuses: dict[str, str] = {}  # by sample id
        self.hashes: dict[str, int] = {}  # perceptual hashes of the good images, by sample id
        units = list(ledger.commits(IMAGES))
        self._next = int(units[-1]) + 1 if units else 0
        for unit in units:
            for kind, columns in (("wave", ["hash"]), ("tombstones", [])):
                path = ledger.folder / layout.wave_file(IMAGES, kind, unit)
                table = read_parquet(path, ["sample_id", "status", *columns])
                self.add_unit(unit, statuses_by_id(table), hashes_by_id(table))
        self._open = lru_cache(OPEN_UNITS)(self._read)

    def new_unit(self) -> str:
        """Return a new unit name, for the next wave of checked images."""
        self._next += 1
        return f"{self._next - 1:05d}"

    def add_unit(self, unit: str, statuses: Mapping[str, str], hashes: Mapping[str, int]) -> None:
        """Add the statuses and the hashes of a committed unit's images, by sample id."""
        self.statuses.update(statuses)
        self.hashes.update(hashes)
        good = (sample_id for sample_id, status in statuses.items() if status == schema.OK)
        self._units.update(dict.fromkeys(good, unit))

    def entries(self, candidates: pa.Table) -> pa.Table:
        """Return the archive entries (schema.ARCHIVE) of one category's accepted candidates."""
        ids = candidates["sample_id"].to_pylist()
        units = [self._units[sample_id] for sample_id in ids]
        names = ["sample_id", "image", "image_height", "image_width", "mask"]
        parts = [self._open(unit).select(names) for unit in dict.fromkeys(units)]
        if not parts:
            return schema.ARCHIVE.empty_table()
        images = pa.concat_tables(parts)
        rows = pc.index_in(candidates["sample_id"], images["sample_id"].combine_chunks())
        images = images.take(rows)
        for name in names[1:]:
            candidates = candidates.append_column(name, images[name])
        return schema.conform(candidates, schema.ARCHIVE, "the archive")

    def _read(self, unit: str) -> pa.Table:
        return read_parquet(self._ledger.folder / layout.wave_file(IMAGES, "wave", unit))


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
    good = table.select(["image", "image_height", "image_width"]).take(rows).to_pylist()
    hashes = [hash_of(row["image"], row["image_height"] * row["image_width"]) for row in good]
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
