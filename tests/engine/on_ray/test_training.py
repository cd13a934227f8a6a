"""The training on a real local Ray: the plain loop's bits, losses healed, errors as themselves."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.engine.on_ray.session import with_absolute_paths
from namedmask.engine.on_ray.training import train_on_ray
from namedmask.errors import ClusterTooSmallError, InputError, NamedMaskError
from namedmask.run.layout import CHECKPOINT, TRAINING
from namedmask.segmenter.checkpoint import build_segmenter
from namedmask.train.group import Group
from namedmask.train.loop import train
from namedmask.weights.tensors import read_tree
from tests import toy_runs
from tests.groups import run_group

pytestmark = [pytest.mark.timeout(300), *toy_runs.RAY_WARNINGS]

HARMED = 'segmenter.name="tests.toy_runs:harmed"'


@pytest.fixture(scope="module")
def harm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that tells segmenters to come to harm, and a Ray whose workers know of it."""
    folder = tmp_path_factory.mktemp("harm")
    with toy_runs.local_ray(folder):
        yield folder


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs.curate(tmp_path_factory.mktemp("curated") / "run")


class Interrupted(Exception):
    pass


def config_of(folder: Path, *overrides: str) -> Config:
    return toy_runs.config_of(folder, "experts.enabled=false", *overrides)


def plain(curated: Path, config: Config, checkpoint: Path, group: Group) -> list[float]:
    """Train as the plain loop does; return the losses."""
    torch.set_num_threads(1)
    archive, losses = Archive.open(curated / "archive"), []
    train(
        build_segmenter(config.segmenter, archive.num_labels, config.run.seed),
        archive.samples(refined=False), config.train, config.augment, seed=config.run.seed,
        group=group, checkpoint=checkpoint, on_step=lambda done, loss: losses.append(loss),
    )  # fmt: skip
    return losses


def plain_in_group(folder: Path, group: Group, curated: Path, config: Config) -> None:
    plain(curated, config, folder / "state.pt", group)


def assert_trained(folder: Path, expected: Path) -> None:
    """The run ended as it should, with the weights of a training's checkpoint, to the bit."""
    assert [path.name for path in (folder / CHECKPOINT).parent.iterdir()] == [CHECKPOINT.name]
    found, whole = read_tree(folder / CHECKPOINT)["model"], read_tree(expected)["model"]
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(value, found[key]), key


def test_training_on_ray_equals_the_plain_loop_to_the_bit(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    config = config_of(folder, "train.sample_processes=2")
    heard: list[tuple[int, float]] = []
    train_on_ray(config, folder, lambda *step: heard.append(step))
    losses = plain(curated, config, tmp_path / "state.pt", Group())
    assert heard == list(enumerate(losses, start=1))
    assert_trained(folder, tmp_path / "state.pt")


@pytest.mark.slow
def test_training_on_ray_that_finishes_samples_on_its_device_hears_the_same_losses(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    config = config_of(folder, "augment.on_device=true")
    heard: list[float] = []
    train_on_ray(config, folder, lambda _, loss: heard.append(loss))
    assert heard == pytest.approx(plain(curated, config, tmp_path / "state.pt", Group()), rel=1e-3)


@pytest.mark.slow
def test_training_on_ray_may_read_the_archive_of_another_run(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    config = config_of(folder)
    train_on_ray(config, folder, lambda *_: None, curated / "archive")
    plain(curated, config, tmp_path / "state.pt", Group())
    assert_trained(folder, tmp_path / "state.pt")
    assert not (folder / "archive").exists()


@pytest.mark.slow
def test_training_of_two_processes_equals_a_group_of_torch(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    config = config_of(folder, "train.processes=2")
    train_on_ray(config, folder, lambda *_: None)
    context = get_context("forkserver")
    codes = run_group(context, 2, plain_in_group, tmp_path / "group", curated, config)
    assert codes == [0, 0]
    assert_trained(folder, tmp_path / "group" / "state.pt")


@pytest.mark.slow
def test_training_process_that_is_lost_is_replaced_and_goes_on(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    config = config_of(folder, HARMED)
    (harm / "once").write_text("3")
    heard: list[tuple[int, float]] = []
    train_on_ray(config, folder, lambda *step: heard.append(step))
    assert not (harm / "once").exists()
    losses = plain(curated, config, tmp_path / "state.pt", Group())
    assert heard == list(enumerate(losses, start=1))
    assert_trained(folder, tmp_path / "state.pt")
    (harm / "always").touch()
    try:
        folder = toy_runs.copy(curated, tmp_path / "lost")
        with pytest.raises(NamedMaskError, match=r"(?s)training on Ray failed.*max_failures"):
            train_on_ray(config_of(folder, HARMED, "train.max_failures=0"), folder, print)
    finally:
        (harm / "always").unlink()


@pytest.mark.slow
def test_training_stopped_from_outside_goes_on_with_the_same_command(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    config = config_of(folder, "train.iterations=300", "train.checkpoint_every=5")

    def stop(done: int, loss: float) -> None:
        if done >= 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_on_ray(config, folder, stop)
    done = read_tree(folder / TRAINING)["done"]
    assert 10 <= done < 300
    heard: list[int] = []
    train_on_ray(config, folder, lambda done, _: heard.append(done))
    assert heard == list(range(done + 1, 301))
    plain(curated, config, tmp_path / "state.pt", Group())
    assert_trained(folder, tmp_path / "state.pt")


@pytest.mark.slow
def test_training_files_of_weights_are_told_from_the_root_and_names_stay_names() -> None:
    def told(weights: str) -> str:
        config = Config.of(
            {"run": {"out": "run"}, "segmenter": {"backbone_weights": weights}},
        )
        return with_absolute_paths(config).segmenter.backbone_weights

    assert [told(name) for name in ("", "miniworld", "dino-resnet50")] == [
        "", "miniworld", "dino-resnet50",
    ]  # fmt: skip
    assert told("weights/dino.pth") == str(Path.cwd() / "weights/dino.pth")


def test_training_error_of_ours_comes_out_as_itself(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    toy_runs.damage(folder, "green")
    with pytest.raises(InputError, match=r"green\.parquet: row 0 holds no sample") as error:
        train_on_ray(config_of(folder, "train.iterations=30"), folder, lambda *_: None)
    assert type(error.value) is InputError


def test_training_that_cannot_start_is_refused_before_it_waits(
    harm: Path, curated: Path, tmp_path: Path
) -> None:
    folder = toy_runs.copy(curated, tmp_path / "run")
    with pytest.raises(
        ClusterTooSmallError, match=r"the training needs 6 CPU at once.*has 4.*train\.processes"
    ):
        train_on_ray(config_of(folder, "train.processes=3"), folder, lambda *_: None)
    with pytest.raises(InputError, match="no refined masks"):
        train_on_ray(toy_runs.config_of(folder), folder, lambda *_: None)
