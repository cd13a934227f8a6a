"""The folder of weights of users with and without a home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from namedmask.errors import InputError
from namedmask.weights.catalog import cache_folder

NOBODY = 12345


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NAMEDMASK_CACHE": "/weights"}, "/weights"),
        ({"NAMEDMASK_CACHE": "~/weights"}, "/home/me/weights"),
        ({"NAMEDMASK_CACHE": "$HOME/weights"}, "/home/me/weights"),
        ({"NAMEDMASK_CACHE": "weights"}, "weights"),
        ({"NAMEDMASK_CACHE": ""}, "/home/me/.cache/namedmask"),
        ({"NAMEDMASK_CACHE": "/weights", "XDG_CACHE_HOME": "/cache"}, "/weights"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/namedmask"),
        ({}, "/home/me/.cache/namedmask"),
    ],
)
def test_cache_folder_is_that_of_the_first_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("NAMEDMASK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_cache_folder_of_an_unset_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMEDMASK_CACHE", "$NOPE/weights")
    with pytest.raises(InputError, match=r"\$NAMEDMASK_CACHE: .*'NOPE' is not set"):
        cache_folder()


def as_nobody(command: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """Run a command as a user who has no entry in the list of users, and no HOME but as given."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to become a user without a home folder")
    folder.chmod(0o777)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HOME", "XDG_CACHE_HOME", "NAMEDMASK_CACHE")
    }
    # the right to read all files lets this user use an interpreter that lies in root's home
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # fmt: skip
    done = subprocess.run(
        [*user, sys.executable, "-m", "namedmask", *command.split()],
        cwd=folder, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["weights", "plan run.toml", "weights fetch selfmask"])
def test_user_without_a_home_is_told_the_way_out(tmp_path: Path, command: str) -> None:
    (tmp_path / "run.toml").write_text('[run]\nout = "x"\n[categories]\nnames = ["cat"]\n')
    code, _, words = as_nobody(command, tmp_path)
    assert code == 2 and len(words.splitlines()) == 1
    assert "Set NAMEDMASK_CACHE to a folder" in words


@pytest.mark.slow
@pytest.mark.parametrize("command", ["weights", "plan run.toml", "weights verify"])
def test_user_without_a_home_but_with_a_cache_is_served(tmp_path: Path, command: str) -> None:
    (tmp_path / "run.toml").write_text('[run]\nout = "x"\n[categories]\nnames = ["cat"]\n')
    code, _, words = as_nobody(command, tmp_path, NAMEDMASK_CACHE=str(tmp_path / "cache"))
    assert (code, words) == (0, "")


@pytest.mark.slow
def test_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    code, _, words = as_nobody("weights fetch selfmask", tmp_path, HOME="/")
    assert code == 2 and len(words.splitlines()) == 1
    assert "/.cache/namedmask cannot be written" in words and "NAMEDMASK_CACHE" in words
