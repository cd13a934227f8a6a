"""Read and atomically write parquet (with checksums) and JSON files, and hash table rows.

No file contains a time, a path or a run id, so that equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from namedmask import schema
from namedmask.errors import InputError, SchemaError
from namedmask.storage import place as storage
from namedmask.storage.place import Place

ROW_KEY = ("category", "rank", "sample_id", "image", "mask")
"""Columns that are compared to decide whether two runs have the same row."""

NEVER_NULL = ("sample_id", "status")
"""Columns that have a value in every row of a store."""

PLAIN_COLUMNS = ("image", "saliency", "mask", "embedding")
"""Columns that are stored without compression, which would not make them smaller."""

BLOB_COLUMNS = ("image", "saliency", "mask")
"""Columns of encoded images and masks, whose rows may take megabytes."""

GROUP_ROWS, GROUP_BYTES = 1 << 16, 64 << 20
"""Maximum number of rows of a row group, and the bytes in `BLOB_COLUMNS` at which a group ends."""
NO_LIMIT = 1 << 62
"""Number of bytes that no row group reaches."""

Content: TypeAlias = "pa.Table | bytes | Callable[[Path], None]"
"""Content of a file: a table (for parquet), bytes, or a function that writes to a local path."""


def refuse_newer(record: Mapping[str, Any], path: Place) -> None:
    """Raise InputError if a record has another version of the store layout than this package."""
    version = record.get("format_version")
    if version != schema.FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}; this version of namedmask reads "
            f"{schema.FORMAT_VERSION}. Install the version that wrote it, or give another folder."
        )


def write_file(path: Place, content: Content) -> dict[str, Any]:
    """Write a file atomically; return {"sha256": hex digits, "size": bytes}."""
    with storage.replaced(path) as part:
        if isinstance(content, pa.Table):
            write_parquet(content, part)
        elif isinstance(content, bytes):
            part.write_bytes(content)
        else:
            content(part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    return {"sha256": digest, "size": size}


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table as parquet; see `TableWriter`."""
    with TableWriter(path, table.schema) as writer:
        writer.write(table)


class TableWriter:
    """A writer of a parquet file with a checksum per page, which gets its rows part by part.

    Equal rows give equal bytes, however they are divided into parts. A row group ends after
    `group_rows` rows, or with the row that reaches `group_bytes` in `BLOB_COLUMNS`. The writer
    holds the rows of one group and of one part. Blobs are large_binary in memory and binary in the
    file, where no group can exceed the 2 GiB of a binary array.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        group_rows: int = GROUP_ROWS,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self._schema = pa.schema([(field.name, _type_on_disk(field.type)) for field in schema])
        self._group_rows, self._group_bytes = group_rows, group_bytes
        self._held: list[pa.Table] = []
        self._rows = self._bytes = 0  # of the held tables
        coded = [name for name in schema.names if name not in PLAIN_COLUMNS]
        self._file = pq.ParquetWriter(
            path,
            self._schema,
            compression=dict.fromkeys(coded, "zstd"),
            use_dictionary=[name for name in ("category", "status") if name in coded],
            write_statistics=[name for name in ("rank", "label_id") if name in coded],
            write_page_checksum=True,
        )
        self._is_empty = True

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        self.abandon()

    def close(self) -> None:
        """Write the last row group and complete the file."""
        if self._held or self._is_empty:
            self._end_group()
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is; a file that is complete stays complete."""
        self._file.close()

    def write(self, table: pa.Table) -> None:
        """Write the rows of a table with the schema of the file."""
        sizes = np.cumsum(blob_bytes(table))
        start, before = 0, 0
        while start < table.num_rows:
            full = int(np.searchsorted(sizes, before + self._group_bytes - self._bytes)) + 1
            end = min(full, start + self._group_rows - self._rows, table.num_rows)
            self._held.append(table.slice(start, end - start))
            self._rows += end - start
            self._bytes += int(sizes[end - 1]) - before
            start, before = end, int(sizes[end - 1])
            if self._rows >= self._group_rows or self._bytes >= self._group_bytes:
                self._end_group()

    def _end_group(self) -> None:
        tables = [part.replace_schema_metadata(None).cast(self._schema) for part in self._held]
        group = pa.concat_tables(tables) if tables else self._schema.empty_table()
        self._file.write_table(group.combine_chunks(), row_group_size=self._group_rows)
        self._held, self._rows, self._bytes, self._is_empty = [], 0, 0, False


def blob_bytes(table: pa.Table) -> np.ndarray:
    """Return the number of bytes in `BLOB_COLUMNS` per row, (N,) int64; a null has none."""
    total = np.zeros(table.num_rows, np.int64)
    for name in BLOB_COLUMNS:
        if name in table.column_names:
            lengths = pc.fill_null(pc.binary_length(table[name]), 0)
            total += lengths.to_numpy().astype(np.int64)
    return total


def _type_on_disk(kind: pa.DataType) -> pa.DataType:
    return pa.binary() if pa.types.is_large_binary(kind) else kind


def write_json(path: Place, value: Any) -> None:
    """Write plain values to a JSON file with sorted keys, atomically."""
    write_file(path, _json(value))


def read_json(path: Place) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file is missing or is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _parsed(data, path)


def _json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode()


def _parsed(data: bytes, path: Place) -> dict[str, Any]:
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}; expected a JSON object.")
    return value


@contextmanager
def content_of(path: Place | str) -> Iterator[None]:
    """Turn the errors of a block that uses the content of a file into errors about that file.

    For files that namedmask wrote and another program, or a broken disk, may have changed.

    Raises:
        InputError: the block raised an error that content of another form raises.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(
            f"{path} does not hold what namedmask writes there ({reason}). Restore the file, or "
            "make it again with another run.out."
        ) from error


def require_types(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raise KeyError or TypeError unless `values` has a value of the right type for each key."""
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise TypeError(f"{key} is {values[key]!r}; expected {kind.__name__}")


def read_parquet(path: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a parquet file, or only `columns`, after checking the checksum of every page.

    Raises:
        InputError: the file is missing or corrupt.
        SchemaError: a column is missing or of another type.
    """
    try:
        source = storage.readable(path)
        table = pq.read_table(
            source, columns=columns, partitioning=None, page_checksum_verification=True
        )
        if not columns:
            return with_large_blobs(table)
        _refuse_nulls(table, path)
        return schema.conform(table, schema.schema_of(*columns), str(path))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def with_large_blobs(table: pa.Table) -> pa.Table:
    """Return a table read from a file with its blobs as large_binary, as in memory."""
    types = [
        pa.large_binary() if field.name in BLOB_COLUMNS else field.type for field in table.schema
    ]
    return table.cast(pa.schema(list(zip(table.column_names, types, strict=True))))


def row_groups(path: Place, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a parquet file, or only `columns` of them, in order.

    Raises:
        InputError: as `read_parquet`.
    """
    try:
        with pq.ParquetFile(storage.readable(path), page_checksum_verification=True) as file:
            for number in range(file.num_row_groups):
                yield with_large_blobs(file.read_row_group(number, columns, use_threads=False))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def read_group(path: Place, number: int, columns: Sequence[str]) -> pa.Table:
    """Return some columns of one row group of a parquet file.

    Raises:
        InputError: as `read_parquet`.
    """
    try:
        with pq.ParquetFile(storage.readable(path), page_checksum_verification=True) as file:
            return with_large_blobs(file.read_row_group(number, list(columns), use_threads=False))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Place, error: Exception) -> InputError:
    return InputError(
        f"{path} cannot be read as parquet: {str(error).rstrip('. ')}. Remove the file and the "
        "commit record that names it, and run the verb again."
    )


def _refuse_nulls(table: pa.Table, path: Place) -> None:
    """Raise SchemaError if a row lacks a value that every row of a store has."""
    for name in NEVER_NULL:
        if name in table.column_names and table[name].null_count:
            raise SchemaError(
                f"{path}: column '{name}' has {table[name].null_count:,} rows without a value. "
                "Remove the file and the commit record that names it, and run the verb again."
            )


def row_hashes(table: pa.Table, columns: Sequence[str] = ROW_KEY) -> list[str]:
    """Return one SHA-256 hash per row, in hex, over those of `columns` that the table has."""
    names = [name for name in columns if name in table.column_names]
    return [
        hashlib.sha256(b"".join(map(_framed, row))).hexdigest()
        for row in zip(*(table[name].to_pylist() for name in names), strict=True)
    ]


def digest(hashes: Iterable[str]) -> str:
    """Return one SHA-256 hash, in hex, over all `hashes`; their order has no effect."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def _framed(value: object) -> bytes:
    """Return a value as bytes with a length prefix, so that different rows give different bytes."""
    if value is None:
        return b"-"
    data = value if isinstance(value, bytes) else str(value).encode()
    return f"{len(data)}:".encode() + data
