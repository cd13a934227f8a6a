"""Failures in one line: what an error means, too many crashes, and no good row at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namedmask.errors import NamedMaskError, TooManyFailuresError
from namedmask.run.failures import refuse_crashed, refuse_none_ok, root_of, sentence_of


@pytest.mark.parametrize(
    ("rows", "counts", "is_refused"),
    [
        (2000, {"ok": 2000}, False),
        (2000, {"ok": 1800, "crashed": 200}, False),
        (2000, {"ok": 1799, "crashed": 201}, True),
        (16, {"ok": 11, "crashed": 5}, False),
        (16, {"ok": 10, "crashed": 6}, True),
        (1, {"crashed": 1}, False),
        (2, {"crashed": 2}, False),
        (3, {"crashed": 3}, True),
        (2000, {"http_404": 500, "crashed": 10}, True),
        (2000, {"http_404": 500, "crashed": 9}, False),
        (0, {}, False),
    ],
)
def test_wave_of_crashes_is_refused(rows: int, counts: dict[str, int], is_refused: bool) -> None:
    if not is_refused:
        refuse_crashed("00003", rows, counts)
        return
    with pytest.raises(TooManyFailuresError, match="rows of wave 00003 crashed"):
        refuse_crashed("00003", rows, counts)


def test_rows_of_which_none_is_ok_tell_the_commonest_reason() -> None:
    refuse_none_ok("rows", {}, "")
    refuse_none_ok("rows", {"ok": 1, "http_404": 99}, "")
    with pytest.raises(TooManyFailuresError) as caught:
        refuse_none_ok("rows", {"http_404": 3, "dns": 1200}, "Check the network.")
    assert str(caught.value) == (
        "none of 1,203 rows is ok; the commonest status is 'dns' (1,200: the host has no address). "
        "Check the network."
    )


class RayError(Exception):
    """Stands for an error of Ray that wraps another one."""

    def __init__(self, cause: BaseException | None) -> None:
        super().__init__("Traceback (most recent call last):\n  File x\nwrapped")
        self.cause = cause


RayError.__module__ = "ray.exceptions"
TEXTS = st.text(max_size=300)
KINDS = (ValueError, KeyError, OSError, ImportError, RuntimeError, MemoryError, RecursionError,
         NamedMaskError, AssertionError, UnicodeError, StopIteration)  # fmt: skip


@given(st.sampled_from(KINDS), TEXTS, st.integers(0, 3))
def test_sentence_of_any_error_is_one_line(kind: type[Exception], text: str, depth: int) -> None:
    error: BaseException = kind(text)
    for _ in range(depth):
        error = RayError(error)
    assert type(root_of(error)) is kind
    told = sentence_of(error)
    assert "Traceback" not in told or "Traceback" in text
    if kind is not NamedMaskError:
        assert told == " ".join(told.split()) and told[-1] in ".?!"


def test_root_of_an_error_that_wraps_itself_ends() -> None:
    error = RayError(None)
    error.cause = error
    assert root_of(error) is error
    assert "Ray says: wrapped." in sentence_of(error)
