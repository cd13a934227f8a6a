"""Curated run folders of the toy web for the tests on Ray, and segmenters that come to harm."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from torch import nn

from namedmask.config import Config
from namedmask.run.progress import SilentProgress
from namedmask.segmenter.deeplab import deeplabv3plus_tiny
from namedmask.verbs import build as verbs
from tests import toys

SIZE = 6
RAY_WARNINGS = [
    # Ray Data reads its own deprecated settings when it sets up
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]

HARM = "NAMEDMASK_TEST_HARM"
"""Environment variable with a folder: what lies there says what harm to do."""


def config_of(out: Path, *overrides: str, source: str = "unused") -> Config:
    tree: dict[str, Any] = {
        "run": {"out": str(out), "threads": 1},
        "categories": {"names": list(toys.COLORS), "templates": ["a {} disk"]},
        "metadata": {"source": [source]},
        "fetch": {"timeout_s": 5.0, "retries": 0, "in_flight": 4, "allow_loopback": True},
        "embed": {"model": "tests.toys:embedder", "batch_size": 8},
        "retrieve": {"archive_size": SIZE, "near_duplicate_cosine": 0.995, "candidates": 20},
        "faces": {"detector": "tests.toys:face_detector"},
        "saliency": {"detector": "tests.toys:saliency_detector", "batch_size": 4},
        "augment": {"crop": 32},
        "segmenter": {"name": "deeplabv3plus_tiny"},
        "experts": {"iterations": 2, "batch_size": 2, "shared_iterations": 2},
        "train": {"iterations": 6, "batch_size": 4, "checkpoint_every": 2},
    }
    return Config.of(tree, overrides)


def curate(out: Path) -> Path:
    """Return a curated run folder of three categories, `SIZE` pictures each."""
    with toys.SmallWeb() as web:
        toys.fill(web, toys.COLORS, each=SIZE + 2)
        source = str(web.write_metadata(out.parent / "metadata.parquet"))
        verbs.curate(config_of(out, source=source), SilentProgress())
    return out


def copy(curated: Path, out: Path) -> Path:
    """Return `out`, a copy of the archive of `curated` for another run."""
    shutil.copytree(curated / "archive", out / "archive")
    shutil.copy(curated / "run.json", out)
    return out


def damage(folder: Path, word: str) -> Path:
    """Write the archive of one category again with its first image cut short."""
    (path,) = (folder / "archive").glob(f"*-{word}.parquet")
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[0] = images[0][:100]
    place = table.schema.get_field_index("image")
    pq.write_table(table.set_column(place, "image", pa.array(images, pa.binary())), path)
    return path


def harmed(num_labels: int) -> nn.Module:
    """Return a tiny segmenter whose process is killed when it is asked for.

    Once where `once` lies in the folder of `HARM`, always where `always` does.
    """
    folder = Path(os.environ[HARM])
    model = deeplabv3plus_tiny(num_labels)

    def strike(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        once = folder / "once"
        if module.training and (folder / "always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if module.training and once.exists():
            left = int(once.read_text())
            once.write_text(str(left - 1))
            if left == 0:
                once.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(strike)
    return model


@contextmanager
def local_ray(harm: Path) -> Iterator[None]:
    """A Ray of its own with 4 CPUs on whatever there is; its workers know the folder of `HARM`."""
    os.environ[HARM] = str(harm)
    try:
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
        yield
    finally:
        ray.shutdown()
        del os.environ[HARM]
