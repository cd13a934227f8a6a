"""The standard streams of a command: closed, full, or in an encoding that lacks characters.

A run takes hours, and what it writes to a terminal must not end it. Errors of standard error are
dropped. Errors of standard output, which carries results, are reported at the end.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Dropping(io.FileIO):
    """An output that drops what cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


class _Named(io.FileIO):
    """An output whose first error names it; everything after it is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # else Python would try again at its exit
            os.close(null)
            raise OSError(error.errno, error.strerror, "standard output") from error


def mend_streams() -> None:
    """Make standard output and standard error accept any text, even if they are closed.

    A closed stream becomes /dev/null. Otherwise the next file that is opened would get its number,
    and libraries that write to the terminal would write into this file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(null, True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Named(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Dropping(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, old: object) -> io.TextIOWrapper:
    encoding = getattr(old, "encoding", None) or "utf-8"
    by_line = raw.isatty() or raw.fileno() == 2
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line
    )


def flush_results() -> bool:
    """Write what standard output still holds; return False if its reader has ended, as `head`.

    Raises:
        OSError: it cannot be written for another reason.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True
