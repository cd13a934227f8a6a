"""Measure `namedmask search` over CLIP-like vectors: time, recall, and the time to make the index.

    python bench/search.py [rows] [kind] [folder]

By default there are 1,000,000 vectors of 768 numbers, in a run folder as `embed` leaves it. If
`folder` is given, the vectors are kept there for the next run. The vectors are drawn at random, not
computed by CLIP. Their eigenvalues fall as 1/i, and 5,000 clusters explain 3/5 of the variance
around the mean. The texts lie outside the cone of the images, as with CLIP.

`search_ms` is the median over 200 texts that the depth of the index was not chosen with. It covers
index, exact scores, urls and captions, in one process, but not the embedding of the text.
`command_s` is the time of the whole command over 1,000 vectors with the mini world's model.
`start_s` is the same without loading the index and searching, and `text_model_s` is the time to
load the model and embed the text. The last line is JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config.run_file import Config, to_toml
from namedmask.embed.text import Prompts, QueryEncoder
from namedmask.run.layout import EMBEDDINGS
from namedmask.run.ledger import Ledger, open_run
from namedmask.run.progress import SilentProgress
from namedmask.run.stores import EmbeddingStore, WaveWriter
from namedmask.search.make import open_index
from namedmask.verbs.search import search

DIM, CLUSTERS, WAVE = 768, 5000, 20_000
"""Width of a vector, number of clusters, and rows per wave."""


class World:
    """A model of drawn image and text vectors, which share their directions."""

    dim = DIM

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        scale = np.arange(1, DIM + 1) ** -0.5
        turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
        self._spread = (scale[:, None] / np.linalg.norm(scale) * turn).astype(np.float32)
        self._image, self._text = unit(rng.standard_normal((2, DIM)).astype(np.float32))
        self._clusters = self._draw(CLUSTERS, rng)

    def images(self, clusters: np.ndarray, seed: int) -> np.ndarray:
        """Return one image vector per cluster number, (N, 768) float32, unit L2 norm."""
        own = self._draw(len(clusters), np.random.default_rng(seed))
        return unit(0.71 * self._image + 0.55 * self._clusters[clusters] + 0.45 * own)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector per text, (N, 768) float32, unit L2 norm.

        A text ends with the number of its cluster.
        """
        rows = []
        for text in texts:
            own = self._draw(1, np.random.default_rng(zlib.crc32(text.encode())))[0]
            cluster = self._clusters[int(text.split()[-1])]
            rows.append(0.84 * self._text + 0.45 * cluster + 0.32 * own)
        return unit(np.stack(rows))

    def _draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return unit(rng.standard_normal((count, DIM), dtype=np.float32) @ self._spread)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors (…, D), scaled to unit L2 norm."""
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


def embedder(config: Any) -> World:
    """Return the text encoder; the config names it by the path `search:embedder`."""
    return World()


def config_of(out: Path, kind: str, model: str) -> Config:
    tree = {"run": {"out": str(out)}, "search": {"kind": kind}, "embed": {"model": model}}
    return Config.of(tree)


def add_wave(out: Path, number: int, vectors: np.ndarray, captions: list[str]) -> None:
    """Write a wave of vectors (N, D) float32 to the run folder `out`, as `embed` does."""
    rows = range(number * WAVE, number * WAVE + len(vectors))
    flat = pa.array(vectors.ravel())
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    columns = {
        "sample_id": [f"{row:020x}" for row in rows],
        "url": [f"https://example.org/images/{row:09d}.jpg" for row in rows],
        "caption": captions,
        "image_height": [0] * len(vectors),
        "image_width": [0] * len(vectors),
        "embedding": pa.ListArray.from_arrays(offsets, flat),
        "status": [schema.OK] * len(vectors),
    }
    with open_run(out), WaveWriter(out, EMBEDDINGS, f"{number:05d}", f"{number}") as writer:
        writer.add(pa.table(columns))
        writer.commit()


def write_store(out: Path, count: int, world: World) -> None:
    """Write `count` vectors to the run folder `out`, except for the waves that it has already."""
    rng = np.random.default_rng(1)
    for number, start in enumerate(range(0, count, WAVE)):
        clusters = rng.integers(0, CLUSTERS, min(WAVE, count - start))
        if (out / EMBEDDINGS / f"commit-{number:05d}.json").is_file():
            continue
        captions = [f"number {start + row} of {k}" for row, k in enumerate(clusters)]
        add_wave(out, number, world.images(clusters, 2 + number), captions)


def time_command(folder: Path) -> dict[str, float]:
    """Return the seconds of `namedmask search` over 1,000 vectors with the mini world's model."""
    config = config_of(folder, "flat", "miniworld")
    probe = QueryEncoder(config.embed)({"cat": Prompts(["a cat"], ("{}",))})["cat"]
    vectors = unit(np.random.default_rng(0).standard_normal((1000, probe.shape[1])))
    add_wave(folder, 0, vectors.astype(np.float32), [f"a drawn thing {n}" for n in range(1000)])
    (folder / "run.toml").write_text(to_toml(config), encoding="utf-8")
    search(config, "a zebra", 5, SilentProgress())
    command = [sys.executable, "-m", "namedmask", "search", str(folder), "a zebra", "--json"]
    walls, texts, starts = [], [], []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        walls.append(time.perf_counter() - start)
        seconds = json.loads(done.stdout)["seconds"]
        texts.append(seconds["text"])
        starts.append(walls[-1] - seconds["load"] - seconds["search"])
    return {
        "command_s": round(statistics.median(walls), 2),
        "start_s": round(statistics.median(starts), 2),
        "text_model_s": round(statistics.median(texts), 2),
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    kind = sys.argv[2] if len(sys.argv) > 2 else "auto"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(scratch) / "run"
        world = World()
        start = time.perf_counter()
        write_store(out, count, world)
        print(f"{count:,} vectors written in {time.perf_counter() - start:.0f} s", flush=True)
        result = measure(out, count, kind, world) | time_command(Path(scratch) / "small")
    print(json.dumps(result))


class Peak(threading.Thread):
    """Record the peak of anonymous memory in MiB while the `with` block runs."""

    def __enter__(self) -> Peak:
        self.mib, self._done = 0, threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while not self._done.wait(0.05):
            status = Path("/proc/self/status").read_text()
            self.mib = max(self.mib, int(status.split("RssAnon:")[1].split()[0]) // 1024)


def measure(out: Path, count: int, kind: str, world: World) -> dict[str, Any]:
    """Make the index, load it, search it with 200 texts, and return the measurements."""
    config = config_of(out, kind, "search:embedder").search
    store, progress = EmbeddingStore(Ledger(out)), SilentProgress()
    start = time.perf_counter()
    with Peak() as peak:
        _, _, made = open_index(out, store, config, world.embed_texts, progress)
    between = time.perf_counter()
    index, manifest, _ = open_index(out, store, config, world.embed_texts, progress)
    ended = time.perf_counter()
    rng = np.random.default_rng(9)
    texts = [f"a new text {n} of {k}" for n, k in enumerate(rng.integers(0, CLUSTERS, 200))]
    times = []
    for query in world.embed_texts(texts):
        begin = time.perf_counter()
        ((_, rows),) = index.search(query[None], 50)
        assert len(index.rows.table(rows)) == 50
        times.append(1000 * (time.perf_counter() - begin))
    sizes = {name: round(file["size"] / 2**20) for name, file in manifest["files"].items()}
    return {
        "rows": count,
        "kind": manifest["kind"],
        "depth": manifest["depth"],
        "search_ms": round(statistics.median(times), 2),
        "search_ms_worst": round(max(times), 2),
        "recall_at_50": manifest["recall_at_50"],
        "build_s": round(between - start, 1) if made else None,
        "load_s": round(ended - between, 2),
        "mib": sizes,
        "peak_mib": peak.mib,  # without the pages of rows.arrow, which the system may drop
    }


if __name__ == "__main__":
    main()
