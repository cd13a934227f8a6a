"""Compare a graph of stages on Ray with plain loops in several processes, on the same cores.

    python bench/overhead.py [waves]

Drawn pictures pass through fetch (files), faces, saliency, bilateral and the sink. There is one
process with a plain loop per core; each has all stages and takes every n-th wave. `ratio` is the
steady rate on Ray, from the first commit to the last, over that of the plain loops. Both rates are
medians over runs in alternating order. `fixed_seconds` is the time that a graph with one actor per
stage needs on a running Ray before it works: the time from the call to the first commit, without
the time that its stages spent on that wave. The last line is JSON.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import Config
from namedmask.engine.on_ray import connect
from namedmask.images.codec import encode_jpeg
from namedmask.miniworld import pictures
from namedmask.run.job import VerbRun
from namedmask.run.layout import IMAGES
from namedmask.run.ledger import open_run
from namedmask.run.machine import cores
from namedmask.run.progress import SilentProgress
from namedmask.run.stages import load_stage
from namedmask.run.waves import Wave, header_of, write

STAGES = ("fetch", "faces", "saliency", "bilateral")
ROWS = 100
"""Number of rows per wave."""

ORDERS = (("ray", "plain"), ("plain", "ray"), ("ray", "plain"))


def config_of(folder: Path, actors: int) -> Config:
    pair = [actors, actors]
    tree = {
        "run": {"out": str(folder / "run"), "threads": 1},
        "ray": {"num_cpus": 16, "object_store_mb": 500},
        "fetch": {"file_root": str(folder), "actors": [1, 1]},
        "faces": {"actors": pair},
        "saliency": {"actors": pair},
        "bilateral": {"shorter_side": 112, "actors": pair},
    }
    return Config.of(tree)


def draw(folder: Path, count: int) -> list[str]:
    """Write `count` photos of 136 × 136 pixels and return their urls."""
    urls = []
    for number in range(count):
        rng = np.random.default_rng(number)
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(encode_jpeg(pictures.photo(rng, 1 + number % 14, 136, 136, 0.5).pixels()))
        urls.append(path.as_uri())
    return urls


def waves_of(urls: list[str]) -> list[Wave]:
    """Return waves of `ROWS` urls each."""
    starts = range(0, len(urls), ROWS)
    return [Wave(f"{n:05d}", partial(rows, urls[start : start + ROWS]))
            for n, start in enumerate(starts)]  # fmt: skip


def rows(urls: list[str]) -> pa.Table:
    """Return the rows of a wave that the stage fetch reads."""
    columns = {"sample_id": urls, "url": urls, "status": [schema.OK] * len(urls)}
    return pa.table(columns | {"num_faces": pa.nulls(len(urls), pa.int32())})


def plainly(folder: Path, config: Config, waves: list[Wave], ends: Any) -> None:
    """Pass waves through all stages in this process and put the time of each commit into `ends`."""
    stages = [load_stage(name, config) for name in STAGES]
    for wave in waves:
        table = read = wave.read()
        for stage in stages:
            table = stage(table)
        write(folder, IMAGES, header_of(wave, read), table)
        ends.put(time.time())


def plain_ends(folder: Path, urls: list[str]) -> list[float]:
    """Return the commit time of each wave, in order, for plain loops in one process per core."""
    context, config, waves = (
        multiprocessing.get_context("spawn"),
        config_of(folder, 1),
        waves_of(urls),
    )
    count, ends = cores(), context.Queue()
    processes = [
        context.Process(target=plainly, args=(folder / "plain", config, waves[n::count], ends))
        for n in range(count)
    ]
    for process in processes:
        process.start()
    times = [ends.get(timeout=300) for _ in waves]  # a failed process puts no times
    for process in processes:
        process.join()
    return sorted(times)


def ray_ends(
    folder: Path, urls: list[str], actors: int, executor: Any
) -> tuple[list[float], float]:
    """Return the commit time of each wave for a graph on Ray, and the seconds before it worked."""
    config = config_of(folder, actors)
    out = Path(tempfile.mkdtemp(dir=folder))
    with open_run(out) as ledger:
        run = VerbRun(config, ledger, SilentProgress())
        start, ends, spent = time.time(), [], 0.0
        with run.progress.step("check") as step:
            for _ in executor.run(run, waves_of(urls), STAGES, IMAGES, step):
                ends.append(time.time())
                if len(ends) == 1:
                    spent = sum(run.seconds.values())
    return ends, ends[0] - start - spent


def rate(ends: list[float]) -> float:
    """Return the waves per second between the first commit and the last."""
    return (len(ends) - 1) / (ends[-1] - ends[0])


def main(waves: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        urls = draw(folder, waves * ROWS)
        with connect(config_of(folder, 1)) as executor:
            executor._connect()
            fixed = [ray_ends(folder, urls[: 4 * ROWS], 1, executor)[1] for _ in range(3)]
            print(f"fixed: {', '.join(f'{seconds:.1f}' for seconds in fixed)} s")
            rates: dict[str, list[float]] = {"ray": [], "plain": []}
            for order in ORDERS:
                for side in order:
                    ends = (
                        ray_ends(folder, urls, cores(), executor)[0]
                        if side == "ray"
                        else plain_ends(folder, urls)
                    )
                    rates[side].append(rate(ends) * ROWS)
                    print(f"{side}: {rates[side][-1]:.1f} images/s")
    ratio = statistics.median(rates["ray"]) / statistics.median(rates["plain"])
    result = {
        "ratio": round(ratio, 3),
        "fixed_seconds": round(statistics.median(fixed), 1),
        "fixed_seconds_each": [round(seconds, 1) for seconds in fixed],
        "images_per_second": {
            side: round(statistics.median(of_side), 1) for side, of_side in rates.items()
        },
        "images": waves * ROWS,
        "cores": cores(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
