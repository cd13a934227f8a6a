"""Random commands, run files and broken stores: an exit code and a message, whatever it was."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from namedmask.config.run_file import to_toml
from namedmask.engine import PLAIN_LOOP
from namedmask.run.progress import SilentProgress
from namedmask.verbs.build import curate
from namedmask.verbs.evaluate import evaluate
from namedmask.verbs.refine import refine
from namedmask.verbs.search import search
from namedmask.verbs.train import train
from tests import toys
from tests.command_fuzz import World, random_command
from tests.command_worker import CommandWorker
from tests.road import config_of, judged_on_disks

COMMANDS = int(os.environ.get("NAMEDMASK_FUZZ_COMMANDS", "300"))
"""Number of random commands; 2,000 take about a quarter of an hour."""

FIRST = int(os.environ.get("NAMEDMASK_FUZZ_FIRST", "0"))
"""Seed of the first command."""

TIMEOUT_S = 60.0

CODES = (0, 1, 2, 130)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A finished run on a web that is still there."""
    folder = tmp_path_factory.mktemp("world")
    with toys.SmallWeb() as web:
        toys.fill(web, toys.COLORS, each=10)
        source = web.write_metadata(folder / "metadata.parquet")
        config = judged_on_disks(config_of(str(source), folder / "run"), folder / "disks")
        for verb in (curate, refine, train, evaluate):
            verb(config, SilentProgress(), PLAIN_LOOP)
        search(config, "red", 3, SilentProgress())
        (folder / "run.toml").write_text(to_toml(config))
        pictures = folder / "pictures"
        pictures.mkdir()
        for number, color in enumerate(toys.COLORS.values()):
            (pictures / f"{number}.jpg").write_bytes(toys.jpeg(toys.disk(color, number)))
        yield World(folder / "run", folder / "run.toml", pictures, source)


@pytest.mark.slow
@pytest.mark.timeout(60 + 4 * COMMANDS)
def test_random_commands_end_with_a_code_and_without_a_traceback(
    world: World, tmp_path: Path
) -> None:
    worker, wrong, unexpected = CommandWorker(TIMEOUT_S), [], []
    for seed in range(FIRST, FIRST + COMMANDS):
        command = random_command(random.Random(seed), world, tmp_path / str(seed))
        ended = worker.run(command.arguments, command.folder)
        told = f"seed {seed}: {command.arguments}: {ended.code}: {ended.err[-300:]}"
        if ended.code not in CODES or "Traceback" in ended.out + ended.err:
            wrong.append(told)
        elif "Details: " in ended.err:
            unexpected.append(f"{told}\n{_details(ended.err)}")
        shutil.rmtree(command.folder, ignore_errors=True)
    worker.stop()
    assert not wrong, "\n".join(wrong)
    (tmp_path / "unexpected.txt").write_text("\n\n".join(unexpected))
    assert len(unexpected) <= COMMANDS // 50, f"{len(unexpected)}:\n" + "\n\n".join(unexpected)


def _details(err: str) -> str:
    path = Path(err.rpartition("Details: ")[2].strip())
    return path.read_text()[-1500:] if path.is_file() else ""
