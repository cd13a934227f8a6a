"""Measure that peak memory depends neither on the length of a run nor on the size of its images.

    python bench/memory.py [few] [many]
    python bench/memory.py stages

In the first form, the verb `embed` runs over 10,000 and 40,000 pictures (files of about 20 kB),
each time in a process and a Ray of its own: `driver_ratio` and `store_ratio` are the peak of the
long run over that of the short run. In the second form, each stage of the plain loop gets a wave of
small images (200 kB) and a wave of large images (8 MB), each in a process of its own with
run.memory_gb = 4: the ratios are the peak resident memory with large images over that with small
images, the start of the process included, and `ratio` is the one furthest from 1. The last line is
JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parents[1]
SIDE = 224
FILES_PER_FOLDER = 1000


def write_pictures(folder: Path, rows: int) -> Path:
    """Write a picture under `rows` names and return the path of the metadata that lists them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from namedmask.images.codec import encode_jpeg

    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = folder / "picture.jpg"
    picture.write_bytes(encode_jpeg(noise // 2 + 60, 50))
    urls = []
    for row in range(rows):
        path = folder / f"{row // FILES_PER_FOLDER:05d}" / f"{row}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(picture)
        urls.append(f"file://{path}")
    pq.write_table(pa.table({"url": urls}), folder / "metadata.parquet")
    return folder / "metadata.parquet"


def peak_of_run(rows: int) -> dict[str, float]:
    """Return the peaks of one run in MB, and its duration in seconds."""
    import psutil
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    from namedmask.config import Config
    from namedmask.engine.on_ray import connect
    from namedmask.run.progress import SilentProgress
    from namedmask.verbs import collect

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_pictures(folder, rows)
        config = Config.of(
            {
                "run": {"out": str(folder / "run"), "threads": 1, "wave_rows": 250},
                "ray": {"num_cpus": 6, "object_store_mb": 1000},
                "categories": {"names": ["red"]},
                "metadata": {"source": [str(source)]},
                "fetch": {"file_root": name},
                "embed": {"model": "tests.toys:embedder", "batch_size": 64},
            }
        )
        peaks = {"driver_mb": 0.0, "store_mb": 0.0}
        ended = threading.Event()

        def watch() -> None:
            import ray

            state = None
            while not ended.wait(0.2):
                driver = psutil.Process().memory_info().rss / 2**20
                peaks["driver_mb"] = max(peaks["driver_mb"], driver)
                if not ray.is_initialized():
                    continue
                state = state or get_state_from_address(ray.get_runtime_context().gcs_address)
                used = get_memory_info_reply(state).store_stats.object_store_bytes_used / 2**20
                peaks["store_mb"] = max(peaks["store_mb"], used)

        watcher = threading.Thread(target=watch)
        start = time.perf_counter()
        with connect(config) as executor:
            watcher.start()
            result = collect.embed(config, SilentProgress(), executor)
            ended.set()
            watcher.join()
    assert result["rows_in"] == result["rows_by_status"]["ok"] == rows, result
    return peaks | {"seconds": time.perf_counter() - start}


STAGES = ("fetch", "embed", "faces", "saliency", "bilateral")
WAVES = {"small": (2000, 330, 500), "large": (64, 2250, 3000)}
"""Rows, height and width of the images of each wave; noise of this size has 200 kB and 8 MB."""


def write_photos(folder: Path, kind: str) -> list[str]:
    """Write one photo of noise under many names; return their urls."""
    import numpy as np

    from namedmask.images.codec import encode_jpeg

    rows, height, width = WAVES[kind]
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    (folder / "photo.jpg").write_bytes(encode_jpeg(noise, 95))
    for row in range(rows):
        (folder / f"{row}.jpg").hardlink_to(folder / "photo.jpg")
    return [f"file://{folder}/{row}.jpg" for row in range(rows)]


def peak_of_stage(name: str, kind: str) -> float:
    """Return the peak resident memory, in MB, of a process in which a wave passes a stage."""
    import pyarrow as pa

    from namedmask.config import Config
    from namedmask.images.masks import encode_mask
    from namedmask.run.machine import peak_rss_mb, use_threads
    from namedmask.run.stages import load_stage

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        urls = write_photos(folder, kind)
        config = Config.of(
            {
                "run": {"out": str(folder / "run"), "threads": 1, "memory_gb": 4},
                "categories": {"names": ["red"]},
                "fetch": {"file_root": text},
            }
        )
        fetch = load_stage("fetch", config)
        stage = load_stage(name, config) if name != "fetch" else None
        use_threads(config)
        mask: bytes | None = None
        for rows in fetch.slices(pa.table({"url": urls, "status": ["ok"] * len(urls)})):
            if name == "bilateral":
                mask = mask or _half_mask(encode_mask, WAVES[kind][1:])
                masks = pa.array([mask] * rows.num_rows, pa.large_binary())
                rows = rows.append_column("mask", masks)
            if stage:
                for start in range(0, rows.num_rows, 128):
                    stage(rows.slice(start, 128))
        return float(peak_rss_mb())


def _half_mask(encode: Any, size: tuple[int, ...]) -> bytes:
    import numpy as np

    mask = np.zeros(size, bool)
    mask[: size[0] // 2] = True
    encoded: bytes = encode(mask)
    return encoded


def compare_stages() -> None:
    peaks: dict[str, dict[str, float]] = {}
    for name in STAGES:
        peaks[name] = {}
        for kind in WAVES:
            child = subprocess.run(
                [sys.executable, __file__, "--stage", name, kind], check=True,
                capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            peaks[name][kind] = float(child.stdout)
        print(f"{name}: {peaks[name]}", flush=True)
    ratios = {name: round(peak["large"] / peak["small"], 3) for name, peak in peaks.items()}
    worst = max(ratios.values(), key=lambda ratio: abs(ratio - 1))
    print(json.dumps({"ratio": worst, "ratios": ratios, "peaks_mb": peaks}))


def main() -> None:
    few, many = (int(text) for text in [*sys.argv[1:3], "10000", "40000"][:2])
    runs = {}
    for rows in (few, many):
        child = subprocess.run(
            [sys.executable, __file__, "--rows", str(rows)], check=True, capture_output=True,
            text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        runs[rows] = json.loads(child.stdout.splitlines()[-1])
        print(f"{rows:,} rows: {runs[rows]}", flush=True)
    ratios = {
        f"{name}_ratio": round(runs[many][f"{name}_mb"] / runs[few][f"{name}_mb"], 3)
        for name in ("driver", "store")
    }
    peaks = {str(rows): {key: round(value, 1) for key, value in run.items()}
             for rows, run in runs.items()}  # fmt: skip
    print(json.dumps(ratios | {"peaks": peaks}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rows"]:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(peak_of_run(int(sys.argv[2]))))
    elif sys.argv[1:2] == ["--stage"]:
        print(peak_of_stage(sys.argv[2], sys.argv[3]))
    elif sys.argv[1:2] == ["stages"]:
        compare_stages()
    else:
        main()
