"""Read CSV, TSV, JSON lines and lists of urls as tables of binary columns.

* TSV (`.tsv`, `.tab`): a tab between fields, and no quotes.
* CSV (`.csv`): a comma, or the semicolon, tab or bar that separates a url column from the others in
  the first line; quotes as in records.py.
* JSON lines (`.jsonl`, `.ndjson`, `.json`): one object per line.
* A list (`.txt`): one url per line.

Each of these may be compressed, with or without `.gz` in the name, and in any encoding that
lines.py detects. An empty line is no row. A line that does not have the fields of the header, or is
no JSON object, becomes a row with status `bad_row`, so that every line is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from namedmask.errors import InputError
from namedmask.metadata.aliases import ALIASES, FAULT, positions, require_url
from namedmask.metadata.lines import as_text, read_lines
from namedmask.metadata.records import Grammar, Record, read_records
from namedmask.schema.status import BAD_ROW

BATCH_ROWS = 2048
"""Largest number of rows of a table."""

BATCH_BYTES = 32 << 20
"""Number of bytes at which a table of fewer rows ends."""

SEPARATORS = {".tsv": "\t", ".tab": "\t", ".csv": ",;\t|"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*SEPARATORS, *JSON_SUFFIXES, ".txt")

Row: TypeAlias = tuple[Sequence[bytes | None] | None, str]
"""The values of a row, or None for a bad row, and the bytes of its line."""

Say: TypeAlias = Callable[[str], None]
"""A function that tells the person who started the run one sentence."""


def suffix_of(name: str) -> str:
    """Return the suffix of a text table, in lower case and without `.gz`; "" for other files."""
    plain = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if plain.endswith(suffix)), "")


def read_text_table(path: Path, suffix: str, place: str, say: Say) -> Iterator[pa.Table]:
    """Yield the rows of a file, in order, as binary columns that are named by `ALIASES`.

    A table with bad rows also has the column `FAULT`.

    Raises:
        SchemaError: there is no column of urls.
        InputError: the file is empty, a quoted field is never closed, or the first line is no JSON.
        OSError, EOFError, zlib.error: the file cannot be read or decompressed.
    """
    first = next((line for line in read_lines(path) if line is None or line.strip("\r\n")), None)
    if first is None:
        raise InputError(f"metadata.source '{place}' is empty. Remove or restore it.")
    if suffix == ".txt":
        yield from _batches(_listed(read_lines(path)), ("url",))
    elif suffix in JSON_SUFFIXES:
        yield from _batches(_objects(read_lines(path), place), tuple(ALIASES))
    else:
        yield from _read_separated(path, SEPARATORS[suffix], first or "", place, say)


def _read_separated(
    path: Path, separators: str, first: str, place: str, say: Say
) -> Iterator[pa.Table]:
    grammars = [Grammar(separator) for separator in separators]
    headers = [_names(grammar, first) for grammar in grammars]
    fitting = [number for number, header in enumerate(headers) if "url" in positions(header)]
    grammar = grammars[fitting[0] if fitting else 0]
    lines = read_lines(path)
    if grammar.has_quotes and _needs_care(path, grammar, place, say):
        found: Iterable[Record] = read_records(lines, grammar, place)
    else:
        found = (Record(line, line is not None) for line in lines)
    records = (one for one in found if one.text is None or one.text.strip("\r\n"))
    header = _names(grammar, next(records).text or "")
    way_out = f" Its first line must hold the names{'' if grammar.has_quotes else ', unquoted'}."
    columns = require_url(header, place, way_out)
    yield from _batches(_split(records, grammar, header, columns), tuple(columns))


def _names(grammar: Grammar, line: str) -> list[str]:
    return [as_text(name).strip() for name in grammar.split(line)]


def _needs_care(path: Path, grammar: Grammar, place: str, say: Say) -> bool:
    """Return whether any record is not one whole line.

    The whole file is read for this, so that it is refused before its first row is used.
    """
    broken = spanning = lines = 0
    for record in read_records(read_lines(path), grammar, place):
        broken += not record.is_whole
        if record.lines > 1:
            spanning, lines = spanning + 1, lines + record.lines
    source = f"metadata.source '{place}'"
    if spanning:
        say(f"{source}: {spanning:,} rows have line ends in a field, and {lines:,} lines.")
    if broken:
        say(
            f"{source}: in {broken:,} lines, a field begins with a quote that is not closed. They "
            f"are counted as {BAD_ROW}, and the lines after them are read."
        )
    return bool(spanning or broken)


def _split(
    records: Iterable[Record], grammar: Grammar, header: Sequence[str], columns: dict[str, int]
) -> Iterator[Row]:
    wanted = tuple(columns.values())
    for text, is_whole, _ in records:
        fields = grammar.split(text) if text is not None and is_whole else ()
        if len(fields) == len(header):
            yield [fields[number].encode("latin-1") for number in wanted], text or ""
        else:
            yield None, text or ""


def _listed(lines: Iterable[str | None]) -> Iterator[Row]:
    for line in lines:
        url = (line or "").rstrip("\r\n")
        if line is None or "\t" in url:
            yield None, url
        elif url:
            yield (url.encode("latin-1"),), url


def _objects(lines: Iterable[str | None], place: str) -> Iterator[Row]:
    """Yield the row of each JSON object.

    Raises:
        InputError: the first line is no object.
        SchemaError: none of the first `BATCH_ROWS` objects has a url.
    """
    known: dict[tuple[str, ...], dict[str, int]] = {}  # positions by the keys of an object
    keys: tuple[str, ...] = ()
    has_url, number = False, 0
    shown = (line for line in lines if line is None or line.strip("\r\n"))
    for number, line in enumerate(shown):
        item = _object(line)
        if item is None:
            if number == 0:
                raise InputError(
                    f"metadata.source '{place}' does not begin with a JSON object in one line; "
                    "expected one object per line (JSON lines)."
                )
            yield None, line or ""
            continue
        keys, values = tuple(item), list(item.values())
        if keys not in known:
            if len(known) > BATCH_ROWS:
                known.clear()
            known[keys] = positions(keys)
        found = known[keys]
        has_url = has_url or "url" in found
        if number + 1 == BATCH_ROWS and not has_url:
            break
        yield (
            [_bytes(values[found[name]]) if name in found else None for name in ALIASES],
            line or "",
        )
    if keys and not has_url:
        require_url(keys, place)


def _object(line: str | None) -> dict[str, Any] | None:
    try:
        item = json.loads((line or "").encode("latin-1").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


def _bytes(value: object) -> bytes | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return text.encode("utf-8", "surrogateescape")  # bytes that were not UTF-8 come back
    except UnicodeEncodeError:  # half of a pair, written as an escape
        return text.encode("utf-8", "surrogatepass")


def _batches(rows: Iterable[Row], names: Sequence[str]) -> Iterator[pa.Table]:
    values: list[Sequence[bytes | None]] = []
    faults: list[str | None] = []
    size = 0
    for row, line in rows:
        is_bad = row is None
        values.append(_bad_values(names, line) if row is None else row)
        faults.append(BAD_ROW if is_bad else None)
        size += len(line)
        if len(values) == BATCH_ROWS or size >= BATCH_BYTES:
            yield _table(names, values, faults)
            values, faults, size = [], [], 0
    if values:
        yield _table(names, values, faults)


def _bad_values(names: Sequence[str], line: str) -> list[bytes | None]:
    """Return the values of a bad row: its line in place of the url, so that it can be found."""
    text = line.rstrip("\r\n").encode("latin-1")
    return [text if name == "url" else None for name in names]


def _table(
    names: Sequence[str], values: Sequence[Sequence[bytes | None]], faults: Sequence[str | None]
) -> pa.Table:
    columns = zip(*values, strict=True)
    arrays = {
        name: pa.array(column, pa.binary()) for name, column in zip(names, columns, strict=True)
    }
    if any(faults):
        arrays[FAULT] = pa.array(faults, pa.string())
    return pa.table(arrays)
