"""The lines of a text file in any common encoding, with any line ends, also compressed by gzip.

Lines are split and separated as bytes, and only the values that are read are decoded (values.py).
A `str` with one character per byte (Latin-1) stands for these bytes, because Python splits it as
fast as text.
"""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_LINE = 64 << 20
"""Largest number of bytes of a line, and of a quoted field with its line ends."""

_GZIP = b"\x1f\x8b"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_START_BYTES = 1 << 16


def read_lines(path: Path) -> Iterator[str | None]:
    """Yield the UTF-8 bytes of each line, with its line end, one character per byte.

    A line longer than `MAX_LINE` gives None. The encoding is that of the byte order mark; without a
    mark it is UTF-16 if every other byte of the first two characters is zero, and UTF-8 otherwise.
    Lines end with a line feed or, if the first line ends with a carriage return alone, with any of
    the usual line ends.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read or decompressed.
    """
    with _unpacked(path) as file:
        start = file.read(_START_BYTES)
    encoding, mark = _encoding_of(start)
    head = start[mark:].decode(encoding, "ignore")
    first, _, rest = head.partition("\r")
    only_returns = "\n" not in first and len(first) < len(head) and not rest.startswith("\n")
    is_utf8 = encoding == "utf-8"
    ends = ("\r", "\n") if only_returns else ("\n",)
    with _unpacked(path) as file:
        file.read(mark)
        text = io.TextIOWrapper(
            file, "latin-1" if is_utf8 else encoding, "replace", "" if only_returns else "\n"
        )
        while line := text.readline(MAX_LINE):
            if len(line) < MAX_LINE or line.endswith(ends):
                yield line if is_utf8 else as_bytes(line)
                continue
            while line and not line.endswith(ends):
                line = text.readline(MAX_LINE)
            yield None


def as_bytes(text: str) -> str:
    """Return the UTF-8 bytes of a text, one character per byte; half surrogates stay invalid."""
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def as_text(line: str) -> str:
    """Return the text of a line whose characters are bytes; invalid bytes are replaced."""
    return line if line.isascii() else line.encode("latin-1").decode("utf-8", "replace")


def _encoding_of(start: bytes) -> tuple[str, int]:
    """Return the encoding of a file that begins with `start`, and the number of bytes to skip."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    zeros = [byte == 0 for byte in start[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le", 0
    return ("utf-16-be" if zeros == [True, False, True, False] else "utf-8"), 0


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    with path.open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP  # whatever the file is called
        file.seek(0)
        yield gzip.GzipFile(fileobj=file) if is_packed else file  # type: ignore[misc]
