"""A process that runs commands one after the other; a command that hangs or dies costs only it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import selectors
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (None: killed or hung), and its two streams."""

    code: int | None
    out: str
    err: str


class CommandWorker:
    """Runs `namedmask ...` in a child, which has imported everything once."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None

    def run(self, arguments: list[str], folder: Path) -> Ended:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([arguments, str(folder)]) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(self._timeout_s) else ""
        if not line:
            hung = process.poll() is None
            self.stop()
            return Ended(None, "", "it hung" if hung else f"it died: {process.returncode}")
        return Ended(*json.loads(line))

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.command_worker"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return self._process


MEMORY_BYTES = 8 << 30
"""Bytes that the worker may allocate, so that a size that is too large fails early."""


def _serve() -> None:
    from namedmask.cli.app import main

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        arguments, folder = json.loads(line)
        os.chdir(folder)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except BaseException as error:
                code, _ = None, err.write(f"Traceback of {error!r}")
        answers.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
