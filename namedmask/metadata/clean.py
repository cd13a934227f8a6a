"""Read any metadata source as a stream of clean tables; mark the rows that the metadata rules out.

The tables have the schema `schema.METADATA`. sources.py finds the columns, values.py reads their
values as texts and numbers, and this module checks their ranges:

* A width or height that is not a number of at least 1 becomes 0, which means unknown. Unknown sizes
  pass the size filters.
* The size filters compare the shorter and the longer side, because LAION-5B swaps HEIGHT and WIDTH.
* A similarity outside [-1, 1] or a probability outside [0, 1] becomes null, which means unknown. A
  row passes the filters of similarity and pwatermark if these values are unknown.
  `metadata.unknown_punsafe` decides whether a row with an unknown punsafe passes.
* The column nsfw may hold tags, flags or probabilities. The tag NSFW and true count as punsafe 1,
  UNLIKELY and false as punsafe 0; the higher of this number and of punsafe counts. UNSURE and all
  other values have no effect; other values are counted, and the log says so.
* An md5 has 32 and a sha256 has 64 lower-case hexadecimal digits; any other value becomes null.
* Only the first row of each url in the whole input is used. A later row becomes `duplicate_url`
  unless a filter rules it out. If the first row of a url is ruled out, later rows of the same url
  are not used either.

The status of a row is the first of the following that applies: bad_row (or another fault of the
source), bad_url, unsafe, too_small, bad_aspect, bad_similarity, watermark, duplicate_url, ok.
Stored texts have at most `MAX_TEXT` characters; a longer url is a bad_url.
Method: safe mode and the removal of duplicate urls follow the original code's retrieval page. The
page's safety network needs image vectors, so LAION's published punsafe replaces it here.
Cost per million rows on one busy cloud core: 20 s. Memory: see seen_urls.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask.config import MetadataConfig
from namedmask.metadata.aliases import FAULT
from namedmask.metadata.seen_urls import SeenUrls
from namedmask.metadata.sources import places_of, read_place, read_rows
from namedmask.metadata.text_tables import Say
from namedmask.metadata.urls import normalize_url, url_digest
from namedmask.metadata.values import (
    CUT,
    MAX_TEXT,
    REPLACED,
    TAGS,
    UNREAD_TAGS,
    numbers,
    tag_scores,
    texts,
)
from namedmask.schema.columns import METADATA
from namedmask.schema.status import (
    BAD_ASPECT,
    BAD_ROW,
    BAD_SIMILARITY,
    BAD_URL,
    DUPLICATE_URL,
    NO_PERMISSION,
    OK,
    TOO_SMALL,
    UNREADABLE,
    UNSAFE,
    WATERMARK,
)
from namedmask.storage import Place

NUMBERS = ("width", "height", "similarity", "punsafe", "pwatermark")
SOURCE_FAULTS = (BAD_ROW, NO_PERMISSION, UNREADABLE)
"""Statuses that a source itself gives to a row."""

WITHOUT_URL = (*SOURCE_FAULTS, BAD_URL)
"""Statuses of rows without a valid url."""

HASHES = {"md5": 32, "sha256": 64}
"""Number of hexadecimal digits of each hash column."""

_log = logging.getLogger(__name__)


def read_metadata(config: MetadataConfig) -> Iterator[pa.Table]:
    """Return an iterator over the rows of all sources, in order, as tables of `schema.METADATA`.

    Raises:
        ConfigError: no source is given, or a source does not exist or matches no file; during
            iteration, a folder contains no image.
        SchemaError: during iteration, a table has no column of urls, or a column of a wrong type.
        InputError: during iteration, a table cannot be read, or the disk for `SeenUrls` is full.
    """
    return _limited(_clean_all(places_of(config.source), config), config.max_rows)


def clean_place(place: str, config: MetadataConfig, say: Say = _log.warning) -> Iterator[pa.Table]:
    """Yield the rows of one table or image folder as tables of `schema.METADATA`.

    Repeated urls are not marked yet; see `mark_repeated`. `say` is called with one sentence about
    any values that are left out or replaced.

    Raises:
        ConfigError, SchemaError, InputError: during iteration, as `read_metadata`.
    """
    tally: Counter[str] = Counter()
    try:
        for raw in read_place(place, say):
            if raw.num_rows:
                yield _clean(raw, config, place, tally)
    finally:  # also if metadata.max_rows ends the iteration
        for sentence in _findings(tally, place):
            say(sentence)


def rows_of(place: Place, rows: np.ndarray, config: MetadataConfig) -> pa.Table:
    """Return some rows of the parquet table `place` as `schema.METADATA`.

    `rows` are the indices of the rows, (N,) int64 ascending.

    Raises:
        SchemaError, InputError: as `read_metadata` during iteration.
    """
    tally: Counter[str] = Counter()
    cleaned = [_clean(raw, config, str(place), tally) for raw in read_rows(place, rows)]
    for sentence in _findings(tally, str(place)):
        _log.warning(sentence)
    return pa.concat_tables(cleaned) if cleaned else METADATA.empty_table()


def url_digests(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, (N,) int64 ascending, and the digests, (N,) S10, of all valid urls."""
    has_none = pc.is_in(table["status"], pa.array(WITHOUT_URL))
    rows = np.flatnonzero(pc.invert(has_none).to_numpy())
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


def _clean(raw: pa.Table, config: MetadataConfig, place: str, tally: Counter[str]) -> pa.Table:
    def text_of(name: str) -> pa.Array:
        if name not in raw.column_names:
            return pa.array([""] * raw.num_rows, pa.string())
        return texts(raw[name], name, place, tally)

    def number_of(name: str) -> np.ndarray:
        if name not in raw.column_names:
            return np.full(raw.num_rows, np.nan)
        read = tag_scores if name == "nsfw" else numbers
        return read(raw[name], name, place, tally)

    urls = text_of("url").to_pylist()
    normalized = [normalize_url(url) if len(url) <= MAX_TEXT else "" for url in urls]
    number = {name: number_of(name) for name in NUMBERS}
    width, height = _sides(number["width"]), _sides(number["height"])
    punsafe, pwatermark = _within(number["punsafe"], 0, 1), _within(number["pwatermark"], 0, 1)
    similarity = _within(number["similarity"], -1, 1)
    conditions = {
        **_faults(raw),
        BAD_URL: np.array([not url for url in normalized]),
        UNSAFE: _unsafe(np.fmax(punsafe, number_of("nsfw")), config),
        **_size_conditions(width, height, config),
        BAD_SIMILARITY: (similarity < config.min_similarity)
        | (similarity > config.max_similarity),  # false for NaN
        WATERMARK: pwatermark > config.max_pwatermark,
    }
    ids = [url_digest(normal or url) for normal, url in zip(normalized, urls, strict=True)]
    columns = {
        "sample_id": ids,
        "url": [url[:MAX_TEXT] for url in urls],
        "caption": _cut(text_of("caption"), tally),
        "width": width,
        "height": height,
        "similarity": _nullable(similarity),
        "punsafe": _nullable(punsafe),
        **{name: _hashes(text_of(name), digits) for name, digits in HASHES.items()},
        "status": np.select(list(conditions.values()), list(conditions), OK).tolist(),
    }
    return pa.table(columns).cast(METADATA)


def _faults(raw: pa.Table) -> dict[str, np.ndarray]:
    """Return which rows, (N,) bool, have each status that the source itself has given."""
    if FAULT not in raw.column_names:
        return {}
    faults = np.array(raw[FAULT].to_pylist(), object)
    return {status: faults == status for status in SOURCE_FAULTS}


def _cut(captions: pa.Array, tally: Counter[str]) -> pa.Array:
    if (pc.max(pc.binary_length(captions)).as_py() or 0) <= MAX_TEXT:
        return captions
    tally[CUT] += pc.sum(pc.greater(pc.utf8_length(captions), MAX_TEXT)).as_py()
    return pc.utf8_slice_codeunits(captions, 0, MAX_TEXT)


def _findings(tally: Counter[str], place: str) -> Iterator[str]:
    """Yield one sentence about each kind of value of a source that was not used as it is."""
    source = f"metadata.source '{place}'"
    if tally[REPLACED]:
        yield (
            f"{source}: bytes that are not UTF-8 are replaced in this number of texts: "
            f"{tally[REPLACED]:,}. If the texts matter, save the table as UTF-8."
        )
    if tally[CUT]:
        yield f"{source}: {tally[CUT]:,} captions are cut at {MAX_TEXT:,} characters."
    if tally[UNREAD_TAGS]:
        yield (
            f"{source}: {tally[UNREAD_TAGS]:,} of {tally[TAGS]:,} values of the column 'nsfw' say "
            "nothing; expected NSFW, UNSURE or UNLIKELY, true or false, or a probability."
        )


def _hashes(values: pa.Array, digits: int) -> pa.Array:
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(values))
    is_hash = pc.match_substring_regex(lower, f"^[0-9a-f]{{{digits}}}$")
    return pc.if_else(is_hash, lower, pa.scalar(None, lower.type))


def _sides(values: np.ndarray) -> np.ndarray:
    known = (values >= 1) & (values < 2**31)  # false for NaN
    return np.where(known, values, 0).astype(np.int32)


def _within(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.where((values >= low) & (values <= high), values, np.nan)


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), from_pandas=True)


def _unsafe(punsafe: np.ndarray, config: MetadataConfig) -> np.ndarray:
    unsafe: np.ndarray = punsafe > config.max_punsafe
    if config.unknown_punsafe == "drop":
        unsafe |= np.isnan(punsafe)
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
