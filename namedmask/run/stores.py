"""What a run folder keeps of its rows: the vectors of all, and the judged images of the tried.

`fetched/`, which no other verb reads, is schema.FETCHED in `wave-…` beside its tombstones.
`EmbeddingStore` is `embeddings/`: schema.EMBEDDINGS in `wave-…`, schema.ROW_TOMBSTONES in
`tombstones-…`; the rows of all waves in order are the numbers that retrieval speaks of.
`ImageStore` is `images/`: schema.IMAGES of the images that pass every check, and of the others only
id, url and status: the pixels of a rejected image are in no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.errors import SchemaError
from namedmask.images.codec import hash_of
from namedmask.run import layout
from namedmask.run.layout import EMBEDDINGS, FETCHED, IMAGES
from namedmask.run.ledger import Commit, Ledger, write_unit
from namedmask.storage import Place
from namedmask.storage.files import digest, read_parquet

OPEN_UNITS = 4
"""Units of images held in memory while archives are put together."""


GOOD = {FETCHED: schema.FETCHED, EMBEDDINGS: schema.EMBEDDINGS, IMAGES: schema.IMAGES}


def write_wave(
    folder: Place, store_name: str, unit: str, table: pa.Table, input_digest: str
) -> Commit:
    """Commit a wave in a run folder, its good rows and its tombstones; return the record."""
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
    """Return the files of a wave by their names below the run folder."""
    return {
        layout.wave_file(store_name, "wave", name): schema.conform(
            good, GOOD[store_name], store_name
        ),
        layout.wave_file(store_name, "tombstones", name): schema.conform(
            dead, schema.ROW_TOMBSTONES, store_name
        ),
    }


def file_of(commit: Commit, kind: str) -> str:
    """Return the name below the run folder of a wave's file, `wave` or `tombstones`."""
    return next(name for name in commit.files if name.partition("/")[2].startswith(f"{kind}-"))


class EmbeddingStore:
    """The vectors of a run, wave by wave."""

    row_statuses: Mapping[int, str] = MappingProxyType({})
    """What speaks against a row before it is tried: nothing, or it would have no vector."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def digest(self) -> str:
        """Return one sha256, hex, over all files of vectors."""
        commits = self._ledger.commits(EMBEDDINGS).values()
        return digest(commit.files[file_of(commit, "wave")]["sha256"] for commit in commits)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors of each wave that has any, (N, D) float32, unit L2 norm.

        Raises:
            InputError: a file is unreadable.
            SchemaError: a vector is null, or not as long as its neighbors.
        """
        for path, _, count in self.files():
            if count:
                yield read_vectors(path)

    def tables(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield sample_id, url, caption and the vectors of each wave that has any; as `chunks`."""
        for path, _, count in self.files():
            if count:
                table = read_parquet(path, ["sample_id", "url", "caption", "embedding"])
                yield table.drop_columns("embedding"), vectors_of(table, path)

    def take(self, rows: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        """Return sample_ids, urls and vectors (U, D) float32 of the rows, (U,) int64 ascending."""
        ids: list[str] = []
        urls: list[str] = []
        vectors = []
        for path, first, count in self.files():
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin == end:
                continue
            table = read_parquet(path, ["sample_id", "url", "embedding"])
            part = table.take(rows[begin:end] - first)
            ids += part["sample_id"].to_pylist()
            urls += part["url"].to_pylist()
            vectors.append(vectors_of(part, path))
        wide = [part for part in vectors if len(part)]
        return ids, urls, np.concatenate(wide) if wide else np.empty((0, 0), np.float32)

    def files(self) -> list[tuple[Place, int, int]]:
        """Return each wave's file, the number of its first row, and how many rows it has."""
        found, first = [], 0
        for commit in self._ledger.commits(EMBEDDINGS).values():
            count = commit.counts.get(schema.OK, 0)
            path = self._ledger.folder / file_of(commit, "wave")
            found.append((path, first, count))
            first += count
        return found


class ImageStore:
    """The judged images of a run: the verdict on each, the bytes and masks of the good ones."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._units: dict[str, str] = {}  # sample_id of a good image → its unit
        self.statuses: dict[str, str] = {}
        self.hashes: dict[str, int] = {}  # of the good images
        units = list(ledger.commits(IMAGES))
        self._next = int(units[-1]) + 1 if units else 0
        for unit in units:
            for kind, columns in (("wave", ["hash"]), ("tombstones", [])):
                path = ledger.folder / layout.wave_file(IMAGES, kind, unit)
                table = read_parquet(path, ["sample_id", "status", *columns])
                self.remember(unit, statuses_by_id(table), hashes_by_id(table))
        self._open = lru_cache(OPEN_UNITS)(self._read)

    def new_unit(self) -> str:
        """Return a name for the next wave of judged images; each name is given out once."""
        self._next += 1
        return f"{self._next - 1:05d}"

    def remember(self, unit: str, statuses: Mapping[str, str], hashes: Mapping[str, int]) -> None:
        """Take note of a committed unit: verdict and hash of each of its images, by sample id."""
        self.statuses.update(statuses)
        self.hashes.update(hashes)
        self._units.update((one, unit) for one, status in statuses.items() if status == schema.OK)

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


def statuses_by_id(table: pa.Table) -> dict[str, str]:
    """Return the status of each image of a table by its sample id."""
    return dict(zip(table["sample_id"].to_pylist(), table["status"].to_pylist(), strict=True))


def hashes_by_id(table: pa.Table) -> dict[str, int]:
    """Return the perceptual hash of each image of a table that has one, by its sample id."""
    if "hash" not in table.column_names:
        return {}
    pairs = zip(table["sample_id"].to_pylist(), table["hash"].to_pylist(), strict=True)
    return {sample_id: bits for sample_id, bits in pairs if bits is not None}


def with_hashes(table: pa.Table) -> pa.Table:
    """Return a table of judged images with `hash` at every good one."""
    rows = schema.alive(table)
    good = table.select(["image", "image_height", "image_width"]).take(rows).to_pylist()
    bits = [hash_of(one["image"], one["image_height"] * one["image_width"]) for one in good]
    return schema.update(table, rows, {"hash": bits})


def read_vectors(path: Place) -> np.ndarray:
    """Return the vectors of a wave's file, (N, D) float32; raises as `EmbeddingStore.chunks`."""
    return vectors_of(read_parquet(path, ["embedding"]), path)


def vectors_of(table: pa.Table, path: Place) -> np.ndarray:
    """Return the column `embedding` as (N, D) float32.

    Raises:
        SchemaError: a vector is null, or not as long as its neighbors.
    """
    column = table["embedding"]
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if None in widths or len(widths) > 1:
        found = ", ".join("null" if width is None else str(width) for width in widths)
        raise SchemaError(
            f"{path}: column 'embedding' has vectors of length {found}; expected one length. "
            "Remove the file with the commit record that names it, and run 'embed' again."
        )
    flat = pc.list_flatten(column).to_numpy().astype(np.float32, copy=False)
    return flat.reshape(table.num_rows, widths[0] if widths else 0)
