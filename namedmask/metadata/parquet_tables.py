"""Read parquet tables in batches that are bounded by rows and by bytes.

Columns are told apart by their position, because a file may have two of one name. Only the needed
columns are read, on S3 only their bytes.

A file of some kB can stand for gigabytes: a page of 300 bytes names one long text in each of its
rows. Row groups with long or well compressed texts are therefore read as dictionaries, and cut into
batches before their texts are repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask.metadata.aliases import require_url
from namedmask.metadata.text_tables import BATCH_BYTES, BATCH_ROWS
from namedmask.metadata.values import text_lengths
from namedmask.storage import Place
from namedmask.storage.place import readable

LONG_TEXT = 1024
"""Mean number of bytes of a column's values from which they are read as dictionaries."""

MOST_COMPRESSED = 20
"""Ratio of uncompressed to compressed bytes of a column, likewise."""


def read_parquet(table: Place, place: str) -> Iterator[pa.Table]:
    """Yield the rows of a table, in order; the columns are named by `ALIASES`.

    Raises:
        SchemaError: there is no column of urls.
        ArrowException, OSError, UnicodeError: the table cannot be read.
    """
    with pq.ParquetFile(readable(table)) as file:
        names = _names(file, place)
        for group in range(file.num_row_groups):  # a call for all groups would keep them in memory
            yield from _batches(file, table, group, names)


def read_parquet_rows(table: Place, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows with indices `rows`, (N,) int64 ascending, of a table, as `read_parquet`.

    Only row groups that contain one of the rows are read.

    Raises:
        SchemaError, ArrowException, OSError, UnicodeError: as `read_parquet`.
    """
    first = 0
    with pq.ParquetFile(readable(table)) as file:
        names = _names(file, str(table))
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin < end:
                start = first
                for batch in _batches(file, table, group, names):
                    begin, end = np.searchsorted(rows, [start, start + batch.num_rows])
                    if begin < end:
                        yield batch.take(rows[begin:end] - start)
                    start += batch.num_rows
            first += count


def _names(file: pq.ParquetFile, place: str) -> dict[str, str]:
    columns = file.schema_arrow.names
    return {name: columns[number] for name, number in require_url(columns, place).items()}


def _batches(
    file: pq.ParquetFile, table: Place, group: int, names: dict[str, str]
) -> Iterator[pa.Table]:
    columns = list(dict.fromkeys(names.values()))
    long, rows = _long_columns(file, group, columns)
    if not long:
        yield from _read(file, group, rows, names, columns)
        return
    with pq.ParquetFile(readable(table), metadata=file.metadata, read_dictionary=long) as again:
        for batch in _read(again, group, rows, names, columns):
            yield from _cut(batch)


def _read(
    file: pq.ParquetFile, group: int, rows: int, names: dict[str, str], columns: Sequence[str]
) -> Iterator[pa.Table]:
    for batch in file.iter_batches(rows, [group], columns=columns):
        found = batch.schema.names  # of two columns of one name, both are read
        yield pa.table({name: batch.column(found.index(names[name])) for name in names})


def _long_columns(
    file: pq.ParquetFile, group: int, columns: Sequence[str]
) -> tuple[list[str], int]:
    """Return the columns to read as dictionaries, and the number of rows per batch."""
    described = file.metadata.row_group(group)
    count, size, long = max(1, described.num_rows), 0, []
    for number in range(described.num_columns):
        part = described.column(number)
        if part.path_in_schema not in columns:
            continue
        size += part.total_uncompressed_size
        is_packed = part.total_uncompressed_size > MOST_COMPRESSED * part.total_compressed_size
        is_long = part.total_uncompressed_size > LONG_TEXT * count
        if part.physical_type == "BYTE_ARRAY" and (is_packed or is_long):
            long.append(part.path_in_schema)
    return long, int(np.clip(BATCH_BYTES * count // max(1, size), 1, BATCH_ROWS))


def _cut(table: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows in tables whose texts have at most `BATCH_BYTES`, if a single row has not."""
    lengths = [text_lengths(chunk) for column in table.columns for chunk in [_whole(column)]]
    ends = np.cumsum(np.sum(lengths, axis=0))
    start = done = 0
    while start < table.num_rows:
        stop = max(start + 1, int(np.searchsorted(ends, done + BATCH_BYTES, "right")))
        yield table.slice(start, stop - start)
        start, done = stop, int(ends[stop - 1])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
