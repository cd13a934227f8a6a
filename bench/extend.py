"""Measure the cost of adding one category to a finished run of twelve categories.

    python bench/extend.py

The run is done by the plain loop, over the mini world served on this machine. `work_ratio` is the
number of images tried for the thirteenth category over the number tried for the twelve. `again` is
above 0 if an image was embedded, fetched or masked a second time, which must not happen.
`wall_ratio` is the seconds of the second `build` over those of the first, both without the seconds
that loading the stages takes. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pyarrow.parquet as pq

from namedmask.config import Config
from namedmask.miniworld.demo import demo_config
from namedmask.miniworld.pictures import NAMES
from namedmask.miniworld.server import reserve_port, serve
from namedmask.miniworld.web import build_world
from namedmask.run.ledger import read_commits
from namedmask.run.progress import SilentProgress
from namedmask.run.stages import load_stage
from namedmask.verbs import build as verbs
from namedmask.verbs import collect

BEFORE = 12
"""Number of categories in the finished run."""


def config_of(out: Path, world: Path, base: str, count: int) -> Config:
    tree = demo_config(0, out, world, base, full=False).tree()
    tree["categories"] |= {"set": "", "names": list(NAMES[:count])}
    return Config.of(tree)


def timed_build(config: Config) -> float:
    """Return the seconds that `build` takes."""
    start = time.perf_counter()
    verbs.build(config, SilentProgress())
    return time.perf_counter() - start


def tried(out: Path) -> int:
    """Return the number of images that have been checked in a run folder."""
    return sum(commit.rows for commit in read_commits(out, "images").values())


def start_up(config: Config) -> float:
    """Return the seconds that loading the stages takes in a warm process."""
    start = time.perf_counter()
    for name in ("embed", "fetch", "faces", "saliency", "bilateral"):
        load_stage(name, config)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        world, out = Path(name) / "world", Path(name) / "run"
        build_world(world, seed=0, per_category=140, scenes=1)
        with serve(world / "web", reserve_port(world / "port")) as base:
            twelve = config_of(out, world, base, BEFORE)
            thirteen = config_of(out, world, base, BEFORE + 1)
            collect.embed(twelve, SilentProgress())
            start_up(twelve)
            first_s, first = timed_build(twelve), tried(out)
            embedded = sorted(path.stat().st_mtime_ns for path in (out / "embeddings").iterdir())
            loading_s = start_up(thirteen)
            second_s, second = timed_build(thirteen), tried(out)
            now = sorted(path.stat().st_mtime_ns for path in (out / "embeddings").iterdir())
        ids = []
        for path in (out / "images").glob("*.parquet"):
            ids += pq.read_table(path, columns=["sample_id"])["sample_id"].to_pylist()
    again = len(ids) - len(set(ids)) + (now != embedded)
    print(f"twelve categories: {first} images tried in {first_s:.1f} s; one more category: "
          f"{second - first} in {second_s:.1f} s; loading: {loading_s:.1f} s")  # fmt: skip
    wall = max(0.0, second_s - loading_s) / (first_s - loading_s)
    print(json.dumps({"work_ratio": round((second - first) / first, 3), "again": again,
                      "wall_ratio": round(wall, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
