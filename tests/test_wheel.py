"""The wheel, built and installed elsewhere: the command runs and its data files are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAVEL = ("namedmask/data", "namedmask/miniworld/weights")


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy, so that the working tree stays clean."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("namedmask", "ray_jobs"):
        shutil.copytree(ROOT / package, source / package, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    python(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", str(out), ".", cwd=source,
    )  # fmt: skip
    (path,) = out.glob("namedmask-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("elsewhere")
    python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target),
        str(wheel), cwd=target,
    )  # fmt: skip
    return target


def test_wheel_holds_every_data_file_and_the_license(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [file for folder in TRAVEL for file in (ROOT / folder).rglob("*") if file.is_file()]
    wanted = {str(file.relative_to(ROOT)) for file in files if not file.name.startswith(".")}
    assert wanted <= packed
    assert {"namedmask/py.typed", "ray_jobs/build_archive.py"} <= packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert not any(name.startswith("tests") for name in packed)


def test_wheel_installed_elsewhere_runs_and_reads_its_data(installed: Path, tmp_path: Path) -> None:
    assert "doctor" in python("-m", "namedmask", "--help", cwd=tmp_path, path=installed)
    code = (
        "import namedmask; from pathlib import Path; from importlib import resources;"
        "from namedmask.categories import SHIPPED, load_category_set;"
        f"assert Path(namedmask.__file__).is_relative_to({str(installed)!r}), namedmask.__file__;"
        "assert all(load_category_set(name).names for name in SHIPPED) and SHIPPED;"
        "runs = resources.files('namedmask') / 'data' / 'runs';"
        "[namedmask.Config.load(str(path)) for path in runs.iterdir()]"
    )
    python("-c", code, cwd=tmp_path, path=installed)


def test_wheel_console_script_is_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "namedmask = namedmask.__main__:main" in archive.read(entry).decode()
