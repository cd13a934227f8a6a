"""Ablations on the toy web: what is trained, what is not trained twice, what the table says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from namedmask.cli.app import main
from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.errors import ConfigError, InputError
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.run.layout import CHECKPOINT
from namedmask.run.progress import SilentProgress
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.verbs import refine
from namedmask.verbs.ablate import STUDIES, ablate, table_of
from tests import toy_runs
from tests.road import judged_on_disks
from tests.scores import evaluate

SILENT = SilentProgress()
SHORT = ("train.iterations=2", "train.checkpoint_every=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of the toy web, curated and refined, with two splits to judge on."""
    folder = tmp_path_factory.mktemp("ablated")
    out = toy_runs.curate(folder / "run")
    source = str(folder / "metadata.parquet")
    config = judged_on_disks(toy_runs.config_of(out, *SHORT, source=source), folder / "disks")
    shutil.copytree(folder / "disks" / "val", folder / "disks" / "select")
    refine.refine(config, SILENT)
    return config


@pytest.fixture
def fresh(run: Config) -> Iterator[Config]:
    yield run
    shutil.rmtree(run.run.out / "ablations", ignore_errors=True)


def study(config: Config, name: str = "copy-paste", **options: Any) -> dict[str, Any]:
    return ablate(config, name, SILENT, PLAIN_LOOP, **options)


def trials(config: Config) -> dict[str, int]:
    """Return when each trial's segmenter was written, by the names of variant and trial."""
    found = (config.run.out / "ablations").glob(f"*/*/*/{CHECKPOINT}")
    return {"/".join(path.parts[-4:-2]): path.stat().st_mtime_ns for path in found}


def test_ablate_copy_paste_compares_the_papers_values_of_n_max() -> None:
    changes = [variant.changes for variant in STUDIES["copy-paste"].variants]
    assert changes == [{"augment": {"n_max": count}} for count in (1, 2, 4, 6, 8, 10)]
    assert STUDIES["copy-paste"].columns == ("copy-paste", "n_max")


def test_ablate_trains_every_variant_with_every_seed_and_judges_both_splits(fresh: Config) -> None:
    found = study(fresh, seeds=(0, 1), only=("none", "10"), choose_on="select")
    assert [row["name"] for row in found["rows"]] == ["none", "10"]
    assert {key.partition("/")[0] for key in trials(fresh)} == {"none", "10"}
    assert len(trials(fresh)) == 4
    for row in found["rows"]:
        assert set(row["miou"]) == {"select", "val"}
        for spread in row["miou"].values():
            assert len(spread["values"]) == 2
            assert spread["lowest"] <= spread["mean"] <= spread["highest"]
    best = max(found["rows"], key=lambda row: row["miou"]["select"]["mean"])
    assert found["chosen"]["name"] == best["name"]
    assert found["chosen"]["miou"] == pytest.approx(best["miou"]["val"]["mean"])
    folder = fresh.run.out / "ablations"
    assert json.loads((folder / "copy-paste.json").read_text()) == found
    table = (folder / "copy-paste.md").read_text()
    assert table == table_of(found)
    assert table.startswith("| copy-paste | n_max | mIoU val (lowest to highest) | mIoU select")
    assert "| no | - | 0." in table and "| yes | 10 | 0." in table


def test_ablate_score_is_that_of_the_trials_own_segmenter(fresh: Config) -> None:
    found = study(fresh, seeds=(3,), only=("2",))
    (path,) = (fresh.run.out / "ablations").glob(f"copy-paste/2/seed-3-*/{CHECKPOINT}")
    model, names = load_checkpoint(path)
    scores = evaluate(model, names, open_benchmark(fresh.evaluate), fresh.evaluate)
    assert found["rows"][0]["miou"]["val"]["values"] == [scores["miou"]]
    assert found["chosen_on"] == "val" and found["rows"][0]["miou"]["val"]["deviation"] is None


def test_ablate_again_trains_nothing_and_more_seeds_train_only_theirs(fresh: Config) -> None:
    first = study(fresh, seeds=(0,), only=("none", "2"))
    before = trials(fresh)
    assert study(fresh, seeds=(0,), only=("none", "2")) == first
    assert trials(fresh) == before
    study(fresh, seeds=(0, 1), only=("none", "2"))
    assert before.items() < trials(fresh).items()
    longer = fresh.model_copy(update={"train": fresh.train.model_copy(update={"iterations": 3})})
    study(longer, seeds=(0,), only=("2",))
    assert len(trials(fresh)) == 5, "another training is another trial"


class Cut(SilentProgress):
    """Progress that ends the program in the second training."""

    def __init__(self) -> None:
        self.trainings = 0

    def step(self, name: str, total: int | None = None) -> Any:
        self.trainings += name == "train"
        if self.trainings == 2:
            raise KeyboardInterrupt
        return super().step(name, total)


def test_ablate_cut_off_goes_on_with_the_next_trial(fresh: Config) -> None:
    with pytest.raises(KeyboardInterrupt):
        ablate(fresh, "copy-paste", Cut(), PLAIN_LOOP, seeds=(0,), only=("none", "2"))
    before = trials(fresh)
    assert len(before) == 1
    study(fresh, seeds=(0,), only=("none", "2"))
    assert before.items() < trials(fresh).items()


def test_ablate_experts_trains_on_both_kinds_of_masks(fresh: Config) -> None:
    found = study(fresh, "experts", seeds=(0,))
    assert [row["name"] for row in found["rows"]] == ["pseudo-masks", "experts"]
    first, second = (
        load_checkpoint(path)[0].state_dict()
        for path in (fresh.run.out / "ablations").glob(f"*/*/*/{CHECKPOINT}")
    )
    assert any(not first[key].equal(second[key]) for key in first)
    assert table_of(found).startswith("| masks | mIoU val")


def test_ablate_leaves_the_run_itself_as_it_was(fresh: Config) -> None:
    def files() -> dict[str, int]:
        return {
            str(path): path.stat().st_mtime_ns
            for path in fresh.run.out.rglob("*")
            if path.is_file() and "ablations" not in path.parts and path.name != ".lock"
        }

    before = files()
    study(fresh, seeds=(0,), only=("none",))
    assert files() == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copypaste", {}, "study 'copypaste' is unknown.*Did you mean 'copy-paste'"),
        ("copy-paste", {"only": ["3"]}, "variant of study 'copy-paste' '3' is unknown"),
        ("copy-paste", {"seeds": []}, "needs one or more different seeds"),
        ("copy-paste", {"seeds": [1, 1]}, "one or more different seeds"),
    ],
)
def test_ablate_of_nothing_that_is_known_is_refused(
    run: Config, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study(run, name, **options)


def test_ablate_of_a_run_that_is_not_refined_says_what_to_run(run: Config, tmp_path: Path) -> None:
    bare = run.model_copy(update={"run": run.run.model_copy(update={"out": tmp_path / "none"})})
    with pytest.raises(InputError, match="no finished 'embed', which 'ablate' builds on"):
        study(bare)
    off = run.experts.model_copy(update={"enabled": False})
    with pytest.raises(InputError, match=r"experts\.enabled is false"):
        study(run.model_copy(update={"experts": off}), "experts")


def test_ablate_command_takes_a_run_folder_and_writes_the_table(
    fresh: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--seeds", "0", "--only", "none", "--local", "--root", fresh.evaluate.root]
    options += ["--benchmark", "folder", "--split", "val", "--choose-on", "select"]
    assert main(["ablate", str(fresh.run.out), "copy-paste", *options]) == 0
    assert "Best on select: none" in capsys.readouterr().out
    assert main(["ablate", str(fresh.run.out), "copy-paste", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "copy-paste"
    assert main(["ablate", str(fresh.run.out), "copy-paste", "--seeds", "a"]) == 2
