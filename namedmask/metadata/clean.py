"""Read any metadata source as a stream of clean tables; mark the rows that the metadata rules out.

The tables have the schema `schema.METADATA`. sources.py finds the columns, and this module casts
their values and checks their ranges:

* A width or height that is not a number of at least 1 becomes 0, which means unknown. Unknown sizes
  pass the size filters.
* The size filters compare the shorter and the longer side, because LAION-5B swaps HEIGHT and WIDTH.
* A similarity outside [-1, 1] or a probability outside [0, 1] becomes null, which means unknown. A
  row passes the filters of similarity and pwatermark if these values are unknown.
  `metadata.unknown_punsafe` decides whether a row with an unknown punsafe passes.
* The tag NSFW counts as punsafe 1. The tag UNLIKELY means that an unknown punsafe is safe. UNSURE
  and all other tags have no effect.
* An md5 has 32 and a sha256 has 64 lower-case hexadecimal digits; any other value becomes null.
* Only the first row of each url in the whole input is used. A later row becomes `duplicate_url`
  unless a filter rules it out. If the first row of a url is ruled out, later rows of the same url
  are not used either.

The status of a row is the first of the following that applies: bad_url, unsafe, too_small,
bad_aspect, bad_similarity, watermark, duplicate_url, ok.
Method: safe mode and the removal of duplicate urls follow the original code's retrieval page. The
page's safety network needs image vectors, so LAION's published punsafe replaces it here.
Cost per million rows on one busy cloud core: 20 s. Memory: see seen_urls.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask.config import MetadataConfig
from namedmask.errors import SchemaError
from namedmask.metadata.seen_urls import SeenUrls
from namedmask.metadata.sources import places_of, read_place, read_rows
from namedmask.metadata.urls import normalize_url, url_digest
from namedmask.schema.columns import METADATA
from namedmask.schema.status import (
    BAD_ASPECT,
    BAD_SIMILARITY,
    BAD_URL,
    DUPLICATE_URL,
    OK,
    TOO_SMALL,
    UNSAFE,
    WATERMARK,
)
from namedmask.storage import Place

TEXTS = ("url", "caption", "nsfw")
NUMBERS = ("width", "height", "similarity", "punsafe", "pwatermark")
HASHES = {"md5": 32, "sha256": 64}
"""Number of hexadecimal digits of each hash column."""

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def read_metadata(config: MetadataConfig) -> Iterator[pa.Table]:
    """Return an iterator over the rows of all sources, in order, as tables of `schema.METADATA`.

    Raises:
        ConfigError: no source is given, or a source does not exist or matches no file; during
            iteration, a folder contains no image.
        SchemaError: during iteration, a table has no column of urls, or a column of a wrong type.
        InputError: during iteration, a table cannot be read, or the disk for `SeenUrls` is full.
    """
    return _limited(_clean_all(places_of(config.source), config), config.max_rows)


def clean_place(place: str, config: MetadataConfig) -> Iterator[pa.Table]:
    """Yield the rows of one table or image folder as tables of `schema.METADATA`.

    Repeated urls are not marked yet; see `mark_repeated`.

    Raises:
        ConfigError, SchemaError, InputError: during iteration, as `read_metadata`.
    """
    for raw in read_place(place):
        if raw.num_rows:
            yield _clean(raw, config, place)


def rows_of(place: Place, rows: np.ndarray, config: MetadataConfig) -> pa.Table:
    """Return some rows of the parquet table `place` as `schema.METADATA`.

    `rows` are the indices of the rows, (N,) int64 ascending.

    Raises:
        SchemaError, InputError: as `read_metadata` during iteration.
    """
    cleaned = [_clean(raw, config, str(place)) for raw in read_rows(place, rows)]
    return pa.concat_tables(cleaned) if cleaned else METADATA.empty_table()


def url_digests(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, (N,) int64 ascending, and the digests, (N,) S10, of all valid urls."""
    rows = np.flatnonzero(pc.not_equal(table["status"], BAD_URL).to_numpy())
    digests = [bytes.fromhex(digest) for digest in table["sample_id"].take(rows).to_pylist()]
    return rows, np.array(digests, "S10")


def mark_repeated(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return `table` with status `duplicate_url` in each of `rows`, (N,) int64, that was ok."""
    status = np.array(table["status"].to_pylist(), object)
    rows = rows[status[rows] == OK]
    status[rows] = DUPLICATE_URL
    index = table.schema.get_field_index("status")
    return table.set_column(index, METADATA.field("status"), pa.array(status, pa.string()))


def waves(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield all rows of `tables`, in order, as tables of `rows` rows; the last may be shorter."""
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        if count < rows:
            continue
        joined = pa.concat_tables(pending)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield joined.slice(start, rows).combine_chunks()
        pending, count = [joined.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _limited(tables: Iterator[pa.Table], max_rows: int) -> Iterator[pa.Table]:
    left = max_rows
    for table in tables:
        yield table.slice(0, left) if max_rows else table
        left -= table.num_rows
        if max_rows and left <= 0:
            return


def _clean_all(places: list[str], config: MetadataConfig) -> Iterator[pa.Table]:
    with SeenUrls() as seen:
        for place in places:
            for table in clean_place(place, config):
                rows, digests = url_digests(table)
                yield mark_repeated(table, rows[seen.find_repeats(digests)])


def _clean(raw: pa.Table, config: MetadataConfig, place: str) -> pa.Table:
    text = {name: _texts(raw, name, place) for name in TEXTS}
    number = {name: _numbers(raw, name, place) for name in NUMBERS}
    urls = text["url"].to_pylist()
    normalized = [normalize_url(url) for url in urls]
    width, height = _sides(number["width"]), _sides(number["height"])
    punsafe, pwatermark = _within(number["punsafe"], 0, 1), _within(number["pwatermark"], 0, 1)
    similarity = _within(number["similarity"], -1, 1)
    tag = pc.utf8_upper(pc.utf8_trim_whitespace(text["nsfw"]))
    conditions = {
        BAD_URL: np.array([not url for url in normalized]),
        UNSAFE: _unsafe(punsafe, tag, config),
        **_size_conditions(width, height, config),
        BAD_SIMILARITY: (similarity < config.min_similarity)
        | (similarity > config.max_similarity),  # false for NaN
        WATERMARK: pwatermark > config.max_pwatermark,
    }
    ids = [url_digest(normal or url) for normal, url in zip(normalized, urls, strict=True)]
    columns = {
        "sample_id": ids,
        "url": urls,
        "caption": text["caption"],
        "width": width,
        "height": height,
        "similarity": _nullable(similarity),
        "punsafe": _nullable(punsafe),
        **{name: _hashes(raw, name, place) for name in HASHES},
        "status": np.select(list(conditions.values()), list(conditions), OK).tolist(),
    }
    return pa.table(columns).cast(METADATA)


def _texts(raw: pa.Table, name: str, place: str) -> pa.ChunkedArray:
    if name not in raw.column_names:
        return pa.chunked_array([pa.array([""] * raw.num_rows)])
    column = raw[name]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        values = column.to_pylist()
        return pa.chunked_array([[(value or b"").decode("utf-8", "replace") for value in values]])
    return pc.fill_null(_cast(column, pa.string(), name, place), "")


def _hashes(raw: pa.Table, name: str, place: str) -> pa.ChunkedArray:
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(_texts(raw, name, place)))
    is_hash = pc.match_substring_regex(texts, f"^[0-9a-f]{{{HASHES[name]}}}$")
    return pc.if_else(is_hash, texts, pa.scalar(None, texts.type))


def _numbers(raw: pa.Table, name: str, place: str) -> np.ndarray:
    if name not in raw.column_names:
        return np.full(raw.num_rows, np.nan)
    column = raw[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        is_number = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(is_number, pc.utf8_trim_whitespace(column), None)
    values = pc.fill_null(_cast(column, pa.float64(), name, place), np.nan)
    result: np.ndarray = values.to_numpy()
    return result


def _cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, place: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"table '{place}': the column for '{name}' is of type {column.type} and "
            f"cannot be read as {kind}: {error}"
        ) from error


def _sides(values: np.ndarray) -> np.ndarray:
    known = (values >= 1) & (values < 2**31)  # false for NaN
    return np.where(known, values, 0).astype(np.int32)


def _within(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.where((values >= low) & (values <= high), values, np.nan)


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), from_pandas=True)


def _unsafe(punsafe: np.ndarray, tag: pa.ChunkedArray, config: MetadataConfig) -> np.ndarray:
    tagged = pc.equal(tag, "NSFW").to_numpy()
    cleared = pc.equal(tag, "UNLIKELY").to_numpy()
    unsafe = np.where(tagged, 1.0, punsafe) > config.max_punsafe
    if config.unknown_punsafe == "drop":
        unsafe |= np.isnan(punsafe) & ~tagged & ~cleared
    return unsafe


def _size_conditions(
    width: np.ndarray, height: np.ndarray, config: MetadataConfig
) -> dict[str, np.ndarray]:
    short, long = np.minimum(width, height), np.maximum(width, height)
    known = short > 0
    aspect = long / np.maximum(short, 1)
    return {
        TOO_SMALL: known & (short < config.min_side),
        BAD_ASPECT: known & (aspect > (config.max_aspect or np.inf)),
    }
