"""Run folders begun by version 0.1 before the modules moved are taken up by the version of today.

`tests/data/old_runs` holds two runs of the toy web, cut off by that version: one after two waves of
embedding, one after two of four steps of training; and what that version made of them in the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from namedmask.config import Config
from namedmask.fetch import verify
from namedmask.run.progress import SilentProgress
from namedmask.schema.status import BLOCKED_ADDRESS
from namedmask.verbs import build, collect, train
from namedmask.weights.tensors import read_tensors

OLD = Path(__file__).parents[1] / "data" / "old_runs"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text())


def taken_up(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the config of a copy of an old run, whose paths are relative to its folder."""
    shutil.copytree(OLD / name, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return Config.load("run/run.toml")


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_saved_run_file_of_old_loads_with_the_keys_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taken_up("embedding", tmp_path, monkeypatch)
    written = Config.of(json.loads((OLD / "config.json").read_text()))
    assert config == written
    assert "workers" in (tmp_path / "run/run.toml").read_text()


def test_embedding_cut_off_before_the_move_ends_with_the_bytes_of_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taken_up("embedding", tmp_path, monkeypatch)
    # the word of old for files that are not below fetch.file_root; nothing else has changed
    monkeypatch.setattr(verify, "OUTSIDE_ROOT", BLOCKED_ADDRESS)
    found = collect.embed(config, SilentProgress())
    assert found["rows_by_status"] == EXPECTED["embed"]
    assert hashes(tmp_path / "run/embeddings") == EXPECTED["embeddings"]


def test_curated_run_from_before_the_move_is_finished_and_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taken_up("training", tmp_path, monkeypatch)
    assert build.curate(config, SilentProgress()) == EXPECTED["curate"]
    assert hashes(tmp_path / "run/archive") == EXPECTED["archive"]


def test_training_cut_off_before_the_move_goes_on_to_the_weights_of_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = taken_up("training", tmp_path, monkeypatch)
    steps: list[int] = []

    class Steps(SilentProgress):
        def step(self, name: str, total: int | None = None) -> Any:
            step = super().step(name, total)
            step.advance = lambda count=1, *_: steps.append(count)  # type: ignore[method-assign]
            return step

    train.train(config, Steps())
    assert steps[0] == 3, "it goes on behind the checkpoint of step 2"
    assert sum(steps) == 4
    found = read_tensors(tmp_path / "run/segmenter/checkpoint.pt")
    expected = read_tensors(tmp_path / "expected.pt")
    assert found["names"] == expected["names"]
    for key, value in expected["model"].items():
        torch.testing.assert_close(found["model"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert not (tmp_path / "run/segmenter/training.pt").exists()
