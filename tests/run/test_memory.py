"""Memory is bounded by bytes: large photos, waves of gigabytes, and budgets of every size."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from namedmask.config import Config
from namedmask.config.run_file import to_toml
from namedmask.engine.on_ray import connect
from namedmask.run.machine import budget_bytes, limits_of
from namedmask.run.progress import SilentProgress
from namedmask.run.stages import memory_plan
from namedmask.verbs import build as verbs
from tests import toys
from tests.road import config_of, digests, photos

SILENT = SilentProgress()


def curated(source: Path, out: Path, *overrides: str) -> Config:
    return config_of(str(source), out, f"fetch.file_root={source}", "run.wave_rows=50", *overrides)


def test_limits_follow_from_the_budget_and_the_processes() -> None:
    def of(gb: float, processes: int = 1) -> tuple[int, int]:
        config = Config.of({"run": {"out": "x", "memory_gb": gb}, "categories": {"names": ["a"]}})
        limits = limits_of(config, processes)
        assert budget_bytes(config) == int(gb * 2**30)
        assert limits.max_pixels == config.fetch.max_pixels
        plan = memory_plan(config, processes)
        assert plan["slice_mb"] == limits.encoded_bytes >> 20
        return limits.encoded_bytes >> 20, limits.decoded_bytes >> 20

    assert of(64) == (256, 512)
    assert of(4) == (64, 256)
    assert of(4, 4) == (16, 64)
    assert of(0.01) == (1, 8)


def test_max_pixels_is_heard_by_every_stage(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 6)
    strict = ("fetch.max_pixels=100000", "run.max_failure_share=1")
    with pytest.raises(Exception, match="too_many_pixels"):
        verbs.curate(curated(source, tmp_path / "few", *strict), SILENT)


@pytest.mark.slow
def test_max_pixels_that_is_raised_is_heard_by_every_stage(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    for number, color in enumerate(toys.COLORS.values()):
        picture = Image.fromarray(toys.disk(color, number)).resize((8000, 6500), Image.BOX)
        picture.save(large / f"{number}.jpg", quality=50)
    config = curated(large, tmp_path / "all", "fetch.max_pixels=60000000")
    result = verbs.curate(config, SILENT)
    assert result["rows_by_status"] == {"ok": 3}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_slices_of_a_wave_make_the_bytes_of_whole_waves(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 70)  # two waves of several slices of 1 MiB
    verbs.curate(curated(source, tmp_path / "whole"), SILENT)
    small = ("run.memory_gb=0.01", "ray.num_cpus=16", "ray.object_store_mb=200")
    verbs.curate(curated(source, tmp_path / "local", *small), SILENT)
    verbs.curate(curated(source, tmp_path / "many", *small, "fetch.processes=2"), SILENT)
    pairs = tuple(
        f"{s}.actors=[2, 2]" for s in ("fetch", "embed", "faces", "saliency", "bilateral")
    )
    config = curated(source, tmp_path / "ray", *small, *pairs)
    with connect(config) as executor:
        verbs.curate(config, SILENT, executor)
    whole = digests(tmp_path / "whole")
    for name in ("local", "many", "ray"):
        assert digests(tmp_path / name) == whole, name
        for store in ("embeddings", "images"):
            files = {path.name: path.read_bytes() for path in (tmp_path / name / store).iterdir()}
            others = (tmp_path / "whole" / store).iterdir()
            assert files == {path.name: path.read_bytes() for path in others}, (name, store)


def run_limited(run_file: Path, verb: str, address_space_gb: float) -> dict[str, Any]:
    """Run a verb with --local under `ulimit -v`; return its result."""
    limit = int(address_space_gb * 2**30)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "namedmask", verb, str(run_file), "--local", "--json"],
        preexec_fn=limited, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_curate_of_photos_of_24_megapixels_ends_in_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(12):
        blobs = Image.fromarray(rng.integers(0, 255, (12, 18, 3), dtype=np.uint8))
        blobs.resize((6000, 4000), Image.Resampling.BICUBIC).save(source / f"red {number}.jpg")
    tree = {
        "categories": {"names": ["red", "blue"]},
        "metadata": {"source": [str(source)]},
        "fetch": {"file_root": str(source)},
        "retrieve": {"archive_size": 12, "near_duplicate_cosine": 1.0},
        "faces": {"enabled": False},
        "saliency": {"min_share": 0.0, "max_share": 1.0},
    }
    run_files = []
    for name in ("limited", "free"):
        config = Config.of(tree | {"run": {"out": str(tmp_path / name), "threads": 1}})
        run_files.append(tmp_path / f"{name}.toml")
        run_files[-1].write_text(to_toml(config))
    result = run_limited(run_files[0], "curate", 6)
    assert result["rows_by_status"] == {"ok": 12}
    assert result["peak_rss_mb"] < 2500
    verbs.curate(Config.load(run_files[1]), SILENT)
    assert digests(tmp_path / "limited") == digests(tmp_path / "free")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_embed_of_a_wave_of_more_than_two_gib_ends(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "photos"
    source.mkdir()
    noise = Image.fromarray(rng.integers(0, 255, (1600, 2000, 3), dtype=np.uint8))
    noise.save(tmp_path / "photo.jpg", quality=95)
    size = (tmp_path / "photo.jpg").stat().st_size
    count = 600
    assert size * count > 2**31
    for number in range(count):
        (source / f"{number}.jpg").hardlink_to(tmp_path / "photo.jpg")
    config = config_of(str(source), tmp_path / "run", f"fetch.file_root={source}",
                       "run.wave_rows=2000", "fetch.max_bytes=20000000")  # fmt: skip
    (tmp_path / "run.toml").write_text(to_toml(config))
    result = run_limited(tmp_path / "run.toml", "embed", 8)
    assert result["rows_by_status"] == {"ok": count}
    assert result["peak_rss_mb"] < 2000
