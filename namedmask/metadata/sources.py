"""Read the sources in `metadata.source` as tables with the package's own column names.

Columns are found by their aliases, in any order and in upper or lower case; all other columns stay
unread. A parquet file is read by row groups and batches; on S3, only the bytes of the needed
columns are requested. The columns of a CSV file are read as text, so that malformed values raise no
error. A folder of images gives one row per image; the caption is the file name, or the name of the
folder if the file name has no letters.

Every row is read, including the rows that a filter will rule out. Each row is counted with its
status, gets a sample id from its url, and turns later rows with its url into duplicates. Parquet's
row filters therefore cannot be used. Reading is one twentieth of the cost of a row
(`python bench/metadata.py`).
"""

from __future__ import annotations

import http.client
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from glob import has_magic
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from namedmask.errors import ConfigError, InputError, SchemaError
from namedmask.storage import Place, is_s3, place_of
from namedmask.storage.place import expand, fetched, readable

ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "img_url"),
    "caption": ("caption", "text", "alt_text", "alt"),
    "width": ("original_width", "width"),  # in img2dataset, `width` is that of the resized file
    "height": ("original_height", "height"),
    "similarity": ("similarity", "clip_similarity_vitl14", "clip_similarity_vitb32"),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "nsfw": ("nsfw",),
    "pwatermark": ("pwatermark", "watermark_score"),
    "md5": ("md5",),
    "sha256": ("sha256",),
}
"""Names that a source may use for each column, in lower case, the preferred name first.

Only `url` is required. The `status` column of img2dataset is ignored, because an image that it
could not download may be available now.
"""

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"))
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")

BATCH_ROWS = 2048
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


def read_place(place: str) -> Iterator[pa.Table]:
    """Yield the rows of one table or image folder, in order.

    The columns are named by the keys of `ALIASES`. Columns that the source lacks are left out.

    Raises:
        ConfigError: the folder contains no image.
        SchemaError: the table has no column of urls.
        InputError: the table cannot be read.
    """
    if not is_s3(place) and Path(place).is_dir():
        yield from _read_folder(Path(place))
        return
    try:
        if _name(place).lower().endswith(CSV_SUFFIXES):
            with _local(place) as path:
                yield from _read_csv(path, place)
        elif _is_on_web(place):
            with _downloaded(place) as path:
                yield from _read_parquet(path, place)
        else:
            yield from _read_parquet(place_of(place), place)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"metadata.source '{place}' cannot be read as a table: {error}") from error


def read_rows(place: Place, rows: np.ndarray) -> Iterator[pa.Table]:
    """Yield the rows with indices `rows`, (N,) int64 ascending, of a parquet table.

    The columns are as in `read_place`. Only row groups that contain one of the rows are read.

    Raises:
        SchemaError, InputError: as `read_place`.
    """
    first = 0
    try:
        with pq.ParquetFile(readable(place)) as file:
            names = _find(file.schema_arrow.names, str(place))
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                begin, end = np.searchsorted(rows, [first, first + count])
                if begin < end:
                    raw = file.read_row_group(group, columns=list(names.values()))
                    yield _renamed(raw.take(rows[begin:end] - first), names)
                first += count
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{place} cannot be read as a table: {error}") from error


def _expand(source: str) -> list[str]:
    if _is_on_web(source) or Path(source).exists():
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


def _read_parquet(table: Place, place: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(readable(table)) as file:
        names = _find(file.schema_arrow.names, place)
        for group in range(file.num_row_groups):  # a call for all groups would keep them in memory
            for batch in file.iter_batches(BATCH_ROWS, [group], columns=list(names.values())):
                yield _renamed(batch, names)


def _read_csv(path: Path, place: str) -> Iterator[pa.Table]:
    parse = pacsv.ParseOptions(
        delimiter="\t" if ".tsv" in path.name.lower() else ",", newlines_in_values=True
    )
    with pacsv.open_csv(str(path), parse_options=parse) as head:
        names = _find(head.schema.names, place)
    # All columns are text, because a type inferred from the first block may not fit later values.
    convert = pacsv.ConvertOptions(
        include_columns=list(names.values()),
        column_types={column: pa.string() for column in names.values()},
    )
    with pacsv.open_csv(str(path), parse_options=parse, convert_options=convert) as file:
        for batch in file:
            yield _renamed(batch, names)


def _read_folder(folder: Path) -> Iterator[pa.Table]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ConfigError(
            f"metadata.source '{folder}' contains no image. For a folder of tables, write "
            f"'{folder}/*.parquet'."
        )
    for start in range(0, len(paths), BATCH_ROWS):
        batch = paths[start : start + BATCH_ROWS]
        yield pa.table(
            {
                "url": [path.resolve().as_uri() for path in batch],
                "caption": [_caption(path) for path in batch],
            }
        )


def _caption(path: Path) -> str:
    # A file name without letters is only a number, but the folder's name may describe the image.
    name = path.stem if any(letter.isalpha() for letter in path.stem) else path.parent.name
    return re.sub(r"[_-]+", " ", name).strip()


def _find(columns: list[str], place: str) -> dict[str, str]:
    by_lower = {column.lower(): column for column in reversed(columns)}
    names = {
        name: by_lower[alias]
        for name, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if alias in by_lower
    }
    if "url" not in names:
        raise SchemaError(
            f"table '{place}' has no column of urls (url, in any case, or "
            f"{', '.join(ALIASES['url'][1:])}); columns are {', '.join(columns) or 'none'}."
        )
    return names


def _renamed(raw: pa.Table | pa.RecordBatch, names: dict[str, str]) -> pa.Table:
    return pa.table({name: raw[column] for name, column in names.items()})
