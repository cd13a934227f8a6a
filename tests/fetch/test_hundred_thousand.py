"""100,000 rows with 40 % trouble: they add up, and three kills change nothing and cost little."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask.config.run_file import Config, to_toml
from namedmask.run import ledger
from tests.trouble_server import hits_of, trouble_server

ROWS = 100_000
WAVE = 2000
IN_FLIGHT = 2
"""Waves of the plain loop under way at once: one is fetched, the one before it embedded."""

# what a path says → the share of rows, and the status they end with
TROUBLE = {
    "http_404": (0.10, "http_404"),
    "http_410": (0.02, "http_410"),
    "http_403": (0.01, "http_403"),
    "http_500": (0.02, "http_500"),
    "http_503": (0.01, "http_503"),
    "html": (0.02, "not_an_image"),
    "truncated": (0.02, "truncated"),
    "empty": (0.01, "empty"),
    "big": (0.01, "too_big"),
    "noai": (0.01, "opted_out"),
    "reset": (0.01, "reset"),
    "duplicate": (0.07, "duplicate_url"),
    "bad_url": (0.03, "bad_url"),
    "unsafe": (0.03, "unsafe"),
    "small": (0.03, "too_small"),
}
SLOW = {"slow": "timeout"}
SLOW_ROWS = (range(30_000, 30_010), range(70_000, 70_010))
"""Few, and together: each wave that has one lasts as long as the timeout."""


def write_metadata(path: Path, url: str) -> Counter[str]:
    """Write the rows; return how many must end with each status."""
    rng = random.Random(0)
    shares = [share for share, _ in TROUBLE.values()]
    kinds = rng.choices(["ok", *TROUBLE], [1 - sum(shares), *shares], k=ROWS)
    for rows in SLOW_ROWS:
        for row in rows:
            kinds[row] = "slow"
    kinds[0] = "ok"
    rows, expected = [], Counter[str]()
    for number, kind in enumerate(kinds):
        row = {"url": f"{url}/{kind}/{number}.jpg", "punsafe": 0.01, "width": 300, "height": 200}
        if kind == "duplicate":
            row["url"] = rows[rng.randrange(number)]["url"].replace("http:", "HTTP:") + "#again"
            if not row["url"].startswith("HTTP:"):
                row["url"] = rows[0]["url"]
        elif kind == "bad_url":
            row["url"] = f"not/a/url/{number}"
        row |= {"punsafe": 0.97} if kind == "unsafe" else {"width": 9} if kind == "small" else {}
        rows.append(row)
        expected[TROUBLE[kind][1] if kind in TROUBLE else SLOW.get(kind, "ok")] += 1
    pq.write_table(pa.Table.from_pylist(rows), path)
    return expected


def config_of(source: Path, out: Path, agent: str) -> Config:
    tree: dict[str, Any] = {
        "run": {"out": str(out), "wave_rows": WAVE, "threads": 1},
        "metadata": {"source": [str(source)], "min_side": 64},
        "fetch": {
            "timeout_s": 8.0, "retries": 0, "per_host": 64, "in_flight": 64, "max_bytes": 100_000,
            "allow_loopback": True, "user_agent": agent,
        },
        "embed": {"model": "tests.toys:embedder", "batch_size": 64},
    }  # fmt: skip
    return Config.of(tree)


def begin(config: Config) -> subprocess.Popen[bytes]:
    """Begin the verb embed in a process of its own."""
    run_file = config.run.out.with_suffix(".toml")
    run_file.write_text(to_toml(config))
    command = [sys.executable, "-m", "namedmask", "embed", str(run_file), "--local", "--json"]
    with run_file.with_suffix(".json").open("wb") as said:
        return subprocess.Popen(command, stdout=said, env=os.environ | {"OMP_NUM_THREADS": "1"})


def commits_in(out: Path) -> int:
    return len(list((out / "embeddings").glob("commit-*.json")))


def kill_when(config: Config, commits: int, delay_s: float) -> None:
    """Run the verb until there are so many commits and a little more, and kill it with -9."""
    process = begin(config)
    while commits_in(config.run.out) < commits:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    time.sleep(delay_s)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def store_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "embeddings").iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundred_thousand_rows_killed_three_times_end_as_in_one_go(tmp_path: Path) -> None:
    source = tmp_path / "metadata.parquet"
    rng = random.Random(0)
    with trouble_server() as url:
        expected = write_metadata(source, url)
        whole = config_of(source, tmp_path / "whole", "whole")
        killed = config_of(source, tmp_path / "killed", "killed")
        beside = begin(whole)
        for commits in (rng.randrange(3, 14), rng.randrange(16, 30), rng.randrange(32, 45)):
            kill_when(killed, commits, rng.random())
        assert begin(killed).wait() == 0
        assert beside.wait() == 0
        once, again = hits_of(url, "whole"), hits_of(url, "killed")

    summary = json.loads((tmp_path / "whole.json").read_text())
    assert summary["rows_in"] == sum(summary["rows_by_status"].values()) == ROWS
    assert summary["rows_by_status"] == dict(expected)
    funnels = [json.loads((out / "funnels.json").read_text()) for out in
               (tmp_path / "whole", tmp_path / "killed")]  # fmt: skip
    assert funnels[0] == funnels[1]
    assert funnels[0]["rows_by_status"] == dict(expected)

    assert store_of(tmp_path / "killed") == store_of(tmp_path / "whole")
    rows = [
        commit.rows for commit in ledger.read_commits(tmp_path / "killed", "embeddings").values()
    ]
    assert sum(rows) == ROWS

    # a reset on a connection that was kept alive is tried anew below us, so it does not count
    twice = [times - 1 for path, times in again.items() if times > 1 and "reset" not in path]
    assert max(once[path] for path in once if "reset" not in path) == 1
    assert 0 < sum(twice) <= 3 * IN_FLIGHT * WAVE
    assert set(again) == set(once)
