"""The values of one column of a source as texts or numbers, whatever its Arrow type.

All texts enter here, and are valid UTF-8 behind this module: Arrow does not check the bytes of a
string column that it reads. Invalid bytes are replaced by U+FFFD and counted.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask.errors import SchemaError

MAX_TEXT = 1 << 16
"""Largest number of characters of a stored text; no server is asked for a longer url."""

NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
"""Pattern of the texts that are read as numbers."""

REPLACED, CUT, TAGS, UNREAD_TAGS = "replaced", "cut", "tags", "unread tags"
"""Keys of a tally: texts with invalid bytes, captions cut at `MAX_TEXT`, tags, unknown tags."""

UNSURE = "UNSURE"

SCORE_OF_TAG = {
    "NSFW": 1.0, "UNSAFE": 1.0, "TRUE": 1.0, "YES": 1.0, "T": 1.0, "Y": 1.0,
    "UNLIKELY": 0.0, "SFW": 0.0, "SAFE": 0.0, "FALSE": 0.0, "NO": 0.0, "F": 0.0, "N": 0.0,
    UNSURE: np.nan, "": np.nan,
}  # fmt: skip
"""Probability of unsafe content that a tag stands for; NaN for the tags that say nothing."""


def texts(column: pa.ChunkedArray, name: str, place: str, tally: Counter[str]) -> pa.Array:
    """Return the texts of a column, (N,) string; "" for null.

    Raises:
        SchemaError: the values of this type have no text.
    """
    arrays = [_texts_of(chunk, name, place, tally) for chunk in stored(column).chunks]
    whole = (
        arrays[0] if len(arrays) == 1 else pa.chunked_array(arrays, pa.string()).combine_chunks()
    )
    return pc.fill_null(whole, "") if whole.null_count else whole


def numbers(column: pa.ChunkedArray, name: str, place: str, tally: Counter[str]) -> np.ndarray:
    """Return the numbers of a column, (N,) float64; NaN for null and for texts without a number.

    Raises:
        SchemaError: the values of this type are neither numbers nor texts.
    """
    column = stored(column)
    if is_text(column.type):
        text = texts(column, name, place, tally)
        is_number = pc.match_substring_regex(text, NUMBER)
        column = pc.if_else(is_number, pc.utf8_trim_whitespace(text), None)
    elif pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = pc.fill_null(_cast(column, pa.float64(), name, place), np.nan)
    result: np.ndarray = values.to_numpy(zero_copy_only=False)
    return result


def tag_scores(column: pa.ChunkedArray, name: str, place: str, tally: Counter[str]) -> np.ndarray:
    """Return the probability of unsafe content, (N,) float64, that tags, flags or scores give.

    NaN is unknown. Counts the tags, and those of unknown meaning.

    Raises:
        SchemaError: as `numbers`.
    """
    column = stored(column)
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = numbers(column, name, place, tally)
        is_given = ~np.isnan(values)
    else:
        tags = pc.utf8_upper(pc.utf8_trim_whitespace(texts(column, name, place, tally)))
        encoded = tags.dictionary_encode()
        different, rows = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        values = np.array([_score_of(tag) for tag in different], float)[rows]
        is_given = np.array([tag not in ("", UNSURE) for tag in different], bool)[rows]
    scores = np.where((values >= 0) & (values <= 1), values, np.nan)
    tally[TAGS] += int(is_given.sum())
    tally[UNREAD_TAGS] += int((is_given & np.isnan(scores)).sum())
    return scores


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this Arrow type are texts or bytes, also behind a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(
        test(kind)
        for test in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
            pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
            pa.types.is_fixed_size_binary,
        )
    )  # fmt: skip


def stored(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with the plain type that its extension type, if it has one, is stored as."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)


def _texts_of(chunk: pa.Array, name: str, place: str, tally: Counter[str]) -> pa.Array:
    if not is_text(chunk.type):
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        return _cast(chunk, pa.string(), name, place)
    raw = chunk.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:  # some bytes are not UTF-8
        values = [None if value is None else _decoded(value, tally) for value in raw.to_pylist()]
        return pa.array(values, pa.string())


def _decoded(value: bytes, tally: Counter[str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        tally[REPLACED] += 1
        return value.decode("utf-8", "replace")


def _cast(
    column: pa.Array | pa.ChunkedArray, kind: pa.DataType, name: str, place: str
) -> pa.Array | pa.ChunkedArray:
    try:
        return column.cast(kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"table '{place}': the column for '{name}' is of type {column.type} and "
            f"cannot be read as {kind}: {error}"
        ) from error


def _score_of(tag: str) -> float:
    if tag in SCORE_OF_TAG:
        return SCORE_OF_TAG[tag]
    try:
        return float(tag)
    except ValueError:
        return np.nan
