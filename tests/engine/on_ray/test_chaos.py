"""What a run on Ray survives: killed processes, pictures that kill, two actors instead of one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from namedmask.config.run_file import to_toml
from namedmask.engine.on_ray import connect
from namedmask.errors import NamedMaskError
from namedmask.retrieve.top_k import merge_top_k
from namedmask.retrieve.vectors import TopK, file_parts
from namedmask.run.job import VerbRun
from namedmask.run.ledger import Ledger, open_run
from namedmask.run.progress import SilentProgress
from namedmask.run.stores import EmbeddingStore
from namedmask.verbs import build as verbs
from tests import poison, toys
from tests.road import config_of, digests, photos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[3]
SILENT = SilentProgress()
ON_RAY = ("ray.num_cpus=16", "ray.object_store_mb=200")
PAIRS = tuple(
    f"{stage}.actors=[2, 2]"
    for stage in ("fetch", "embed", "retrieve", "faces", "saliency", "bilateral")
)
WAVE = 16
IN_HAND = 3
"""Waves on their way through fetch, embed and the sink at once, with one actor each."""


@pytest.fixture(scope="module")
def web() -> Iterator[toys.SmallWeb]:
    with toys.SmallWeb(delay_s=0.02) as web:
        toys.fill(web, toys.COLORS, each=40)
        yield web


@pytest.fixture(scope="module")
def plain(web: toys.SmallWeb, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    web.hits.clear()
    verbs.curate(config_of(source, out), SILENT)
    (out / "hits.json").write_text(json.dumps(web.hits))
    return out


def test_on_ray_two_actors_a_stage_make_the_same_bytes(
    source: str, plain: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, *ON_RAY, *PAIRS)
    with connect(config) as executor:
        verbs.curate(config, SILENT, executor)
    assert digests(tmp_path) == digests(plain)


def test_on_ray_pictures_that_kill_are_crashed_and_change_nothing_else(
    web: toys.SmallWeb, plain: Path, tmp_path: Path
) -> None:
    rows = list(web.rows)
    killers = {"segfault.jpg": poison.SEGFAULT, "hunger.jpg": poison.HUNGER}
    for name, color in killers.items():
        web.add(name, toys.jpeg(poison.poisoned(toys.disk(toys.COLORS["red"], 7), color)))
    bad = [web.rows.pop() for _ in killers]
    web.rows[40:40] = bad
    source = str(web.write_metadata(tmp_path / "metadata.parquet"))
    web.rows[:] = rows
    parts = ("embed.model=tests.poison:embedder",)
    config = config_of(source, tmp_path / "run", *ON_RAY, *parts)
    with connect(config) as executor:
        summary = verbs.curate(config, SILENT, executor)
    assert summary["rows_by_status"]["crashed"] == 2
    crashed = {row["url"].rpartition("/")[2] for row in _tombstones(tmp_path / "run")
               if row["status"] == "crashed"}  # fmt: skip
    assert crashed == set(killers)
    found, expected = digests(tmp_path / "run"), digests(plain)
    assert (found["archive"], found["candidates"]) == (expected["archive"], expected["candidates"])


def _tombstones(run: Path) -> Iterator[dict[str, object]]:
    for path in (run / "embeddings").glob("tombstones-*.parquet"):
        yield from pq.read_table(path).to_pylist()


class Driver:
    """A verb in a process of its own, and what belongs to it."""

    def __init__(self, run_file: Path, verb: str = "curate") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "namedmask", verb, str(run_file), "--json"],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kill(self, name: str) -> int | None:
        """Kill the process of a stage with SIGKILL; return its pid, None where there is none."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if f"MapBatches({name})" in " ".join(child.cmdline()) + child.name():
                    child.kill()
                    return child.pid
        return None

    def stop(self) -> None:
        """Kill the driver, and what it leaves behind as a machine's end would."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _commits(run: Path) -> int:
    return len(list((run / "embeddings").glob("commit-*.json")))


def _wait_for(run: Path, commits: int, driver: Driver) -> None:
    while _commits(run) < commits:
        assert driver.process.poll() is None, driver.process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["Embed", "Sink"])
def test_on_ray_killed_actor_costs_a_wave_and_changes_nothing(
    stage: str, web: toys.SmallWeb, source: str, plain: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path / "run", *ON_RAY)
    (tmp_path / "run.toml").write_text(to_toml(config))
    web.hits.clear()
    driver = Driver(tmp_path / "run.toml")
    killed = []
    for commits in (1, 4, 8):
        _wait_for(tmp_path / "run", commits, driver)
        pid = driver.kill(stage)
        killed += [pid] if pid else []
    assert driver.process.wait(600) == 0, driver.process.stderr.read()
    assert len(set(killed)) >= 2, "too fast to be killed"
    hits = json.loads((plain / "hits.json").read_text())
    assert web.hits == hits, "the stage before the killed one did its work again"
    assert digests(tmp_path / "run") == digests(plain)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["Fetch", "Embed", "Sink"])
def test_on_ray_killed_actor_within_a_wave_of_many_slices_changes_nothing(
    stage: str, tmp_path: Path
) -> None:
    with toys.SmallWeb() as slow_web:
        for path in sorted(photos(tmp_path / "photos", 150).iterdir()):
            slow_web.add(path.name.replace(" ", "-"), path.read_bytes())
        source = str(slow_web.write_metadata(tmp_path / "metadata.parquet"))
        keys = ("run.wave_rows=120", *ON_RAY)
        verbs.embed(config_of(source, tmp_path / "plain", *keys), SILENT)
        config = config_of(source, tmp_path / "run", *keys, "run.memory_gb=0.01")
        (tmp_path / "run.toml").write_text(to_toml(config))
        slow_web.delay_s = 0.8  # so that the fetch goes on when the other pools have begun
        driver = Driver(tmp_path / "run.toml", "embed")
        killed = []
        for parts in (2, 5):  # slices of an uncommitted wave that are written
            while len(list((tmp_path / "run" / "embeddings").glob("part-*.arrow"))) < parts:
                assert driver.process.poll() is None, driver.process.stderr.read()
                time.sleep(0.005)
            pid = driver.kill(stage)
            killed += [pid] if pid else []
        assert driver.process.wait(600) == 0, driver.process.stderr.read()
    assert killed, "too fast to be killed"
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "embeddings").iterdir()}
        for run in ("run", "plain")
    ]
    assert files[0] == files[1]


def test_on_ray_killed_driver_goes_on_where_it_was(
    web: toys.SmallWeb, source: str, plain: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path / "run", *ON_RAY)
    (tmp_path / "run.toml").write_text(to_toml(config))
    web.hits.clear()
    moments = (1, 5, 9)
    for commits in moments:
        driver = Driver(tmp_path / "run.toml")
        _wait_for(tmp_path / "run", commits, driver)
        driver.stop()
    kept = {path: path.stat().st_mtime_ns
            for path in (tmp_path / "run" / "embeddings").glob("wave-*.parquet")}  # fmt: skip
    committed = {path.name[7:-5] for path in (tmp_path / "run/embeddings").glob("commit-*.json")}
    waves = -(-len(web.rows) // WAVE)
    begun = sum(web.hits.values()) / WAVE
    assert begun - len(committed) <= len(moments) * IN_HAND, "more was lost than was in hand"
    driver = Driver(tmp_path / "run.toml")
    assert driver.process.wait(600) == 0, driver.process.stderr.read()
    assert len(committed) < waves, "the run was over before it was killed"
    for path, written in kept.items():
        if path.name[5:10] in committed:
            assert path.stat().st_mtime_ns == written, "a committed wave was done again"
    assert digests(tmp_path / "run") == digests(plain)


class Dying:
    """A function whose process is killed as often as a file says."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], times: Path) -> None:
        self._function, self._times = make(), times

    def __call__(self, item: Any) -> Any:
        left = int(self._times.read_text())
        if left:
            self._times.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return self._function(item)


def test_on_ray_killed_scoring_actor_changes_no_bit_and_a_deadly_part_ends_the_run(
    source: str, plain: Path, tmp_path: Path
) -> None:
    store, times = EmbeddingStore(Ledger(plain)), tmp_path / "times"
    queries = np.random.default_rng(0).standard_normal((5, 108)).astype(np.float32)
    make = partial(TopK, queries, 30)
    expected = make()(file_parts(store, 1)[0])
    parts = file_parts(store, 6)
    assert len(parts) > 3
    config = config_of(source, tmp_path / "run", *ON_RAY, "retrieve.actors=[2, 2]")
    with open_run(tmp_path / "run") as ledger, connect(config) as executor:
        job = VerbRun(config, ledger, SILENT)
        times.write_text("1")
        scores, rows = merge_top_k(
            executor.map(job, "retrieve", partial(Dying, make, times), parts), 30
        )
        assert times.read_text() == "0"
        np.testing.assert_array_equal(rows, expected[1])
        np.testing.assert_array_equal(scores.view(np.int32), expected[0].view(np.int32))
        times.write_text("99")
        with pytest.raises(NamedMaskError, match="killed its process 2 times"):
            list(executor.map(job, "retrieve", partial(Dying, make, times), parts))
