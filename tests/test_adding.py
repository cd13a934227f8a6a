"""Adding a verb is two edits, a stage three, a status one: made on a copy, and then used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from namedmask.config.run_file import to_toml
from tests import toys
from tests.road import config_of

ROOT = Path(__file__).parents[1]

VERB = {
    "namedmask/verbs/greet.py": '''"""The verb `greet`: says how many archives there are."""

from typing import Any

from namedmask.archive.store import Archive
from namedmask.run.job import verb_run


def greet(config: Any, progress: Any, executor: Any) -> dict[str, Any]:
    """Return a greeting."""
    with verb_run("greet", config, progress) as run:
        if run.has_work:
            run.result = {"greeting": f"hello, {len(Archive.open(run.archive).names)} archives"}
    return run.result
''',
    "namedmask/run/verb_table.py": (
        "_VERBS = (\n",
        '_VERBS = (\n    Verb(name="greet", help="Say how many archives there are.",\n'
        '         needs="build", function="namedmask.verbs.greet:greet", is_on_road=True),\n',
    ),
}
STAGE = {
    "namedmask/shine/__init__.py": '"""Pictures that do not shine are dropped."""\n',
    "namedmask/shine/stage.py": '''"""Pictures whose brightest pixel is dark are dropped."""

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.images.codec import decode
from namedmask.schema.status import OK, TOO_DULL


class Shine:
    """A stage."""

    name = "shine"
    reads = ("image",)
    adds = ("status",)

    def __init__(self, config: object) -> None:
        self.least = config.least

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the table, dull pictures `too_dull`."""
        rows = schema.alive(table)
        bright = [decode(table["image"][int(row)].as_py()).max() for row in rows]
        words = [OK if one >= self.least else TOO_DULL for one in bright]
        return schema.bury(schema.update(table, rows, {"status": words}), ("image",))
''',
    "namedmask/config/sections.py": (
        "class Sections(Section):\n",
        '''class ShineConfig(PoolSection):
    """Which pictures shine."""

    least: int = 255

    @property
    def summary(self) -> str:
        """For the plan."""
        return f"at least {self.least}"


class Sections(Section):
''',
        "    run: RunConfig\n",
        "    run: RunConfig\n    shine: ShineConfig = ShineConfig()\n",
    ),
    "namedmask/run/stages.py": (
        '    "bilateral": StageRow(',
        '    "shine": StageRow("namedmask.shine.stage:Shine"),\n    "bilateral": StageRow(',
    ),
}
STATUS = {
    "namedmask/schema/status.py": (
        'OK = _status("ok"',
        'TOO_DULL = _status("too_dull", "dark", finding=True)\nOK = _status("ok"',
    )
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the toy verb, stage and status in it."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("namedmask", "ray_jobs"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("*.pyc"))
    for path, edit in {**VERB, **STAGE, **STATUS}.items():
        file = root / path
        if isinstance(edit, str):
            file.parent.mkdir(exist_ok=True)
            file.write_text(edit)
        else:
            text = file.read_text()
            for old, new in zip(edit[::2], edit[1::2], strict=True):
                assert text.count(old) == 1, f"{path} has no place for {old!r}"
                text = text.replace(old, new)
            file.write_text(text)
    return root


@pytest.fixture(scope="module")
def run_file(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "run"
    path = out.with_suffix(".toml")
    path.write_text(to_toml(config_of(source, out)) + "\n[shine]\nleast = 220\n")
    return path


def ran(copy: Path, *command: object) -> str:
    paths = os.pathsep.join([str(copy), str(ROOT)])  # the toys are of the tests
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)], cwd=copy, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_edits_are_few() -> None:
    folders = {str(Path(path).parent) if "shine" in path else path for path in STAGE}
    assert (len(VERB), len(folders), len(STATUS)) == (2, 3, 1)


def test_toy_verb_is_in_help_jobs_and_submission(copy: Path) -> None:
    assert "Say how many archives there are." in ran(copy, "namedmask", "--help")
    assert "--config" in ran(copy, "ray_jobs", "greet", "--help")
    code = (
        "from namedmask.engine.on_ray.submit import command;"
        "from namedmask.run.verb_table import road_of; from namedmask.config import Config;"
        "config = Config.of({'run': {'out': 'x'}}); print(command('r.toml', road_of(config), ()))"
    )
    paths = {"PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copy,
                          env=os.environ | paths)  # fmt: skip
    assert "python -m ray_jobs greet --config r.toml" in done.stdout, done.stderr


def test_toy_stage_and_verb_are_planned(copy: Path, run_file: Path) -> None:
    planned = json.loads(ran(copy, "namedmask", "plan", run_file, "--json"))["stages"]
    shine = next(stage for stage in planned if stage["name"] == "shine")
    assert shine["verb"] == "build" and shine["choice"] == "at least 220"
    assert any(stage["verb"] == "greet" for stage in planned)


def test_toy_stage_works_on_images_and_toy_verb_in_the_run_folder(
    copy: Path, run_file: Path
) -> None:
    first = json.loads(ran(copy, "namedmask", "curate", run_file, "--local", "--json"))
    assert first["candidates_by_status"]["too_dull"] > 0
    assert first["images_kept"] > 0
    said = json.loads(ran(copy, "namedmask", "greet", run_file, "--local", "--json"))
    assert said["greeting"] == f"hello, {len(toys.COLORS)} archives"
    again = json.loads(ran(copy, "namedmask", "greet", run_file, "--local", "--json"))
    assert again["skipped"] is True


def test_toy_verb_is_in_the_report(copy: Path, run_file: Path) -> None:
    run = run_file.with_suffix("")
    ran(copy, "namedmask", "report", run)
    assert re.search(r"greet\W+(done|finished)", (run / "report.html").read_text())
