"""What a long verb says while it runs."""

from __future__ import annotations

import io

import pytest

from namedmask.run.progress import (
    LineProgress,
    LiveProgress,
    Progress,
    SilentProgress,
    format_counts,
    progress_for,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_steps(progress: Progress) -> None:
    with progress.step("embed", total=10) as outer:
        with progress.step("fetch") as inner:
            inner.advance(4, {"ok": 3, "http_404": 1})
            inner.advance(6, {"ok": 4, "timeout": 2})
        outer.advance(10)


def test_lines_say_total_rate_and_counts_at_intervals_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, every_s=30, clock=clock).step("fetch", total=100) as step:
        clock.now = 10
        step.advance(20, {"ok": 20})
        clock.now = 40
        step.advance(20, {"ok": 15, "http_404": 5}, "saliency")
        clock.now = 50
        step.advance(60, {"timeout": 60})
    assert stream.getvalue().splitlines() == [
        "fetch: at 40 of 100 in 40.0 s (1.0/s), 60 s left; ok 35, http_404 5; slowest: saliency",
        "fetch: done 100 of 100 in 50.0 s (2.0/s); ok 35, timeout 60, http_404 5",
    ]


def test_lines_of_a_failed_step_say_stopped_and_let_the_error_through() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="boom"), LineProgress(stream).step("train"):
        raise ValueError("boom")
    assert stream.getvalue().startswith("train: stopped in ")


def test_live_bars_of_nested_steps_show_counts_and_can_run_twice() -> None:
    stream = Terminal()
    live = LiveProgress(stream)
    run_steps(live)
    run_steps(live)
    assert "ok 7, timeout 2, http_404 1" in stream.getvalue()
    assert "10/10" in stream.getvalue()


def test_silent_progress_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_progress_for_terminal_gives_bars_else_lines() -> None:
    assert isinstance(progress_for(Terminal()), LiveProgress)
    assert isinstance(progress_for(io.StringIO()), LineProgress)


def test_format_counts_puts_ok_first_then_by_count() -> None:
    assert format_counts({"a": 1, "b": 1200, "ok": 3}) == "ok 3, b 1,200, a 1"
