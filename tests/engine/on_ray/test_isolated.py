"""A stage in a child process: a stage that cannot be built, and rows that kill it."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pytest

from namedmask.engine.on_ray.isolated import run_isolated
from namedmask.errors import ConfigError, InputError, NamedMaskError, TooManyFailuresError

LIMIT = 8 << 30


class Unpicklable(Exception):
    """An error of a plug-in that does not survive a pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def told() -> None:
    raise ConfigError("embedder 'x' is unknown.")


def unpicklable() -> None:
    raise Unpicklable(1, 2)


def missing_library() -> None:
    raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def leaves() -> None:
    os._exit(3)


class Doubles:
    """A stage that doubles a number; some numbers kill it, others raise an error."""

    def __call__(self, table: pa.Table) -> pa.Table:
        values = table["value"].to_pylist()
        if 13 in values:
            killed()
        if 14 in values:
            raise Unpicklable(1, 4)
        return table.append_column(
            "num_faces", pa.array([2 * value for value in values], pa.int32())
        )


def rows(*values: int) -> pa.Table:
    return pa.table({"value": list(values), "status": ["ok"] * len(values)})


def isolated(make: Callable[[], Any], table: pa.Table) -> pa.Table:
    parts = run_isolated(pickle.dumps(make), table, ("num_faces", "status"), 4, LIMIT)
    return pa.concat_tables(list(parts), promote_options="default")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (told, ConfigError, "embedder 'x' is unknown."),
        (unpicklable, InputError, "Unpicklable: 1 and 2"),
        (missing_library, InputError, "libGL.so.1 is missing. Install opencv-python-headless"),
        (partial(__import__, "no_such_module_at_all"), InputError, "'no_such_module_at_all'"),
        (killed, NamedMaskError, "died of signal 9 while it opened its models"),
        (segfault, NamedMaskError, "died of signal 11 while it opened its models"),
        (leaves, NamedMaskError, "died while it opened its models"),
    ],
)
def test_isolated_stage_that_cannot_be_built_fails_the_run_and_not_the_rows(
    make: Callable[[], Any], kind: type[NamedMaskError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        isolated(make, rows(1, 2, 3))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_isolated_rows_that_kill_are_crashed_and_others_pass() -> None:
    passed = isolated(Doubles, rows(1, 13, 3, 4, 13, 6))
    assert passed["status"].to_pylist() == ["ok", "crashed", "ok", "ok", "crashed", "ok"]
    assert passed["num_faces"].to_pylist() == [2, None, 6, 8, None, 12]


def test_isolated_rows_that_all_kill_end_the_run_early() -> None:
    with pytest.raises(TooManyFailuresError, match="10 of 2,000 rows of a wave crashed"):
        isolated(Doubles, rows(*[13] * 2000))


def test_isolated_slice_of_rows_that_all_kill_is_a_fault_of_rows_in_a_long_wave() -> None:
    arguments = (pickle.dumps(Doubles), rows(13, 13, 13), ("num_faces", "status"), 4, LIMIT)
    with pytest.raises(TooManyFailuresError, match="3 of 3 rows"):
        list(run_isolated(*arguments))
    parts = list(run_isolated(*arguments, wave_rows=100))
    assert pa.concat_tables(parts, promote_options="default")["status"].to_pylist() == (
        ["crashed"] * 3
    )


def test_isolated_error_that_does_not_pickle_arrives_as_a_sentence() -> None:
    with pytest.raises(NamedMaskError, match="Unpicklable: 1 and 4"):
        isolated(Doubles, rows(14))
