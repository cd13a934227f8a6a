"""A command whose output goes to a terminal without Unicode, to a full disk, or nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("café", "猫", "zebra")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    path = tmp_path / "run.toml"
    names = json.dumps(NAMES, ensure_ascii=False)
    path.write_text(
        f'[run]\nout = "runs/é"\n[categories]\nnames = {names}\n[metadata]\nsource = ["photos"]\n'
        '[fetch]\nfile_root = "photos"\n',
        encoding="utf-8",
    )
    return path


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$NM` is the command; a failure within a pipe counts."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="surrogateescape",
        timeout=120, stdin=subprocess.DEVNULL, check=False,
        env=os.environ | {"NM": f"{sys.executable} -m namedmask"} | variables,
    )  # fmt: skip


def assert_told(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    for word in ("Traceback", "Exception ignored"):
        assert word not in done.stderr + done.stdout


@pytest.mark.parametrize(
    "encoding",
    ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "cp1252"))],
)
def test_output_in_another_encoding_loses_no_word(run_file: Path, encoding: str) -> None:
    done = shell("$NM plan run.toml", run_file.parent, PYTHONIOENCODING=encoding)
    assert_told(done, 0)
    assert "nothing was started" in done.stdout and "zebra" in done.stdout
    found = shell("$NM plan run.toml --json", run_file.parent, PYTHONIOENCODING=encoding)
    assert_told(found, 0)
    assert json.loads(found.stdout)["categories"]["names"] == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed", [">&-", "2>&-", "<&-", ">&- 2>&-", ">&- 2>&- <&-", "2>/dev/full"]
)
def test_closed_streams_do_not_stop_a_run(run_file: Path, closed: str) -> None:
    folder = run_file.parent
    assert_told(shell(f"$NM fetch run.toml --local {closed}", folder), 0)
    done = shell(f"$NM fetch run.toml --local {closed}; $NM inspect runs/é", folder)
    assert_told(done, 0)
    assert "fetched" in done.stdout
    for path in (folder / "runs").rglob("*.parquet"):
        assert path.read_bytes()[:4] == b"PAR1"  # no word of any output went into a file


@pytest.mark.parametrize(
    "command", ["plan run.toml", "plan run.toml --json", "--version", "weights"]
)
def test_full_output_is_one_line(run_file: Path, command: str) -> None:
    done = shell(f"$NM {command} > /dev/full", run_file.parent)
    assert_told(done, 2)
    assert done.stderr.startswith("error: standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan run.toml", "plan run.toml --json", "--help", "weights"])
def test_reader_that_wants_no_more_is_no_error_in_words(run_file: Path, command: str) -> None:
    done = shell(f"$NM {command} | head -c 1", run_file.parent)
    assert done.returncode in (0, 1) and done.stderr == ""
    assert len(done.stdout) == 1


@pytest.mark.slow
def test_run_whose_progress_nobody_reads_ends(run_file: Path) -> None:
    folder = run_file.parent
    shell("$NM fetch run.toml --local 2>&1 | head -c 1", folder)
    done = shell("$NM fetch run.toml --local --json", folder)
    assert_told(done, 0)
    assert json.loads(done.stdout)["skipped"]


@pytest.mark.slow
def test_words_of_an_error_in_ascii_are_kept(run_file: Path) -> None:
    done = shell("$NM plan löve.toml", run_file.parent, PYTHONIOENCODING="ascii")
    assert_told(done, 2)
    assert "run file l\\xf6ve.toml does not exist" in done.stderr
