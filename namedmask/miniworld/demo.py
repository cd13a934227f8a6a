"""Run the demo: the whole pipeline on a mini world, scored against its truth, with a report."""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from namedmask.config import Config
from namedmask.engine import executor_of
from namedmask.evaluate.benchmarks import folder as open_folder
from namedmask.images.codec import encode_png, resize
from namedmask.images.overlay import overlay
from namedmask.miniworld.server import reserve_port, serve
from namedmask.miniworld.truth import score_demo
from namedmask.miniworld.web import build_world
from namedmask.report import write_report
from namedmask.run import layout
from namedmask.run.layout import CHECKPOINT
from namedmask.run.machine import peak_rss_mb
from namedmask.run.progress import Progress
from namedmask.run.verb_table import VERBS, road_of
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.segmenter.predict import predict_labels
from namedmask.storage.files import write_json

FULL = {
    "retrieve": {"archive_size": 80, "candidates": 300},
    "experts": {"iterations": 60},
    "train": {"iterations": 2400, "checkpoint_every": 400},
}
"""Settings of `--full`: more images per category and longer training."""

SHOWN, SIDE = 4, 240
"""Number of scenes in the demo's picture, and side of a panel in pixels."""


def run_demo(
    seed: int, out: Path, full: bool, progress: Progress, *, local: bool = False
) -> dict[str, Any]:
    """Run the demo in the folder `out` and return its summary, which is also written there.

    A report and a picture are written as well. The work is done by the plain loop if `local` is
    set, and otherwise on a Ray started here. The world is drawn only once. If the demo has finished
    already, its summary is returned unchanged, with `skipped` set.
    """
    world = out / layout.DEMO_WORLD
    with progress.step("draw the world"):
        build_world(world, seed, per_category=260 if full else 140)
    port = reserve_port(world / "port")
    config = demo_config(seed, out, world, f"http://127.0.0.1:{port}", full)
    with serve(world / "web", port) as base:
        with executor_of(config, local) as executor:
            results = [VERBS[name].load()(config, progress, executor) for name in road_of(config)]
        done = out / layout.DEMO_SUMMARY
        if all(result.get("skipped") for result in results) and done.exists():
            answer: dict[str, Any] = json.loads(done.read_text()) | {"skipped": True}
            return answer
        with progress.step("score against the truth"):
            summary = {"seed": seed, "full": full} | score_demo(config, world, base)
    summary["seconds"] = json.loads((out / layout.TIMINGS).read_text())
    summary["peak_rss_mb"] = peak_rss_mb()
    write_json(done, summary)
    write_report(out)
    (out / layout.DEMO_PICTURE).write_bytes(picture(out, world))
    return summary


def picture(out: Path, world: Path) -> bytes:
    """Return a PNG of the first test scenes, not the best ones: image, truth and prediction."""
    model, names = load_checkpoint(out / CHECKPOINT)
    scenes = open_folder(world / "scenes", "test")
    rows = []
    for index in range(min(SHOWN, len(scenes))):
        _, image, truth = scenes[index]
        label_maps = [
            resize(label_map, SIDE, SIDE, nearest=True)
            for label_map in (truth, predict_labels(model, image))
        ]
        large = resize(image, SIDE, SIDE)
        rows.append(np.hstack([large, *(overlay(large, m, names) for m in label_maps)]))
    return encode_png(np.vstack(rows))


def demo_config(seed: int, out: Path, world: Path, base: str, full: bool) -> Config:
    """Return the demo's config: the shipped `demo.toml` with the folders and urls of this run.

    `base` is the url of the web server over `world`.
    """
    text = (resources.files("namedmask") / "data" / "runs" / "demo.toml").read_text("utf-8")
    tree = tomllib.loads(text)
    for section, values in FULL.items() if full else ():
        tree[section] |= values
    tree["run"] |= {"out": str(out), "seed": seed}
    tree["metadata"] = {"source": [f"{base}/metadata.parquet"]}
    tree["evaluate"]["root"] = str(world / "scenes")
    return Config.of(tree, place="demo.toml")
