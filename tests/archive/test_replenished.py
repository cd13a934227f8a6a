"""Archives on a web that died after it was embedded: filled with exactly the best that are left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.engine import executor_of
from namedmask.miniworld.demo import demo_config
from namedmask.miniworld.server import reserve_port, serve
from namedmask.miniworld.web import build_world
from namedmask.run.progress import SilentProgress
from namedmask.storage.files import read_parquet, row_hashes
from namedmask.verbs import build as verbs

SILENT = SilentProgress()
SIZE = 8
DEAD = 0.6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Path]]:
    """A world, where it is served, and a run folder with the vectors from before its links died."""
    world, out = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("embedded")
    build_world(world, seed=3, per_category=40, scenes=1)
    port = reserve_port(world / "port")
    with serve(world / "web", port) as url:
        verbs.embed(config_of(out, world, url), SILENT)
    routes = json.loads((world / "web/routes.json").read_text())
    paths = sorted(
        str(path.relative_to(world / "web"))
        for folder in ("photos", "mirror")
        for path in (world / "web" / folder).iterdir()
    )
    rng = np.random.default_rng(0)
    routes |= {path: "http_404" for path in paths if rng.random() < DEAD}
    (world / "web/routes.json").write_text(json.dumps(routes))
    with serve(world / "web", port) as url:
        yield world, url, out


def config_of(out: Path, world: Path, url: str, **retrieve: Any) -> Config:
    tree = demo_config(3, out, world, url, full=False).tree()
    tree["retrieve"] |= {"archive_size": SIZE, "candidates": 100} | retrieve
    return Config.of(tree)


def hashes(out: Path) -> list[str]:
    archive = Archive.open(out / "archive", verify=True)
    return [one for name in archive.names for one in row_hashes(archive.entries(name))]


def best_that_pass(out: Path, cosine: float) -> dict[str, list[str]]:
    """Return each category's archive as the words say it, from the verdicts on every candidate."""
    verdicts: dict[str, str] = {}
    for path in sorted((out / "images").glob("*.parquet")):
        table = read_parquet(path, ["sample_id", "status"])
        verdicts |= dict(
            zip(table["sample_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        )
    vectors: dict[str, np.ndarray] = {}
    for path in sorted((out / "embeddings").glob("wave-*.parquet")):
        table = read_parquet(path, ["sample_id", "embedding"])
        arrays = map(np.array, table["embedding"].to_pylist())
        vectors |= dict(zip(table["sample_id"].to_pylist(), arrays, strict=True))
    found: dict[str, list[str]] = {}
    candidates = pq.read_table(out / "candidates.parquet").to_pylist()
    for row in sorted(candidates, key=lambda row: (row["label_id"], row["rank"])):
        kept = found.setdefault(row["category"], [])
        one = row["sample_id"]
        near = any(float(vectors[one] @ vectors[other]) >= cosine for other in kept)
        if row["status"] != "violent" and verdicts.get(one) == "ok" and not near:
            kept.append(one)
    return {name: kept[:SIZE] for name, kept in found.items()}


def test_replenished_archives_of_a_dying_web_hold_exactly_the_best_left(
    dying: tuple[Path, str, Path], tmp_path: Path
) -> None:
    world, url, embedded = dying
    for name in ("all", "few", "ray"):
        shutil.copytree(embedded, tmp_path / name)
    everything = config_of(tmp_path / "all", world, url, overfetch=1000.0)
    verbs.build(everything, SILENT)
    expected = best_that_pass(tmp_path / "all", everything.retrieve.near_duplicate_cosine)

    few = config_of(tmp_path / "few", world, url)
    done = verbs.build(few, SILENT)
    by_status = done["candidates_by_status"]
    tried = sum(by_status.get(one, 0) for one in ("ok", "http_404", "has_face", "surplus"))
    assert by_status["http_404"] > 0.5 * tried, "the web did not die"
    assert by_status["has_face"] > 0 and by_status["untried"] > 0
    archive = Archive.open(tmp_path / "few/archive", verify=True)
    full = [name for name, kept in expected.items() if len(kept) == SIZE]
    assert len(full) > len(expected) / 2
    for name in full:
        assert archive.entries(name)["sample_id"].to_pylist() == expected[name]

    two = config_of(tmp_path / "ray", world, url).tree()
    for section in ("fetch", "faces", "saliency", "bilateral", "retrieve"):
        two[section]["actors"] = [2, 2]
    config = Config.of(two)
    with executor_of(config) as executor:
        verbs.build(config, SILENT, executor)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "few")
