"""The whole road on the toy web: its run file, and what must be equal between two runs."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.images.codec import encode_png
from namedmask.run.progress import SilentProgress
from namedmask.storage import files as file_store
from tests import toys

SIZE = 8


def tree_of(source: str, out: Path) -> dict[str, Any]:
    return {
        "run": {"out": str(out), "wave_rows": 16, "threads": 1},
        "categories": {"names": list(toys.COLORS), "templates": ["a {} disk", "one {} thing"]},
        "metadata": {"source": [source]},
        "fetch": {"timeout_s": 5.0, "retries": 0, "in_flight": 4, "allow_loopback": True},
        "embed": {"model": "tests.toys:embedder", "batch_size": 8},
        "retrieve": {"archive_size": SIZE, "near_duplicate_cosine": 0.995, "candidates": 40},
        "faces": {"detector": "tests.toys:face_detector"},
        "saliency": {"detector": "tests.toys:saliency_detector", "batch_size": 4},
        "augment": {"crop": 32},
        "segmenter": {"name": "deeplabv3plus_tiny"},
        "experts": {"iterations": 2, "batch_size": 2},
        "train": {"iterations": 4, "batch_size": 2, "checkpoint_every": 2},
    }


def config_of(source: str, out: Path, *overrides: str) -> Config:
    return Config.of(tree_of(source, out), overrides)


def digests(run: Path) -> dict[str, str]:
    """What must be equal between two runs of one config, whatever happened on the way."""
    archive = Archive.open(run / "archive", verify=True)
    entries = [file_store.row_hashes(archive.entries(name)) for name in archive.names]
    vectors = [
        file_store.row_hashes(file_store.read_parquet(path), ("sample_id", "embedding", "status"))
        for path in (run / "embeddings").glob("*.parquet")
    ]
    candidates = file_store.read_parquet(run / "candidates.parquet")
    return {
        "archive": file_store.digest(chain(*entries)),
        "embeddings": file_store.digest(chain(*vectors)),
        "candidates": file_store.digest(file_store.row_hashes(candidates, candidates.column_names)),
        "funnels": (run / "funnels.json").read_text(),
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


class StopAfter(SilentProgress):
    """Progress that ends the run from inside, as a full disk or Ctrl-C would."""

    def __init__(self, advances: int) -> None:
        self.left = advances

    def step(self, name: str, total: int | None = None) -> Any:
        step = super().step(name, total)
        advance = step.advance

        def count(*arguments: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            advance(*arguments)

        step.advance = count
        return step


def judged_on_disks(config: Config, root: Path) -> Config:
    """Return the config with a benchmark of three pictures, written to `root`."""
    for kind in ("images", "labels"):
        (root / "val" / kind).mkdir(parents=True, exist_ok=True)
    (root / "benchmark.toml").write_text(f"names = {json.dumps(list(toys.COLORS))}\n")
    for label, color in enumerate(toys.COLORS.values(), start=1):
        picture = toys.disk(color, 500 + label)
        truth = ((picture.max(2) > 100) * label).astype(np.uint8)
        (root / "val" / "images" / f"{label}.jpg").write_bytes(toys.jpeg(picture))
        (root / "val" / "labels" / f"{label}.png").write_bytes(encode_png(truth))
    section = config.evaluate.model_copy(update={"benchmark": "folder", "root": str(root)})
    return config.model_copy(update={"evaluate": section})


def stored(run: Path) -> dict[str, bytes]:
    """Return every file of the store by its name, commit records with their hashes included."""
    return {path.name: path.read_bytes() for path in sorted((run / "fetched").iterdir())}


def photos(folder: Path, count: int, side: int = 420) -> Path:
    """Write pictures of disks under noise, of about 100 kB each; return the folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        word, color = list(toys.COLORS.items())[number % 3]
        disk = Image.fromarray(toys.disk(color, number)).resize((side, side), Image.Resampling.BOX)
        noise = rng.integers(0, 25, (side, side, 3), dtype=np.uint8)
        Image.fromarray(np.asarray(disk) // 10 * 9 + noise).save(
            folder / f"{word} {number}.jpg", quality=95
        )
    return folder
