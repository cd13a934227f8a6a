"""Waves fetched by several processes of the plain loop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from namedmask.config.run_file import Config, to_toml
from namedmask.errors import NamedMaskError
from namedmask.run.ledger import read_commits
from namedmask.run.progress import SilentProgress
from namedmask.verbs import collect
from tests import toys
from tests.road import config_of

ROOT = Path(__file__).parents[2]
SILENT = SilentProgress()
TWO = "fetch.processes=2"


def files_of(run: Path, store: str) -> dict[str, object]:
    return {unit: commit.files for unit, commit in read_commits(run, store).items()}


@pytest.mark.parametrize("verb", ["fetch", "embed"])
def test_two_processes_store_the_bytes_of_one(source: str, tmp_path: Path, verb: str) -> None:
    work = getattr(collect, verb)
    one = work(config_of(source, tmp_path / "one"), SILENT)
    two = work(config_of(source, tmp_path / "two", TWO), SILENT)
    assert one["rows_by_status"] == two["rows_by_status"]
    store = {"fetch": "fetched", "embed": "embeddings"}[verb]
    assert len(files_of(tmp_path / "one", store)) > 3
    assert files_of(tmp_path / "one", store) == files_of(tmp_path / "two", store)
    assert two["seconds"]["fetch"] > 0


def children_of(pid: int) -> list[psutil.Process]:
    """Return the processes below one that fetch; one that ends in the meantime is left out."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "forkserver" in " ".join(child.cmdline()) and child.ppid():
                found.append(child)
    return found


def parent_of(process: psutil.Process) -> int:
    """Return the pid of a process's parent, 0 where the process has ended."""
    try:
        return process.ppid()
    except psutil.Error:
        return 0


def test_lost_process_ends_the_run_which_goes_on_when_run_again(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path / "run", TWO)
    before = {one.pid for one in children_of(os.getpid())}

    def kill_one() -> None:
        while not (found := [one for one in children_of(os.getpid()) if one.pid not in before
                             and parent_of(one) not in (0, os.getpid())]):  # fmt: skip
            time.sleep(0.01)
        found[0].kill()

    web.delay_s = 0.1
    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        with pytest.raises(NamedMaskError, match="a process that fetches images died"):
            collect.fetch(config, SILENT)
    finally:
        web.delay_s = 0.0
        killer.join()
    collect.fetch(config, SILENT)
    collect.fetch(config_of(source, tmp_path / "whole"), SILENT)
    assert files_of(tmp_path / "run", "fetched") == files_of(tmp_path / "whole", "fetched")


BEGUN_TOO_LATE = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from namedmask.config.run_file import Config
from namedmask.run.progress import SilentProgress
from namedmask.verbs import collect

begin = ProcessPoolExecutor._spawn_process

def await_the_end_of(pool, known):
    for process in known.values():
        process.kill()
    while known and not pool._broken:
        time.sleep(0.01)
    time.sleep(0.5 if known else 0)  # a broken pool ends the processes that it knows of

def begin_before(pool):
    known, pool._processes = pool._processes, {}
    begin(pool)
    late, pool._processes = pool._processes, known
    await_the_end_of(pool, known)
    known.update(late)

def begin_after(pool):
    await_the_end_of(pool, dict(pool._processes))
    begin(pool)

ProcessPoolExecutor._spawn_process = {'before': begin_before, 'after': begin_after}[sys.argv[2]]
collect.fetch(Config.load(sys.argv[1]), SilentProgress())
"""


@pytest.mark.parametrize("begun", ["before", "after"])
def test_process_that_began_while_another_died_does_not_keep_the_run_from_its_end(
    source: str, tmp_path: Path, begun: str
) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(to_toml(config_of(source, tmp_path / "run", TWO)))
    done = subprocess.run(
        [sys.executable, "-c", BEGUN_TOO_LATE, str(run_file), begun],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "a process that fetches images died" in done.stderr
    assert "OSError" not in done.stderr


def test_processes_end_with_their_parent(web: toys.SmallWeb, source: str, tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    config: Config = config_of(source, tmp_path / "run", TWO)
    run_file.write_text(to_toml(config))
    web.delay_s = 0.2
    parent = subprocess.Popen(
        [sys.executable, "-m", "namedmask", "fetch", str(run_file), "--local", "--json"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        workers: list[psutil.Process] = []
        while len(workers) < 3:  # the server and two
            assert parent.poll() is None
            workers = children_of(parent.pid)
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        web.delay_s = 0.0
        parent.kill()


def test_a_process_that_fetches_makes_arrays_without_pandas_and_data_frames_with_it() -> None:
    code = (
        "import sys, namedmask.engine.preload, pyarrow as pa; table = pa.table({'a': [1, None]}); "
        "before = 'pandas' in sys.modules; frame = table.to_pandas(); "
        "sys.exit(f'{before} {type(frame).__module__.partition(\".\")[0]} {frame.a.isna().sum()}')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "False pandas 1"


def test_the_module_that_processes_import_again_loads_next_to_nothing() -> None:
    code = "import sys, namedmask.__main__; sys.exit(str('typer' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "False", "each process of a fetch would begin later"
