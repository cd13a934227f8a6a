"""Read the sources in `metadata.source` as tables with the package's own column names.

Columns are found by their aliases (aliases.py), in any order and in upper or lower case; all other
columns stay unread. The kind of a source follows from its name: a folder of images (folders.py), a
text table (text_tables.py), or else a parquet file (parquet_tables.py).

Every row is read, including the rows that a filter will rule out. Each row is counted with its
status, gets a sample id from its url, and turns later rows with its url into duplicates. Parquet's
row filters therefore cannot be used. Reading is one twentieth of the cost of a row
(`python bench/metadata.py`).
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import has_magic
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from namedmask.errors import ConfigError, InputError
from namedmask.metadata.folders import read_folder
from namedmask.metadata.parquet_tables import read_parquet, read_parquet_rows
from namedmask.metadata.text_tables import Say, read_text_table, suffix_of
from namedmask.storage import Place, is_s3, place_of
from namedmask.storage.patterns import expand
from namedmask.storage.place import fetched

_log = logging.getLogger(__name__)

KINDS = "parquet, or by their names CSV (.csv), TSV (.tsv), JSON lines (.jsonl), urls (.txt)"
"""Kinds of tables that can be read, for messages."""

DOWNLOAD_TIMEOUT_S = 60.0


def places_of(sources: Sequence[str]) -> list[str]:
    """Return the tables and image folders that the sources name, in order; expand wildcards.

    Raises:
        ConfigError: no source is given, or a source does not exist or matches no file.
    """
    if not sources:
        raise ConfigError(
            "metadata.source is empty. Give parquet files, CSV files or a folder of images."
        )
    return [place for source in sources for place in _expand(source)]


def read_place(place: str, say: Say = _log.warning) -> Iterator[pa.Table]:
    """Yield the rows of one table or image folder, in order.

    The columns are named by the keys of `ALIASES`, and have the types of the source. Columns that
    the source lacks are left out. A table in which the source could not give a row also has the
    column `FAULT`. `say` is called with one sentence about anything that is left out.

    Raises:
        ConfigError: the folder contains no image.
        SchemaError: the table has no column of urls.
        InputError: the table or folder cannot be read.
    """
    if not is_s3(place) and os.path.isdir(place):
        yield from read_folder(Path(place), say)
        return
    try:
        if suffix := suffix_of(_name(place)):
            with _local(place) as path:
                yield from read_text_table(path, suffix, place, say)
        elif _is_on_web(place):
            with _downloaded(place) as path:
                yield from read_parquet(path, place)
        else:
            yield from read_parquet(place_of(place), place)
    except UNREADABLE_TABLE as error:
        raise unreadable_table(f"metadata.source '{place}'", error) from error


UNREADABLE_TABLE = (pa.ArrowException, OSError, EOFError, UnicodeError, zlib.error)
"""Errors of a table that cannot be read."""


def unreadable_table(place: str, error: BaseException) -> InputError:
    """Return the error to raise for a table that cannot be read."""
    return InputError(
        f"{place} cannot be read as a table: {str(error).rstrip('. ')}. Tables can be {KINDS}."
    )


def read_rows(place: Place, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows with indices `rows`, (N,) int64 ascending, of a parquet table.

    The columns are as in `read_place`. Only row groups that contain one of the rows are read.

    Raises:
        SchemaError, InputError: as `read_place`.
    """
    try:
        yield from read_parquet_rows(place, rows)
    except UNREADABLE_TABLE as error:
        raise unreadable_table(str(place), error) from error


def _expand(source: str) -> list[str]:
    if _is_on_web(source) or os.path.lexists(source):
        return [source]
    if not has_magic(source) and not is_s3(source):
        raise ConfigError(f"metadata.source '{source}' does not exist.")
    files = expand(source)
    if not files:
        raise ConfigError(f"metadata.source '{source}' matches no file.")
    return files


def _is_on_web(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _name(place: str) -> str:
    return Path(urlsplit(place).path if _is_on_web(place) else place).name


def _local(place: str) -> AbstractContextManager[Path]:
    return _downloaded(place) if _is_on_web(place) else fetched(place_of(place))


@contextmanager
def _downloaded(place: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="namedmask-") as folder:
        path = Path(folder) / (_name(place) or "table")
        try:
            with (
                urllib.request.urlopen(place, timeout=DOWNLOAD_TIMEOUT_S) as response,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(response, file)
                expected = int(response.headers.get("Content-Length") or file.tell())
                if file.tell() != expected:  # only the size reveals that a CSV file is truncated
                    raise ValueError(f"the body ended after {file.tell():,} of {expected:,} bytes")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(f"metadata.source '{place}' cannot be downloaded: {error}") from error
        yield path
