"""Whatever ends a command ends it with one line and a code, and its traceback lies in a file."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from namedmask.cli.guard import guarded, log_into
from namedmask.errors import ConfigError, NamedMaskError, RayJobError
from tests import toys
from tests.road import tree_of

ROOT = Path(__file__).parents[2]


def _raise(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def _allocate() -> int:
    bytearray(1 << 62)
    return 0


def _recurse() -> int:
    return _recurse() + 1


def _tensor() -> int:
    import torch

    torch.empty(1 << 50)
    return 0


def _import() -> int:
    import no_such_module_at_all  # noqa: F401

    return 0


def _group() -> int:
    raise ExceptionGroup("two", [ValueError("first\nof two"), KeyError("x")])


LIBRARY = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
GPU = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8 GiB total)\nmore")


@pytest.mark.parametrize(
    ("work", "code", "message", "has_file"),
    [
        (_raise(ConfigError("run.out is empty.")), 2, "run.out is empty.", False),
        (_raise(NamedMaskError("no row is ok.")), 1, "no row is ok.", False),
        (_raise(RayJobError("the job was stopped.", 130)), 130, "the job was stopped.", False),
        (_raise(KeyboardInterrupt()), 130, "interrupted; finished work is kept.", False),
        (_raise(ZeroDivisionError("a bug")), 1, "ZeroDivisionError: a bug.", True),
        (_raise(ValueError()), 1, "ValueError: no message.", True),
        (_raise(LIBRARY), 1, "libGL.so.1 is missing. Install opencv-python-headless", True),
        (_raise(GPU), 1, "the GPU is out of memory. Lower batch_size", True),
        (_raise(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")), 1, "UnicodeDecodeError", True),
        (_raise(OSError(errno.ENOSPC, "No space left on device", "a")), 2, "a: No space", False),
        (_raise(OSError("[Errno 28] No space left on device")), 2, "Free some space", False),
        (_raise(OSError(errno.EIO, "Input/output error", "a")), 1, "a: Input/output error.", True),
        (_raise(PermissionError(errno.EACCES, "Permission denied", "a")), 2, "writable", False),
        (_allocate, 1, "the memory is not enough.", True),
        (_tensor, 1, "the memory is not enough.", True),
        (_recurse, 1, "nested too deeply", True),
        (_import, 1, "module 'no_such_module_at_all' is not installed.", True),
        (_group, 1, "ValueError: first.", True),
    ],
)  # fmt: skip
def test_guard_ends_any_error_with_one_line_and_a_code(
    work: Callable[[], int], code: int, message: str, has_file: bool, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def command() -> int:
        log_into(tmp_path)
        return work()

    assert guarded(command) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    path = tmp_path / "logs" / "error-1.txt"
    assert path.exists() == has_file == (f"Details: {path}" in err)
    if has_file:
        assert "Traceback (most recent call last)" in path.read_text()


@pytest.mark.parametrize("folder", [None, Path("/proc/no/such"), Path("/dev/null")])
def test_guard_without_a_run_folder_writes_to_the_folder_of_temporary_files(
    folder: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        if folder:
            log_into(folder)
        raise ZeroDivisionError("a bug")

    assert guarded(command) == 1
    path = Path(capsys.readouterr().err.rpartition("Details: ")[2].strip())
    assert "Traceback" in path.read_text() and path.name.startswith("namedmask-")
    path.unlink()


def test_guard_keeps_tracebacks_of_messages_and_threads_from_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        log_into(tmp_path)
        try:
            int("x")
        except ValueError:
            logging.getLogger("some.library").exception("a row")
        thread = threading.Thread(target=_raise(KeyError("in a thread")))
        thread.start()
        thread.join()
        raise ZeroDivisionError("a bug")

    assert guarded(command) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and "a row: ValueError: invalid literal" in err
    text = (tmp_path / "logs" / "error-1.txt").read_text()
    assert "in a thread" in text and "invalid literal" in text and "a bug" in text


@pytest.fixture
def run_file(tmp_path: Path) -> Iterator[Path]:
    """A run file of `embed` on a slow web of sixty pictures."""
    from namedmask.config import Config
    from namedmask.config.run_file import to_toml

    with toys.SmallWeb(delay_s=0.2) as web:
        toys.fill(web, toys.COLORS, each=15)
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        path = tmp_path / "run.toml"
        path.write_text(to_toml(Config.of(tree_of(source, tmp_path / "run"))))
        yield path


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "namedmask", *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("local", [("--local",), ()], ids=["local", "ray"])
def test_interrupted_command_ends_with_one_line_and_130(
    run_file: Path, local: tuple[str, ...]
) -> None:
    process = started("embed", str(run_file), *local)
    folder = run_file.parent / "run" / "embeddings"
    while not list(folder.glob("commit-*")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted; finished work is kept.")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_errors_of_a_real_ray_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    @ray.remote(max_retries=0)
    def task(kind: str) -> None:
        if kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"value": ValueError("bad\nvalue"), "own": ConfigError("x is wrong.")}[kind]

    @ray.remote
    class Actor:
        def __init__(self, kind: str) -> None:
            if kind == "build":
                raise ValueError("cannot be built")

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    def of_actor(kind: str) -> object:
        return Actor.remote(kind).die.remote()

    cases: list[tuple[Callable[[], object], int, str]] = [
        (lambda: task.remote("value"), 1, r"ValueError: bad\. Details"),
        (lambda: task.remote("own"), 2, r"x is wrong\."),
        (lambda: task.remote("dies"), 1, "a process of the Ray cluster died"),
        (lambda: of_actor("build"), 1, "cannot be built"),
        (lambda: of_actor("die"), 1, "a process of the Ray cluster died"),
    ]
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             object_store_memory=100 << 20)  # fmt: skip
    try:
        for ask, code, message in cases:

            def command(ask: Callable[[], object] = ask) -> int:
                log_into(tmp_path)
                ray.get(ask())
                return 0

            assert guarded(command) == code
            lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
            assert len(lines) == 1 and re.search(message, lines[0]), lines
    finally:
        ray.shutdown()
