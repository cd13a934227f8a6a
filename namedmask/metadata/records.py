"""The records of a text table: one per line, or several lines where a quoted field has line ends.

Only files separated by commas, semicolons or bars have quotes. A quoted field begins with a quote,
ends with a quote before a separator or a line end, and holds quotes twice. As in other readers,
text may follow the closing quote on the same line. A quote that opens a field and is not closed is
a mistake (of a title that was cut off, for example), and would swallow the lines that follow:

* If a later quote shows the mistake, because neither a separator nor a line end follows it, the
  line of the opening quote is broken, and the next line begins a new record.
* If the field is still open at the end of the file, or after `MAX_LINE` bytes, the file may have
  been cut off. It is refused.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from namedmask.errors import InputError
from namedmask.metadata.lines import MAX_LINE

# The possessive quantifiers keep the time linear, and find the one reading that there is.
_QUOTED = r'"((?:[^"]++|"")*+)"'
_LONE_QUOTE = re.compile(r'(?<!")(?:"")*+"(?!")')

csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))


class Record(NamedTuple):
    """One or several lines, and whether they can be split into fields."""

    text: str | None  # the bytes of the lines with their ends; None for a line that is too long
    is_whole: bool
    lines: int = 1


class Grammar:
    """The separator of a file, and whether its fields may be quoted."""

    def __init__(self, separator: str) -> None:
        """Quotes mean nothing in a file that is separated by tabs."""
        self.separator = separator
        self.has_quotes = separator != "\t"
        cut, other = re.escape(separator), f"[^{re.escape(separator)}]*+"
        field = f'(?:{_QUOTED}{other}|(?!"){other})'
        self._line = re.compile(f"{field}(?:{cut}{field})*+")
        self._rest = re.compile(f"{other}(?:{cut}{field})*+")
        self._field = re.compile(f"(?:^|{cut})(?:{_QUOTED}({other})|({other}))")

    def split(self, record: str) -> list[str]:
        """Return the fields of a whole record."""
        text = record.rstrip("\r\n")
        if not self.has_quotes or '"' not in text:
            return text.split(self.separator)
        if "\r" not in text:  # the csv module takes a return for a line end
            return next(csv.reader((text,), delimiter=self.separator))
        fields = []
        for match in self._field.finditer(text):
            quoted, tail, plain = match.groups()
            fields.append(plain if quoted is None else quoted.replace('""', '"') + tail)
        return fields

    def stays_open(self, line: str, start: int = 0) -> bool:
        """Return whether `line` ends within a quoted field; a field has been closed at `start`."""
        match = self._rest.match(line, start) if start else self._line.match(line)
        return match is None or match.end() < len(line)

    def closes(self, line: str) -> int | None:
        """Return the position behind the quote that closes an open field.

        None: the field stays open. 0: the quote shows that the field is not a quoted field at all.
        """
        lone = _LONE_QUOTE.search(line)
        if lone is None:
            return None
        after = line[lone.end() : lone.end() + 1]
        return lone.end() if after in (self.separator, "\r", "\n", "") else 0


def read_records(lines: Iterable[str | None], grammar: Grammar, place: str) -> Iterator[Record]:
    """Yield the records of a file, in order; every line is in exactly one record.

    Raises:
        InputError: a quoted field is never closed.
    """
    record: list[str] = []  # the lines of a record of which a field is still open
    opening = number = size = 0  # the open field begins in line `opening` of these
    for number, line in enumerate(lines, 1):
        if record and line is not None:
            end = grammar.closes(line)
            if end != 0:
                record.append(line)
                size += len(line)
                if size > MAX_LINE:
                    raise _never_closed(place, number - len(record) + 1 + opening)
                if end is None:
                    continue
                if grammar.stays_open(line, end):
                    opening = len(record) - 1
                    continue
                yield Record("".join(record), True, len(record))
                record = []
                continue
        yield from _broken(record, opening)
        record = []
        if line is None:
            yield Record(None, False)
        elif grammar.has_quotes and '"' in line and grammar.stays_open(line):
            record, opening, size = [line], 0, len(line)
        else:
            yield Record(line, True)
    if record:
        raise _never_closed(place, number - len(record) + 1 + opening)


def _broken(record: Sequence[str], opening: int) -> Iterator[Record]:
    # None of the lines behind the opening has a lone quote, so each of them is whole by itself.
    for number, line in enumerate(record):
        yield Record(line, number > opening)


def _never_closed(place: str, line: int) -> InputError:
    return InputError(
        f"metadata.source '{place}', line {line:,}: a field begins with a quote that is never "
        "closed. The file may be cut off. Close the quote, write quotes within a field twice, or "
        "save the table as TSV, which has no quotes."
    )
