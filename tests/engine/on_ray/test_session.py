"""The start of a Ray of one's own: where its files may lie, and who may start it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from namedmask.engine.on_ray.session import SOCKET_PATH_BYTES, refuse_unusable
from namedmask.errors import InputError

NOBODY = 12345


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photos" / "a.jpg")
    path = tmp_path / "run.toml"
    path.write_text(
        '[run]\nout = "x"\n[metadata]\nsource = ["photos"]\n[fetch]\nfile_root = "photos"\n'
    )
    return path


def fetch(run_file: Path, *before: str, **variables: str) -> subprocess.CompletedProcess[str]:
    unset = ("HOME", "RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    command = [sys.executable, "-m", "namedmask", "fetch", str(run_file)]
    return subprocess.run(
        [*before, *command],
        cwd=run_file.parent, env=environment | variables, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip


@pytest.mark.parametrize("length", range(20, 120, 5))
def test_ray_folder_is_refused_if_sockets_do_not_fit(length: int) -> None:
    folder = Path("/tmp/" + "x" * (length - 5))
    try:
        refuse_unusable(folder)
        fits = True
        folder.rmdir()
    except InputError as error:
        fits = False
        assert "Set RAY_TMPDIR to a shorter folder, such as /tmp, or use --local" in str(error)
    session = f"session_{'0' * 10}_{'0' * 8}_{'0' * 6}_{'0' * 7}/sockets/plasma_store"
    assert fits == (length + 1 + len(session) <= SOCKET_PATH_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_run_with_a_long_folder_for_temporary_files_is_one_line(
    run_file: Path, variable: str
) -> None:
    folder = run_file.parent / ("x" * 70)
    folder.mkdir()
    done = fetch(run_file, HOME="/root", **{variable: str(folder)})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Ray's folder") and "Set RAY_TMPDIR" in last and "--local" in last


@pytest.mark.slow
def test_run_with_a_ray_folder_that_cannot_be_made_is_one_line(run_file: Path) -> None:
    done = fetch(run_file, HOME="/root", RAY_TMPDIR="/proc/nothing")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "/proc/nothing/ray cannot be written" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("home", ["", "/"])
def test_user_without_a_home_can_start_ray(run_file: Path, home: str) -> None:
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become a user without a home folder")
    run_file.parent.chmod(0o777)
    for parent in run_file.parent.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    # the right to read all files lets this user use an interpreter that lies in root's home
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # fmt: skip
    folder = Path(f"/tmp/nm{os.getpid()}")
    variables = {"HOME": home} if home else {}
    try:
        folder.mkdir()
        folder.chmod(0o777)
        done = fetch(
            run_file, *user, RAY_TMPDIR=str(folder), PYTHONDONTWRITEBYTECODE="1", **variables
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert "rows_by_status.ok  1" in done.stdout
    assert not (run_file.parent / "~").exists()
