"""Progress reports of a verb in named steps, with their rates and their counts by status.

A loop opens a step and advances it:

    with progress.step("fetch", total=2000) as step:
        for table in waves:
            step.advance(table.num_rows, counts_by_status(table["status"].to_pylist()))

There are three implementations: `SilentProgress` for tests and `--json`, `LiveProgress` for a
terminal, and `LineProgress` for a log file (at most one line per 30 seconds, and one line when a
step ends). By default, progress goes to stderr, so that stdout contains only results.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from namedmask.schema.status import OK

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars


FIRST_SHARE = 0.02
"""Share of a step that must be done before an estimate of the remaining time is shown."""


class Step(AbstractContextManager["Step"], Protocol):
    """One step of a verb, which begins and ends with its `with` block."""

    def advance(
        self, n: int = 1, counts_by_status: Mapping[str, int] | None = None, slowest: str = ""
    ) -> None:
        """Count `n` further finished units, with their counts by status.

        `slowest` names the stage that the other stages wait for, if several stages run at once.
        """


class Progress(Protocol):
    """A display of steps, which follow one another or are nested."""

    def step(self, name: str, total: int | None = None) -> Step:
        """Return a step of `total` units; `total` is None if the number is not known in advance."""


def progress_for(stream: TextIO) -> Progress:
    """Return a display with bars for a terminal, or with lines for any other stream."""
    return LiveProgress(stream) if stream.isatty() else LineProgress(stream)


class SilentProgress:
    """Progress that writes nothing."""

    def step(self, name: str, total: int | None = None) -> Step:
        """Return a step that writes nothing."""
        return _Step(name, total)


class LineProgress:
    """Progress in whole lines, for log files."""

    def __init__(
        self,
        stream: TextIO | None = None,
        every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._every_s = every_s
        self._clock = clock

    def step(self, name: str, total: int | None = None) -> Step:
        """Return a step that writes a line every `every_s` seconds at most, and one at its end."""
        return _LineStep(name, total, self._stream, self._every_s, self._clock)


class LiveProgress:
    """Progress in bars on a terminal; the bar of a finished step stays visible."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars: RichBars | None = None
        self._open = 0

    def step(self, name: str, total: int | None = None) -> Step:
        """Return a step that draws a bar; the bars of nested steps are drawn one below another."""
        return _LiveStep(name, total, self)

    def enter(self) -> RichBars:
        """Count one more open step; return the bars, which this starts if necessary."""
        if self._bars is None:
            self._bars = _rich_bars(self._stream)
            self._bars.start()
        self._open += 1
        return self._bars

    def leave(self) -> None:
        """Count one open step less; stop the bars after the last step."""
        self._open -= 1
        if self._open == 0 and self._bars is not None:
            self._bars.stop()
            self._bars = None


class _Step:
    def __init__(self, name: str, total: int | None) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.counts: Counter[str] = Counter()
        self.slowest = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def advance(
        self, n: int = 1, counts_by_status: Mapping[str, int] | None = None, slowest: str = ""
    ) -> None:
        self.done += n
        self.counts.update(counts_by_status or {})
        self.slowest = slowest

    def _tail(self) -> str:
        """Return the counts by status and the slowest stage as text; "" if there are neither."""
        slowest = f"slowest: {self.slowest}" if self.slowest else ""
        return "; ".join(part for part in (format_counts(self.counts), slowest) if part)


class _LineStep(_Step):
    def __init__(
        self,
        name: str,
        total: int | None,
        stream: TextIO,
        every_s: float,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(name, total)
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._began = self._last_line_at = clock()

    def __enter__(self) -> Self:
        self._began = self._last_line_at = self._clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write_line("stopped" if kind else "done")

    def advance(
        self, n: int = 1, counts_by_status: Mapping[str, int] | None = None, slowest: str = ""
    ) -> None:
        super().advance(n, counts_by_status, slowest)
        if self._clock() - self._last_line_at >= self._every_s:
            self._write_line("at")

    def _write_line(self, word: str) -> None:
        self._last_line_at = self._clock()
        seconds = self._last_line_at - self._began
        of_total = f" of {self.total:,}" if self.total is not None else ""
        count = f" {self.done:,}{of_total}" if self.done or self.total is not None else ""
        rate = f" ({self.done / seconds:,.1f}/s)" if seconds > 0 and count else ""
        left = ""
        if self.total and FIRST_SHARE * self.total <= self.done < self.total:
            left = f", {seconds * (self.total / self.done - 1):,.0f} s left"
        tail = f"; {self._tail()}" if self._tail() else ""
        self._stream.write(f"{self.name}: {word}{count} in {seconds:.1f} s{rate}{left}{tail}\n")
        self._stream.flush()


class _LiveStep(_Step):
    def __init__(self, name: str, total: int | None, live: LiveProgress) -> None:
        super().__init__(name, total)
        self._live = live

    def __enter__(self) -> Self:
        self._bars = self._live.enter()
        self._began = time.monotonic()
        self._task = self._bars.add_task(self.name, total=self.total, rate="", counts="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self.total is None:
            self._bars.update(self._task, total=self.done)
        self._bars.stop_task(self._task)
        self._live.leave()

    def advance(
        self, n: int = 1, counts_by_status: Mapping[str, int] | None = None, slowest: str = ""
    ) -> None:
        super().advance(n, counts_by_status, slowest)
        rate = self.done / max(time.monotonic() - self._began, 1e-6)
        self._bars.update(
            self._task, completed=self.done, rate=f"{rate:,.1f}/s", counts=self._tail()
        )


def format_counts(counts: Mapping[str, int]) -> str:
    """Return counts by status as text, such as `ok 120, http_404 7`: ok first, then descending."""
    order = sorted(counts, key=lambda status: (status != OK, -counts[status], status))
    return ", ".join(f"{status} {counts[status]:,}" for status in order)


def _rich_bars(stream: TextIO) -> RichBars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichBars

    return RichBars(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
        console=Console(file=stream),
    )
