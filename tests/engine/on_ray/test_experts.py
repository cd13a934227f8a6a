"""Experts on a real local Ray: the plain loop's bytes, resumed, one failing without the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from namedmask.engine.local import PlainLoop
from namedmask.engine.on_ray.experts import refine_archive
from namedmask.errors import ClusterTooSmallError, NamedMaskError
from namedmask.run.job import VerbRun
from namedmask.run.ledger import open_run
from namedmask.run.progress import SilentProgress
from tests import toy_runs

pytestmark = [pytest.mark.timeout(300), *toy_runs.RAY_WARNINGS]


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that tells segmenters to come to harm, and a Ray whose workers know of it."""
    folder = tmp_path_factory.mktemp("harm")
    with toy_runs.local_ray(folder):
        yield folder


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs.curate(tmp_path_factory.mktemp("curated") / "run")


class Steps(SilentProgress):
    """Progress that keeps its steps."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def step(self, name: str, total: int | None = None) -> Any:
        self.steps.append(super().step(name, total))
        return self.steps[-1]


def refine(
    folder: Path,
    *overrides: str,
    clusters: Sequence[Sequence[str]] = (),
    progress: SilentProgress | None = None,
) -> dict[str, Any]:
    with open_run(folder) as ledger:
        config = toy_runs.config_of(folder, *overrides)
        return refine_archive(VerbRun(config, ledger, progress or SilentProgress()), clusters)


def refined(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for store in ("refined", "experts")
        for path in sorted((folder / store).iterdir())
    }


@pytest.mark.parametrize("clusters", [(), (["red", "blue"], ["green"])], ids=["each", "clusters"])
def test_experts_on_ray_equal_the_plain_loop_to_the_byte(
    harm: Path, curated: Path, tmp_path: Path, clusters: Sequence[Sequence[str]]
) -> None:
    plain = toy_runs.copy(curated, tmp_path / "plain")
    with open_run(plain) as ledger:
        job = VerbRun(toy_runs.config_of(plain), ledger, SilentProgress())
        expected = PlainLoop().refine(job, clusters)
    progress = Steps()
    folder = toy_runs.copy(curated, tmp_path / "ray")
    assert refine(folder, clusters=clusters, progress=progress) == expected
    assert refined(folder) == refined(plain)
    (step,) = progress.steps
    assert step.done == step.total == 2 + (len(clusters) or 3) * 2


@pytest.mark.slow
def test_experts_one_that_fails_leaves_the_others_and_is_tried_again_alone(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    no_shared = "experts.shared_iterations=0"
    path = next((folder / "archive").glob("*-green.parquet"))
    whole = path.read_bytes()
    toy_runs.damage(folder, "green")
    with pytest.raises(
        NamedMaskError, match=r"(?s)1 of 3 experts failed.*green.*row 0.*same command"
    ) as error:
        refine(folder, no_shared)
    assert type(error.value) is NamedMaskError
    path.write_bytes(whole)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("refined/*")}
    assert len(before) == 4, "masks and record of two categories"
    assert refine(folder, no_shared)["categories"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert refine(folder, no_shared)["categories"] == 3


@pytest.mark.slow
def test_experts_process_that_dies_is_tried_once_more(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    options = ('segmenter.name="tests.toy_runs:harmed"', "experts.shared_iterations=0")
    folder = toy_runs.copy(curated, tmp_path / "run")
    (harm / "once").write_text("0")
    assert refine(folder, *options)["categories"] == 3
    assert not (harm / "once").exists()
    (harm / "always").touch()
    try:
        folder = toy_runs.copy(curated, tmp_path / "again")
        with pytest.raises(NamedMaskError, match=r"(?s)3 of 3 experts failed.*red: .*died 2 times"):
            refine(folder, *options)
        with pytest.raises(NamedMaskError, match=r"(?s)shared expert.*failed.*died 2 times"):
            refine(folder, options[0], "experts.shared_iterations=1")
    finally:
        (harm / "always").unlink()


def test_experts_that_ray_has_no_room_for_are_refused(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    with pytest.raises(
        ClusterTooSmallError, match=r"an expert needs 64 CPU at once.*experts\.num_cpus"
    ):
        refine(folder, "experts.num_cpus=64")
    assert ray.is_initialized()
