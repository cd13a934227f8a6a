"""The same code on real photos: metadata over loopback, real detectors, an archive and a report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.miniworld.server import reserve_port, serve
from namedmask.report import write_report
from namedmask.run.progress import SilentProgress
from namedmask.verbs import build as verbs

ROOT = Path(__file__).parents[2]
SOURCES = {"coco": "coco/photos", "ecssd": "ecssd/photos", "s50": "imagenet50", "faces": "faces"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_curate_over_all_photos_ends_in_an_archive_and_a_report(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    web = tmp_path / "web"
    count = publish(real_data, web)
    with serve(web, reserve_port(tmp_path / "port")) as base:
        config = config_of(real_data, tmp_path / "run", f"{base}/metadata.parquet")
        result = verbs.curate(config, SilentProgress())
        again = verbs.curate(config, SilentProgress())
    assert again["skipped"]
    assert result["rows_in"] == sum(result["rows_by_status"].values()) == count
    assert result["candidates_in"] == sum(result["candidates_by_status"].values())
    assert result["candidates_by_status"]["has_face"] > 0
    archive = Archive.open(tmp_path / "run" / "archive", verify=True)
    assert len(archive.names) == 50
    assert all(archive.entries(name).num_rows == 2 for name in archive.names)
    assert right_first(archive, real_data) >= 25
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 50


def publish(real_data: Path, web: Path) -> int:
    """Copy the photos under `web` with a metadata table; return how many there are."""
    urls = []
    for name, folder in SOURCES.items():
        (web / name).mkdir(parents=True)
        for path in sorted((real_data / folder).iterdir()):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
                shutil.copy(path, web / name / path.name)
                urls.append(f"{{base}}/{name}/{path.name}")
    pq.write_table(pa.table({"URL": urls, "TEXT": [""] * len(urls)}), web / "metadata.parquet")
    (web / "routes.json").write_text("{}")
    return len(urls)


def config_of(real_data: Path, out: Path, source: str) -> Config:
    weights = real_data / "weights"
    tree = {
        "run": {"out": str(out), "threads": 1},
        "categories": {"set": "imagenet_s_50"},
        "metadata": {"source": [source]},
        "fetch": {"allow_loopback": True, "longest_side": 480},
        "embed": {
            "model": "tests.real.squeezenet:squeezenet",
            "weights": str(weights / "squeezenet1_1.pth"),
        },
        "retrieve": {"archive_size": 2, "candidates": 40, "near_duplicate_cosine": 0.999},
        "faces": {"detector": "scrfd", "weights": str(weights / "scrfd_2.5g_kps.onnx")},
        "saliency": {
            "detector": "tests.real.csnet:csnet",
            "weights": str(weights / "csnet_saliency_224.onnx"),
        },
    }
    return Config.of(tree)


def right_first(archive: Archive, real_data: Path) -> int:
    """Return for how many categories its own photo is in the archive: files sort as labels do."""
    photos = sorted(path.name for path in (real_data / "imagenet50").iterdir())
    return sum(
        any(url.endswith(photo) for url in archive.entries(name)["url"].to_pylist())
        for name, photo in zip(archive.names, photos, strict=True)
    )
