"""Read parquet tables in batches that are bounded by rows and by bytes.

Columns are told apart by their position, because a file may have two of one name. Only the needed
columns are read, on S3 only their bytes. The Arrow types that a file may name beside those of
parquet are ignored: reading a text as one of them fails where its bytes are not UTF-8.

A file of some kB can stand for gigabytes, because each row of a page can name one long text. Row
groups with long or well compressed texts are therefore read some rows at a time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask.metadata.aliases import require_url
from namedmask.metadata.text_tables import BATCH_BYTES, BATCH_ROWS
from namedmask.storage import Place
from namedmask.storage.place import readable

LONG_TEXT = 1024
"""Mean number of bytes of a column's texts from which `FEW_ROWS` are read at a time."""

MOST_COMPRESSED = 20
"""Ratio of uncompressed to compressed bytes of a column, likewise."""

FEW_ROWS = 16

_ARROW_SCHEMA = b"ARROW:schema"


@contextmanager
def open_parquet(table: Place) -> Iterator[pq.ParquetFile]:
    """Yield an open parquet table, whose columns have the types of parquet."""
    source = readable(table)
    with nullcontext(source) if isinstance(source, Path) else source:
        with pq.ParquetFile(source) as file:
            footer = file.metadata
            if _ARROW_SCHEMA not in (footer.metadata or {}):
                yield file
                return
        with pq.ParquetFile(source, metadata=_without_arrow_types(footer)) as file:
            yield file


def _without_arrow_types(footer: pq.FileMetaData) -> pq.FileMetaData:
    buffer = io.BytesIO()
    footer.write_metadata_file(buffer)
    other_key = _ARROW_SCHEMA.swapcase()  # of the same length
    return pq.read_metadata(io.BytesIO(buffer.getvalue().replace(_ARROW_SCHEMA, other_key)))


def read_parquet(table: Place, place: str) -> Iterator[pa.Table]:
    """Yield the rows of a table, in order; the columns are named by `ALIASES`.

    Raises:
        SchemaError: there is no column of urls.
        ArrowException, OSError, UnicodeError: the table cannot be read.
    """
    with open_parquet(table) as file:
        names = _names(file, place)
        for group in range(file.num_row_groups):  # a call for all groups would keep them in memory
            yield from _batches(file, group, names)


def read_parquet_rows(table: Place, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows with indices `rows`, (N,) int64 ascending, of a table, as `read_parquet`.

    Only row groups that contain one of the rows are read.

    Raises:
        SchemaError, ArrowException, OSError, UnicodeError: as `read_parquet`.
    """
    first = 0
    with open_parquet(table) as file:
        names = _names(file, str(table))
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            begin, end = np.searchsorted(rows, [first, first + count])
            if begin < end:
                start = first
                for batch in _batches(file, group, names):
                    begin, end = np.searchsorted(rows, [start, start + batch.num_rows])
                    if begin < end:
                        yield batch.take(rows[begin:end] - start)
                    start += batch.num_rows
            first += count


def _names(file: pq.ParquetFile, place: str) -> dict[str, str]:
    columns = file.schema_arrow.names
    return {name: columns[number] for name, number in require_url(columns, place).items()}


def _batches(file: pq.ParquetFile, group: int, names: dict[str, str]) -> Iterator[pa.Table]:
    columns = list(dict.fromkeys(names.values()))
    rows = BATCH_ROWS if _is_plain(file, group, columns) else FEW_ROWS
    parts: list[pa.Table] = []
    count = size = 0
    for batch in file.iter_batches(rows, [group], columns=columns):
        found = batch.schema.names  # of two columns of one name, both are read
        part = pa.table({name: batch.column(found.index(names[name])) for name in names})
        parts, count, size = [*parts, part], count + part.num_rows, size + part.nbytes
        if count >= BATCH_ROWS or size >= BATCH_BYTES:
            yield pa.concat_tables(parts)
            parts, count, size = [], 0, 0
    if parts:
        yield pa.concat_tables(parts)


def _is_plain(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> bool:
    """Return whether the columns to read have short texts that are not compressed too well."""
    described = file.metadata.row_group(group)
    parts = [described.column(number) for number in range(described.num_columns)]
    return not any(
        part.total_uncompressed_size > LONG_TEXT * described.num_rows
        or part.total_uncompressed_size > MOST_COMPRESSED * part.total_compressed_size
        for part in parts
        if part.physical_type == "BYTE_ARRAY" and part.path_in_schema in columns
    )
