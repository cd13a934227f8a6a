"""Runs handed to a real Ray head under token authentication: results, exit codes, clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.local import Head, Shape, cluster
from namedmask import verbs
from namedmask.errors import ConfigError, InputError
from namedmask.jobs import to_toml
from namedmask.on_ray import submit
from namedmask.progress import SilentProgress
from tests import toys
from tests.test_verbs import config_of, digests, judged_on_disks, read_json

ROOT = Path(__file__).parents[1]
MODULE = "toys_sent_along"
"""A copy of tests/toys.py under this name travels with the job: the cluster has no such module."""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head with tokens on ports of its own, whose processes know the package and not the toys."""
    shape = Shape(
        head_cpus=4, max_workers=0, port=6399, dashboard_port=8299, client_port=9399,
        object_store_mb=150,
    )  # fmt: skip
    with cluster(shape, {"PYTHONPATH": ""}) as head:
        yield head


@pytest.fixture(scope="module")
def run(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that runs `namedmask submit` as a user of the head would."""
    away = tmp_path_factory.mktemp("away")

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        # RAY_ADDRESS would overrule the address in Ray's own client
        environment = os.environ | head.variables | {"PYTHONPATH": str(ROOT)} | variables
        return subprocess.run(
            [sys.executable, "-m", "namedmask", "submit", *map(str, arguments)],
            cwd=away, env=environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\nout = "{tmp_path / "out"}"\n[metadata]\nsource = ["/none.parquet"]\n')
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_submit_whole_road_has_the_bytes_of_the_plain_loop(
    head: Head, run: Run, tmp_path: Path
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    shutil.copy(ROOT / "tests" / "toys.py", plugins / f"{MODULE}.py")
    with toys.SmallWeb() as web:
        toys.fill(web, toys.COLORS, each=12)
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        config = judged_on_disks(config_of(source, tmp_path / "plain"), tmp_path / "disks")
        for verb in submit.ROAD:
            getattr(verbs, verb)(config, SilentProgress())
        path = tmp_path / "run.toml"
        path.write_text(to_toml(config).replace("tests.toys:", f"{MODULE}:"))
        out = tmp_path / "submitted"
        arguments = (
            path, "--address", head.dashboard, "--set", f"run.out={out}",
            "--working-dir", plugins, "--ship-package", "--submission-id",
        )  # fmt: skip
        done = run(*arguments, "first")
        assert done.returncode == 0, done.stderr
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert [result["verb"] for result in results] == list(submit.ROAD)
        assert "embed: done" in done.stderr, "the log is followed"
        assert digests(out) == digests(tmp_path / "plain")
        ours, plain = (read_json(one / "evaluation.json") for one in (out, tmp_path / "plain"))
        assert ours == plain
        hits = web.hits.total()
        again = run(*arguments, "second")
        assert all(json.loads(line)["skipped"] for line in again.stdout.splitlines())
        assert again.returncode == 0 and web.hits.total() == hits
    clash = run(*arguments, "second")
    assert clash.returncode == 2
    assert "second already exists" in clash.stderr
    assert len(clash.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_submit_job_that_fails_hands_its_exit_code_through(
    head: Head, run: Run, run_file: Path
) -> None:
    done = run(run_file, "--address", head.dashboard, "--ship-package", "--verb", "embed")
    assert done.returncode == 2
    assert "metadata.source '/none.parquet' does not exist" in done.stderr
    assert "ended with exit code 2" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_submit_left_by_ctrl_c_goes_on_and_stopped_exits_130(
    head: Head, run: Run, run_file: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "plugins"
    slow.mkdir()
    (slow / "slow.py").write_text("import time\n\n\ndef wait(config):\n    time.sleep(600)\n")
    rest = (
        "--address", head.dashboard, "--ship-package", "--working-dir", slow, "--verb", "build",
        "--submission-id", "slow",
    )  # fmt: skip
    started = run(run_file, *rest, "--no-wait")
    assert (started.returncode, started.stdout) == (0, "slow\n"), started.stderr
    client = _client(head)
    code = (
        "import os, sys; from namedmask.on_ray.submit import connect, follow\n"
        f"follow(connect({head.dashboard!r}), 'slow', lambda line: None)"
    )
    environment = os.environ | head.variables | {"PYTHONPATH": str(ROOT)}
    following = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        time.sleep(1)
        assert client
    finally:
        following.send_signal(signal.SIGINT)
        following.wait(60)
