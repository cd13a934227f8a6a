"""A stage in a child process, to find the rows that kill the process.

A wave passes a stage in this way after a process of the stage died or ran out of memory with this
wave. The rows pass in batches. If a batch kills the child, its rows pass one by one, and a
row that kills the child on its own is `crashed`.

A stage that cannot be built is told apart from a row that kills: the child says that it is ready
before it gets its first rows. A failure before that is the failure of the run.

The child is `python -m namedmask.engine.on_ray.isolated` and does not use Ray. A message on its
standard input or output is a length of 8 bytes, followed by a pickle or an Arrow stream.
"""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import IO

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.errors import NamedMaskError
from namedmask.run.failures import refuse_crashed, sentence_of
from namedmask.run.stages import opened
from namedmask.schema.status import CRASHED

HEAVY = ("image", "saliency", "mask", "embedding")
"""Columns with large values, which become null in crashed rows."""

_LENGTH = struct.Struct("<Q")

Work = Callable[[pa.Table], pa.Table]


class _Lost(Exception):
    """The child died or ran out of memory."""


def run_isolated(
    make: bytes,
    table: pa.Table,
    adds: Sequence[str],
    batch_size: int,
    memory_bytes: int,
    wave_rows: int = 0,
) -> Iterator[pa.Table]:
    """Yield the rows of `table` after the stage, in parts; rows that kill the child are `crashed`.

    Args:
        make: pickle of a function without arguments that returns the stage.
        table: the rows of a wave or of a slice.
        adds: names of the columns that the stage adds; they are null in crashed rows.
        batch_size: number of rows that pass together at first.
        memory_bytes: number of bytes that the child may allocate.
        wave_rows: number of rows of the wave, if `table` is a slice.

    Raises:
        NamedMaskError: the stage cannot be built, because `make` raises or kills the child.
        TooManyFailuresError: so many rows kill the child that the run is at fault.
        Exception: an error that the stage raises without killing the child, unchanged.
    """
    child = _Child(make, memory_bytes)
    counts: Counter[str] = Counter()
    try:
        for start in range(0, table.num_rows, batch_size):
            for part in _batch(child, table.slice(start, batch_size), adds):
                counts.update(part["status"].to_pylist())
                refuse_crashed("", wave_rows or table.num_rows, counts)
                yield part
    finally:
        child.stop()


def _batch(child: _Child, batch: pa.Table, adds: Sequence[str]) -> Iterator[pa.Table]:
    try:
        yield child.ask(batch)
        return
    except _Lost:
        pass
    for number in range(batch.num_rows):
        row = batch.slice(number, 1)
        try:
            yield child.ask(row)
        except _Lost:
            yield _crashed(row, adds)


def _crashed(row: pa.Table, adds: Sequence[str]) -> pa.Table:
    columns = {name: [None] for name in adds if name not in row.column_names}
    row = schema.update(row, np.array([0]), columns | {"status": [CRASHED]})
    return schema.bury(row, HEAVY)


class _Child:
    """The child process. It starts with the first table, and again after it died."""

    def __init__(self, make: bytes, memory_bytes: int) -> None:
        self._make, self._memory_bytes = make, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, table: pa.Table) -> pa.Table:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            _send(process.stdin, _to_bytes(table))
            kind, answer = pickle.loads(_receive(process.stdout))
        except (OSError, EOFError):
            self.stop()
            raise _Lost from None
        if kind == "memory":
            self.stop()
            raise _Lost
        if kind == "error":
            raise answer
        return _from_bytes(answer)

    def stop(self) -> int:
        """Kill the child if it is alive; return its exit code, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        alive = process.poll() is None
        process.kill()
        process.communicate()
        return 0 if alive else process.returncode

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(part or "." for part in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, pickle.dumps((self._make, self._memory_bytes)))
            kind, answer = pickle.loads(_receive(self._process.stdout))
        except (OSError, EOFError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2)
            raise died_while_opened(self.stop()) from None
        if kind == "error":
            self.stop()
            raise answer
        return self._process


def died_while_opened(code: int = 0) -> NamedMaskError:
    """Return the error for a process that died while it opened its models; `code` as of Popen."""
    how = f" of signal {-code}" if code < 0 else ""
    return NamedMaskError(
        f"a process died{how} while it opened its models, so no row was tried. The memory may be "
        "too small for them (ray.memory_limit_gb), or a library or plug-in crashes. Run "
        "'namedmask doctor' to check the installation."
    )


def limit_memory(memory_bytes: int) -> None:
    """Limit the memory that this process may allocate; an allocation beyond the limit fails.

    A lower hard limit (`ulimit -d`), which a process cannot raise, stays.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _serve(read: IO[bytes], write: IO[bytes]) -> None:
    make, memory_bytes = pickle.loads(_receive(read))
    limit_memory(memory_bytes)
    try:
        stage: Work = opened(lambda: pickle.loads(make)(), "a stage")
    except NamedMaskError as error:
        _send(write, _packed("error", error))
        return
    _send(write, _packed("ready", None))
    while True:
        try:
            table = _from_bytes(_receive(read))
        except EOFError:
            return
        try:
            answer = _packed("table", _to_bytes(stage(table)))
        except MemoryError:
            answer = _packed("memory", None)
        except Exception as error:  # noqa: BLE001  (raised again in the parent, as it is)
            answer = _packed("error", error)
        _send(write, answer)


def _packed(kind: str, content: object) -> bytes:
    """Return an answer as bytes; an error that does not pickle becomes a sentence."""
    data = pickle.dumps((kind, None))
    try:
        data = pickle.dumps((kind, content))
        if kind == "error":
            pickle.loads(data)
    except Exception:  # noqa: BLE001  (a class of a plug-in may raise anything here)
        if isinstance(content, BaseException):
            data = pickle.dumps((kind, NamedMaskError(sentence_of(content))))
    return data


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_bytes(data: bytes) -> pa.Table:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


if __name__ == "__main__":
    # standard output becomes standard error, so that output of the stage does not mix with answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)
