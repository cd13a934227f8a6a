"""A measurement of how a cluster and a pool of a run grow and shrink, as a plot and JSON.

    python -m cluster.autoscale [--out autoscale.png] [--images 1600] [--max-workers 4]

The program starts the local cluster with a head of one CPU, and runs `ray_jobs.embed` on a folder
of generated images, with 1 to `--max-workers` actors of the embed pool. The embedder sleeps for one
second per ten images, so that more actors are faster even on one core, as they are on many
machines. The nodes and the actors of the embed pool are counted every half second, until only the
head of the cluster is left.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cluster.local import Shape, cluster, leave_when_terminated

ROOT = Path(__file__).parents[1]
EVERY_S = 0.5
"""Seconds between two samples."""

BATCH = 10
"""Number of images per batch, and per wave."""

SECONDS_PER_BATCH = 1.0
"""Seconds for which the embedder sleeps per batch."""

GIVE_UP_S = 600.0
"""Seconds after which the measurement ends, even if nodes are still running."""


class SlowEmbedder:
    """An embedder of mean colors that is as slow as a large network, but does not use the core."""

    dim = 3

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the vectors of B images, (B, 3) float32, unit L2 norm, after one second."""
        time.sleep(SECONDS_PER_BATCH)
        means = np.array([image.mean((0, 1)) for image in images], np.float32) + 1
        result: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
        return result

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of T texts, (T, 3) float32, unit L2 norm, all equal."""
        return np.full((len(texts), 3), 3**-0.5, np.float32)


def slow_embedder(config: Any) -> SlowEmbedder:
    """Return the embedder; `embed.model` in the run file names this function."""
    return SlowEmbedder()


def write_run(folder: Path, images: int, actors: int) -> Path:
    """Write `images` images and a run file into `folder`; return the path of the run file."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(images):
        pixels = np.tile(rng.integers(0, 256, 3, np.uint8), (32, 32, 1))
        Image.fromarray(pixels).save(pictures / f"{number:05d}.png")
    run_file = folder / "run.toml"
    run_file.write_text(
        f'[run]\nout = "{folder / "out"}"\nwave_rows = {BATCH}\nthreads = 1\n'
        f'[metadata]\nsource = ["{pictures}"]\nnum_cpus = 0.5\n'
        f'[fetch]\nfile_root = "{pictures}"\nnum_cpus = 0.5\n'
        f'[embed]\nmodel = "cluster.autoscale:slow_embedder"\nbatch_size = {BATCH}\n'
        f"actors = [1, {actors}]\n"
    )
    return run_file


def measure(images: int, max_workers: int) -> dict[str, Any]:
    """Run the measurement; return a summary and the samples `[seconds, nodes, embed actors]`."""
    shape = Shape(
        head_cpus=1, max_workers=max_workers, worker_cpus=1, idle_s=10.0, port=6399,
        dashboard_port=8299, client_port=9399, object_store_mb=100,
    )  # fmt: skip
    python_path = {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as name, cluster(shape, python_path) as head:
        run_file = write_run(Path(name), images, max_workers)
        os.environ.update(head.variables)  # before the import of ray, which reads the token
        import ray

        ray.init(head.address, log_to_driver=False, logging_level=logging.WARNING)
        leave_when_terminated()  # again, because `ray.init` has replaced the handler of SIGTERM
        try:
            command = [sys.executable, "-m", "ray_jobs.embed", "--config", str(run_file)]
            job = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=os.environ | python_path
            )
            samples, ended = _watch(job)
            result = json.loads(job.communicate()[0] or "{}")
        finally:
            ray.shutdown()
    nodes, actors = ([row[column] for row in samples] for column in (1, 2))
    return {
        "exit_code": job.returncode,
        "rows": result.get("rows_by_status"),
        "run_s": ended,
        "most_nodes": max(nodes),
        "most_actors": max(actors),
        "second_actor_at_s": next((row[0] for row in samples if row[2] >= 2), None),
        "head_alone_again_after_s": round(samples[-1][0] - ended, 1),
        "samples": samples,
    }


def _watch(job: subprocess.Popen[str]) -> tuple[list[list[float]], float]:
    """Return the samples until only the head is left, and the seconds until the job ended."""
    began, samples, ended = time.monotonic(), [], 0.0
    while (now := round(time.monotonic() - began, 1)) < GIVE_UP_S:
        samples.append([now, *_count()])
        if job.poll() is not None:
            ended = ended or now
            if samples[-1][1] == 1:
                break
        time.sleep(EVERY_S)
    return samples, ended


def _count() -> tuple[int, int]:
    """Return the number of nodes, and the number of running actors of the embed pool."""
    import ray
    from ray.util.state import list_actors

    alive = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return (
        sum(node["Alive"] for node in ray.nodes()),
        sum("(Embed)" in actor.class_name for actor in alive),
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the numbers of nodes and actors over time, and a line at the end of the run."""
    width, height, left, top, right, bottom = 900, 360, 50, 40, 20, 40
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    last = max(result["samples"][-1][0], 1.0)
    most = max(result["most_nodes"], result["most_actors"])

    def place(seconds: float, count: float) -> tuple[float, float]:
        x = left + seconds / last * (width - left - right)
        return x, height - bottom - count / (most + 0.5) * (height - top - bottom)

    for count in range(most + 1):
        pen.line([place(0, count), place(last, count)], "#dddddd")
        pen.text((left - 20, place(0, count)[1] - 6), str(count), "black")
    for seconds in range(0, int(last) + 1, 10):
        pen.text((place(seconds, 0)[0] - 6, height - bottom + 8), f"{seconds} s", "black")
    pen.line([place(result["run_s"], 0), place(result["run_s"], most + 0.5)], "#888888")
    pen.text((place(result["run_s"], 0)[0] + 4, top - 6), "run ended", "#888888")
    for column, color, word in ((1, "#1f77b4", "nodes"), (2, "#d62728", "actors of embed")):
        shift = (column - 1) * 3  # keeps two lines visible where the counts are equal
        steps: list[tuple[float, float]] = []
        for sample in result["samples"]:
            x, y = place(sample[0], sample[column])
            steps += [(x, steps[-1][1] if steps else y - shift), (x, y - shift)]
        pen.line(steps, color, 3)
        pen.text((left + 10 + 90 * (column - 1), 10), word, color)
    picture.save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measurement, draw the plot, and write one line of JSON to stdout."""
    parser = argparse.ArgumentParser(prog="python -m cluster.autoscale")
    parser.add_argument("--out", type=Path, default=Path("autoscale.png"))
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--max-workers", type=int, default=4)
    given = parser.parse_args(arguments)
    result = measure(given.images, given.max_workers)
    draw(result, given.out)
    sys.stdout.write(json.dumps(result | {"plot": str(given.out)}) + "\n")


if __name__ == "__main__":
    main()
