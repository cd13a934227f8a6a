"""Experts of clusters: who shares one, what is done again and what not; the rest in test_verbs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.errors import ConfigError
from namedmask.run.layout import CHECKPOINT
from namedmask.run.progress import SilentProgress
from namedmask.storage.files import read_json
from namedmask.verbs import build as verbs
from namedmask.verbs import refine, train
from namedmask.verbs.plan import plan_of
from tests import toy_runs, toys

SILENT = SilentProgress()
TWO = ("experts.clusters=2", "experts.shared_iterations=0")


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs.curate(tmp_path_factory.mktemp("curated") / "run")


class StopAfter(SilentProgress):
    """Progress that ends the program after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, name: str, total: int | None = None) -> Any:
        step, outer = super().step(name, total), self

        class Stopping:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                pass

            def advance(self, n: int = 1, *_: Any) -> None:
                outer.left -= n
                if outer.left < 0:
                    raise KeyboardInterrupt
                step.advance(n)

        return Stopping()


def copy(curated: Path, folder: Path) -> Path:
    return Path(shutil.copytree(curated, folder))


def config_of(folder: Path, curated: Path, *overrides: str) -> Config:
    source = str(curated.parent / "metadata.parquet")
    return toy_runs.config_of(folder, *overrides, source=source)


def refined(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("experts/*.pt"))}


def test_clusters_share_an_expert_and_every_archive_has_its_masks(
    curated: Path, tmp_path: Path
) -> None:
    folder = copy(curated, tmp_path / "run")
    config = config_of(folder, curated, *TWO, "train.iterations=1")
    found = refine.refine(config, SILENT)
    assert found["categories"] == 3
    assert sum(found["masks"].values()) == 3 * toy_runs.SIZE
    clusters = read_json(folder / "clusters.json")["clusters"]
    assert sorted(map(len, clusters)) == [1, 2]
    assert sorted(name for names in clusters for name in names) == sorted(toys.COLORS)
    assert len(refined(folder)) == 2
    archive = Archive.open(folder / "archive")
    assert all(archive.refined_path(name).exists() for name in archive.names)
    assert refine.refine(config, SILENT)["skipped"]
    train.train(config, SILENT)
    assert (folder / CHECKPOINT).exists()


def test_clusters_cut_off_go_on_with_the_next_and_end_with_the_same_bytes(
    curated: Path, tmp_path: Path
) -> None:
    whole, cut = (copy(curated, tmp_path / name) for name in ("whole", "cut"))
    refine.refine(config_of(whole, curated, *TWO), SILENT)
    with pytest.raises(KeyboardInterrupt):
        refine.refine(config_of(cut, curated, *TWO), StopAfter(3))  # 2 of the first, 1 of the next
    before = refined(cut)
    assert len(before) == 1
    refine.refine(config_of(cut, curated, *TWO), SILENT)
    after = refined(cut)
    assert before.items() <= after.items()
    for path in (*whole.glob("refined/*"), *whole.glob("experts/*")):
        assert (cut / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_clusters_of_another_list_are_found_anew_and_leave_nothing_behind(tmp_path: Path) -> None:
    with toys.SmallWeb() as web:
        toys.fill(web, toys.COLORS, each=toy_runs.SIZE + 2)
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        both = ('categories.names=["red", "green"]', "experts.clusters=1", TWO[1])
        first = toy_runs.config_of(tmp_path / "run", *both, source=source)
        verbs.curate(first, SILENT)
        refine.refine(first, SILENT)
        assert read_json(first.run.out / "clusters.json")["clusters"] == [["red", "green"]]
        before = refined(tmp_path / "run")
        more = toy_runs.config_of(tmp_path / "run", *both[1:], source=source)
        verbs.curate(more, SILENT)
        assert refine.refine(more, SILENT)["categories"] == 3
    after = refined(tmp_path / "run")
    assert len(before) == len(after) == 1 and not before.keys() & after.keys()
    assert len(list((tmp_path / "run" / "refined").glob("*.parquet"))) == 3


def test_clusters_more_than_categories_are_refused(curated: Path, tmp_path: Path) -> None:
    folder = copy(curated, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"experts\.clusters is 4, and there are 3 categories"):
        refine.refine(config_of(folder, curated, "experts.clusters=4"), SILENT)


def test_plan_adds_up_the_steps_of_all_experts(tmp_path: Path) -> None:
    def choice(*overrides: str) -> str:
        config = toy_runs.config_of(tmp_path, 'categories.set="imagenet_s_919"',
                                    "categories.names=[]", "experts.iterations=5000",
                                    "experts.shared_iterations=0", *overrides)  # fmt: skip
        (found,) = [stage["choice"] for stage in plan_of(config)["stages"]
                    if stage["name"] == "experts"]  # fmt: skip
        return str(found)

    assert choice().startswith("919 categories: 4,595,000 steps; deeplabv3plus_tiny, 5,000 × 2")
    assert choice("experts.clusters=50").startswith("50 clusters of up to 19: 250,000 steps;")
