"""The drawn world: the same from a seed, with its trouble and manners, its truth kept apart."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from namedmask import images
from namedmask.archive.store import Archive
from namedmask.errors import InputError
from namedmask.evaluate.benchmarks import folder as open_folder
from namedmask.metadata.urls import sample_id
from namedmask.miniworld import pictures, web
from namedmask.miniworld import truth as judge
from namedmask.miniworld.demo import demo_config
from namedmask.miniworld.server import reserve_port, serve
from namedmask.run.progress import SilentProgress
from namedmask.storage.files import digest, row_hashes
from namedmask.verbs import build as verbs

ROOT = Path(__file__).parents[2]
WEIGHTS = Path(str(resources.files("namedmask.miniworld") / "weights"))
SMALL = ["retrieve.archive_size=4", "retrieve.candidates=60", "run.wave_rows=100"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "world"
    web.build_world(folder, seed=5, per_category=12, scenes=3)
    return folder


@pytest.fixture(scope="module")
def base(world: Path) -> Iterator[str]:
    with serve(world / "web", reserve_port(world / "port")) as url:
        yield url


@pytest.fixture(scope="module")
def curated(world: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    _curate(world, base, out)
    return out


def _curate(world: Path, base: str, out: Path) -> None:
    config = demo_config(0, out, world, base, full=False)
    tree = config.tree()
    verbs.curate(type(config).of(tree, SMALL), SilentProgress())


def _digest(run: Path) -> str:
    archive = Archive.open(run / "archive")
    return digest(h for name in archive.names for h in row_hashes(archive.entries(name)))


def test_world_same_seed_draws_the_same_bytes(world: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    web.build_world(again, seed=5, per_category=12, scenes=3)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.name != "port")
    assert files == sorted(path.relative_to(again) for path in again.rglob("*"))
    for file in files:
        if (world / file).is_file():
            assert (world / file).read_bytes() == (again / file).read_bytes(), file


def test_world_rows_about_a_third_in_trouble(world: Path) -> None:
    rows = json.loads((world / "truth" / "rows.json").read_text())
    trouble = Counter(row["trouble"] for row in rows)
    assert set(web.TROUBLE) <= set(trouble)
    assert 0.2 < 1 - trouble[""] / len(rows) < 0.45
    assert sum(bool(row["faces"]) for row in rows) > 20


def test_metadata_captions_never_say_which_crane(world: Path) -> None:
    table = pq.read_table(world / "web" / "metadata.parquet")
    captions = " ".join(table["TEXT"].to_pylist())
    assert " crane" in captions
    assert "crane bird" not in captions
    assert "tower crane" not in captions
    assert max(table["similarity"].to_pylist()) <= 6016.0


def test_scene_labels_are_category_ids_and_background(world: Path) -> None:
    for split in ("select", "test"):
        benchmark = open_folder(world / "scenes", split)
        assert len(benchmark) == 3
        _, image, label = benchmark[0]
        assert image.shape[:2] == label.shape
        assert set(np.unique(label)) <= set(range(len(pictures.NAMES) + 1))


def test_horse_photo_tells_rider_from_horse() -> None:
    rng = np.random.default_rng(0)
    horse = pictures.NAMES.index("horse") + 1
    picture = pictures.photo(rng, horse, 128, 128, 0.0, rider_share=1.0)
    assert (picture.label == horse).sum() > 300
    assert (picture.label == pictures.RIDER).sum() > 50
    assert picture.faces == []


def test_server_trouble_answers_as_its_route_says(world: Path, base: str) -> None:
    routes = json.loads((world / "web" / "routes.json").read_text())
    by_kind = {kind: path for path, kind in routes.items()}

    def get(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"{base}/{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    assert get(by_kind["http_404"])[0] == 404
    assert get(by_kind["http_410"])[0] == 410
    assert images.decode(get(by_kind["redirect"])[1]).ndim == 3
    assert b"<!doctype html>" in get(by_kind["not_an_image"])[1]
    with pytest.raises(images.BadImage):
        images.decode(get(by_kind["truncated"])[1])
    with pytest.raises(OSError):
        get(by_kind["reset"])


def test_server_of_a_killed_process_gives_its_port_back(world: Path, tmp_path: Path) -> None:
    port = reserve_port(tmp_path / "port")
    code = (
        "import os, pathlib, signal, sys; from namedmask.miniworld.server import serve\n"
        "with serve(pathlib.Path(sys.argv[1]), int(sys.argv[2])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = [sys.executable, "-c", code, str(world / "web"), str(port)]
    killed = subprocess.run(arguments, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(InputError), serve(world / "web", port):
            return
    raise AssertionError("the port is still in use")


def test_curate_funnels_add_up_to_the_metadata(world: Path, curated: Path) -> None:
    funnels = json.loads((curated / "funnels.json").read_text())
    rows = json.loads((world / "truth" / "rows.json").read_text())
    assert funnels["rows_in"] == sum(funnels["rows_by_status"].values()) == len(rows)
    assert funnels["candidates_in"] == sum(funnels["candidates_by_status"].values())
    trouble = Counter(row["trouble"] for row in rows)
    for kind in ("http_404", "http_410", "opted_out", "not_an_image", "duplicate_url"):
        assert funnels["rows_by_status"][kind] == trouble[kind], kind


def test_curate_without_truth_files_same_hashes(
    world: Path, base: str, curated: Path, tmp_path: Path
) -> None:
    truth = world / "truth"
    hidden = truth.rename(tmp_path / "hidden")
    try:
        _curate(world, base, tmp_path / "run")
    finally:
        shutil.move(hidden, truth)
    assert _digest(tmp_path / "run") == _digest(curated)


def test_rejected_pixels_are_in_no_file_of_the_run(world: Path, base: str, curated: Path) -> None:
    rows = json.loads((world / "truth" / "rows.json").read_text())
    by_id = {sample_id(f"{base}/{row['path']}"): row for row in rows}
    candidates = pq.read_table(curated / "candidates.parquet").to_pylist()
    rejected = {row["sample_id"] for row in candidates if row["status"] == "has_face"}
    unsafe = {sample_id(f"{base}/{row['path']}") for row in rows if row["trouble"] == "unsafe"}
    kept = {
        name: path.read_bytes()
        for path in curated.rglob("*")
        if path.is_file()
        for name in [path.relative_to(curated)]
    }
    assert rejected
    assert unsafe
    for one in rejected | unsafe:
        middle = (world / "web" / by_id[one]["path"]).read_bytes()[600:700]
        assert not [name for name, data in kept.items() if middle in data]


def test_otsu_masks_of_a_bright_square_include_the_square() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 10:30] = 200
    square = image[..., 0] > 0
    assert max(judge.iou(mask, square) for mask in judge.otsu_masks(image)) == 1.0


def test_weights_fit_in_six_megabytes() -> None:
    names = {path.name for path in WEIGHTS.iterdir() if not path.name.startswith("__")}
    assert {"clip.safetensors", "faces.onnx", "saliency.safetensors", "clip.json"} <= names
    assert "backbone.safetensors" in names
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir() if path.is_file()) <= 6_000_000


def test_face_detector_loads_through_insightface_model_zoo() -> None:
    from insightface.model_zoo import get_model

    detector = get_model(str(WEIGHTS / "faces.onnx"), providers=["CPUExecutionProvider"])
    assert type(detector).__name__ == "SCRFD"
