"""Rows of any source in, one clean table stream out, with what the metadata alone rules out marked.

Out: `schema.METADATA`. Which columns are what is found in sources.py; here their values are cast
and range-checked:

* a width or height that is no number from 1 up is 0, unknown; unknown sizes pass the size filters;
* size filters look at the shorter and the longer side, for LAION-5B swaps HEIGHT and WIDTH;
* a similarity outside [-1, 1], a probability outside [0, 1] are null; an unknown similarity or
  watermark passes its filter, an unknown punsafe is kept or dropped as the config says;
* the tag NSFW counts as punsafe 1; UNLIKELY is safe; UNSURE and anything else says nothing;
* md5 and sha256 are so many hexadecimal digits, in lower case, or null;
* one url is taken once over the whole input, its first row; a later row is `duplicate_url` unless
  it has a reason of its own, and a clean row never revives a url whose first row was filtered.

Status, first that holds: bad_url, unsafe, too_small, bad_aspect, bad_similarity, watermark,
duplicate_url, ok.
Method: safe mode and duplicate urls as the seed's retrieval page had them; the page's own safety
network needs vectors, so here LAION's published punsafe stands in for it.
Cost per million rows on one busy cloud core: 20 s; memory as in repeats.py.
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
"""Columns of hexadecimal digits, and how many."""

_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def read_metadata(config: MetadataConfig) -> Iterator[pa.Table]:
    """Return the rows of all sources in order as tables of `schema.METADATA`.

    Raises:
        ConfigError: no source is given, or one does not exist, is empty or of no known kind.
        SchemaError: on the way, a table has no column of urls.
        InputError: on the way, a table cannot be read.
    """
    return _limited(_clean_all(places_of(config.source), config), config.max_rows)


def clean_place(place: str, config: MetadataConfig) -> Iterator[pa.Table]:
    """Yield the rows of one place as `schema.METADATA`, urls that repeat not yet marked.

    Raises:
        ConfigError, SchemaError, InputError: as `read_metadata` on the way.
    """
    for raw in read_place(place):
        if raw.num_rows:
            yield _clean(raw, config, place)


def rows_of(place: Place, rows: np.ndarray, config: MetadataConfig) -> pa.Table:
    """Return some rows, (N,) int64 ascending, of a parquet table as `schema.METADATA`.

    Raises:
        SchemaError, InputError: as `read_metadata` on the way.
    """
    cleaned = [_clean(raw, config, str(place)) for raw in read_rows(place, rows)]
    return pa.concat_tables(cleaned) if cleaned else METADATA.empty_table()


def url_digests(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that have a url, (N,) int64 ascending, and its digest, (N,) S10."""
    rows = np.flatnonzero(pc.not_equal(table["status"], BAD_URL).to_numpy())
    digests = [bytes.fromhex(one) for one in table["sample_id"].take(rows).to_pylist()]
    return rows, np.array(digests, "S10")


def mark_repeated(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return `table` with `duplicate_url` at those of `rows`, int64, that are still ok."""
    status = np.array(table["status"].to_pylist(), object)
    rows = rows[status[rows] == OK]
    status[rows] = DUPLICATE_URL
    place = table.schema.get_field_index("status")
    return table.set_column(place, METADATA.field("status"), pa.array(status, pa.string()))


def waves(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Return the same rows in tables of exactly `rows` rows, the last one perhaps shorter."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        if count < rows:
            continue
        joined = pa.concat_tables(held)
        whole = count - count % rows
        for start in range(0, whole, rows):
            yield joined.slice(start, rows).combine_chunks()
        held, count = [joined.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(held).combine_chunks()


def _limited(tables: Iterator[pa.Table], max_rows: int) -> Iterator[pa.Table]:
    left = max_rows
    for table in tables:
        yield table.slice(0, left) if max_rows else table
        left -= table.num_rows
        if max_rows and left <= 0:
            return


def _clean_all(places: list[str], config: MetadataConfig) -> Iterator[pa.Table]:
    with SeenUrls() as repeats:
        for place in places:
            for table in clean_place(place, config):
                rows, digests = url_digests(table)
                yield mark_repeated(table, rows[repeats.of(digests)])


def _clean(raw: pa.Table, config: MetadataConfig, place: str) -> pa.Table:
    text = {name: _texts(raw, name, place) for name in TEXTS}
    number = {name: _numbers(raw, name, place) for name in NUMBERS}
    urls = text["url"].to_pylist()
    normal = [normalize_url(url) for url in urls]
    width, height = _sides(number["width"]), _sides(number["height"])
    punsafe, pwatermark = _within(number["punsafe"], 0, 1), _within(number["pwatermark"], 0, 1)
    similarity = _within(number["similarity"], -1, 1)
    tag = pc.utf8_upper(pc.utf8_trim_whitespace(text["nsfw"]))
    reasons = {
        BAD_URL: np.array([not url for url in normal]),
        UNSAFE: _unsafe(punsafe, tag, config),
        **_size_reasons(width, height, config),
        BAD_SIMILARITY: (similarity < config.min_similarity)
        | (similarity > config.max_similarity),  # false for NaN
        WATERMARK: pwatermark > config.max_pwatermark,
    }
    ids = [url_digest(one or url) for one, url in zip(normal, urls, strict=True)]
    columns = {
        "sample_id": ids,
        "url": urls,
        "caption": text["caption"],
        "width": width,
        "height": height,
        "similarity": _nullable(similarity),
        "punsafe": _nullable(punsafe),
        **{name: _hashes(raw, name, place) for name in HASHES},
        "status": np.select(list(reasons.values()), list(reasons), OK).tolist(),
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
    return values.to_numpy()


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


def _size_reasons(
    width: np.ndarray, height: np.ndarray, config: MetadataConfig
) -> dict[str, np.ndarray]:
    short, long = np.minimum(width, height), np.maximum(width, height)
    known = short > 0
    aspect = long / np.maximum(short, 1)
    return {
        TOO_SMALL: known & (short < config.min_side),
        BAD_ASPECT: known & (aspect > (config.max_aspect or np.inf)),
    }
