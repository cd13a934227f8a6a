"""The guard of a command: whatever ends it ends it with one message and an exit code.

A traceback never reaches the screen. That of an unexpected error goes to a file in `run.out/logs`,
which the message names, or to the system's folder for temporary files if there is no run folder on
this machine or it cannot be written. So do the tracebacks of log messages and of other threads.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import namedmask
from namedmask.cli.screen import complain
from namedmask.cli.streams import flush_results
from namedmask.errors import NamedMaskError
from namedmask.run import layout
from namedmask.run.failures import root_of, sentence_of
from namedmask.storage import Place

# error numbers of the operating system, by cause
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
WRONG_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)

WAYS_OUT = {
    READ_ONLY: "Choose a writable folder with --out or run.out.",
    DISK_FULL: "Free some space, or choose another disk with --out or run.out; "
    "finished work is kept.",
    WRONG_PATH: "Check the path.",
}
"""What the user can do about an error of the operating system, by its numbers."""

SAYS_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")

INTERRUPTED = 130
"""Exit code of a command that was ended with Ctrl-C."""


class Log:
    """The tracebacks of a command, and the folder for the file that holds them."""

    def __init__(self) -> None:
        self.folder: Place | None = None
        self.texts: list[str] = []

    def add(self, error: BaseException | None) -> None:
        """Keep the traceback of an error of another thread or of a log message."""
        if error is not None:
            self.texts.append("".join(traceback.format_exception(error)))

    def write(self, text: str) -> Path | None:
        """Write the traceback that ended the command; return the file, None if none can be."""
        text = "\n".join([f"namedmask {namedmask.__version__}", *self.texts, text])
        for make in (self._in_run_folder, self._in_temporary_folder):
            try:
                path = make()
                if path is not None:
                    path.write_text(text, encoding="utf-8", errors="replace")
                    return path
            except OSError:
                continue
        return None

    def _in_run_folder(self) -> Path | None:
        if not isinstance(self.folder, Path) or not self.folder.is_dir():
            return None
        (self.folder / layout.LOGS).mkdir(exist_ok=True)
        number = 1
        while (path := self.folder / layout.error_log(number)).exists():
            number += 1
        return path

    def _in_temporary_folder(self) -> Path:
        handle, name = tempfile.mkstemp(".txt", "namedmask-")
        with open(handle, "wb"):
            return Path(name)


_log = Log()


def log_into(folder: Place) -> None:
    """Name the run folder of this command, for the tracebacks of unexpected errors."""
    _log.folder = folder


def guarded(work: Callable[[], object]) -> int:
    """Return the exit code of a command, which `work` returns or exits with; explain any error.

    The exit codes of errors are 2 for wrong input, 130 for Ctrl-C, and 1 for all others.
    """
    global _log
    _log = Log()
    with _quiet(_log):
        code: object = 0
        try:
            try:
                code = work()
            except SystemExit as stop:
                code = stop.code
            if not flush_results():
                code = code or 1
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BaseException as error:  # noqa: BLE001  (told in one message, kept in a file)
            return explain(error)
    if code == INTERRUPTED:
        complain("interrupted; finished work is kept. Run the same command again to resume.")
    return code if isinstance(code, int) else 0


def explain(error: BaseException) -> int:
    """Write to stderr the error that ended a command; return the exit code."""
    root = root_of(error)
    if isinstance(root, NamedMaskError):
        complain(str(root) + (_named(root.details) if root.details else ""))
        return root.exit_code
    number = root.errno if isinstance(root, OSError) else None
    if SAYS_DISK_FULL.search(str(root)):
        number = errno.ENOSPC
    told = sentence_of(error)
    for numbers, way_out in WAYS_OUT.items():
        if number in numbers:
            complain(f"{told} {way_out}")
            return 2
    complain(told + _named("".join(traceback.format_exception(error))))
    return 1


def _named(text: str) -> str:
    """Write a traceback to a file; return the sentence that names it."""
    path = _log.write(text)
    return f" Details: {path}" if path else ""


@contextmanager
def _quiet(log: Log) -> Iterator[None]:
    """Keep the tracebacks of log messages and other threads from the screen, inside the block."""
    handler = _OneLine(log)
    root, hooks = logging.getLogger(), (threading.excepthook, sys.unraisablehook)
    root.addHandler(handler)
    threading.excepthook = lambda failed: log.add(failed.exc_value)
    sys.unraisablehook = lambda failed: log.add(failed.exc_value)
    try:
        yield
    finally:
        root.removeHandler(handler)
        threading.excepthook, sys.unraisablehook = hooks


class _OneLine(logging.Handler):
    """A handler that writes warnings to stderr as one line each, without their tracebacks."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error: Any = record.exc_info and record.exc_info[1]
        self._log.add(error or None)
        reason = f": {sentence_of(error)}" if error else ""
        sys.stderr.write(f"{record.getMessage()}{reason}\n")
