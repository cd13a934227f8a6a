"""Several processes share a step: whole batch, same gradients, resumed to the bit."""

from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from namedmask.config import AugmentConfig, OptimConfig, SegmenterConfig, TrainConfig
from namedmask.errors import ConfigError, InputError
from namedmask.schema.columns import IGNORE
from namedmask.segmenter.checkpoint import build_segmenter
from namedmask.train.group import Group
from namedmask.train.loop import train
from namedmask.weights.tensors import read_tree, write_tree
from tests.groups import run_group

pytestmark = pytest.mark.numerical

AUGMENT = AugmentConfig(crop=24, scale=(0.5, 1.0))


class Squares:
    """Squares of label 1; sample i is labeled in its first i rows only, so shares differ."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)
        label = np.full((30, 30), IGNORE, np.uint16)
        label[:index] = 0
        label[:index, 5:25] = 1
        return image, label


class Bare(nn.Module):
    """A net without batch norm or dropout: its gradients know nothing of shares."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.tanh(self.backbone(images)))


def bare_gradients(folder: Path, group: Group) -> None:
    torch.manual_seed(0)
    losses: list[float] = []
    optim = OptimConfig(iterations=1, batch_size=16)
    model = train(
        Bare(), Squares(), optim, AUGMENT, seed=3, group=group,
        on_step=lambda done, loss: losses.append(loss),
    )  # fmt: skip
    tree = {name: parameter.grad for name, parameter in model.named_parameters()}
    write_tree(folder / f"{group.rank}-of-{group.size}.pt", tree | {"losses": losses})


def segmenter(folder: Path, group: Group, last_step: int | None = None) -> None:
    """Train with a checkpoint every 2 steps; rank 1 is killed after `last_step`."""

    def on_step(done: int, loss: float) -> None:
        if done == last_step and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    optim = OptimConfig(iterations=6, batch_size=6, lr_head=5e-3, lr_backbone=5e-3)
    model = build_segmenter(SegmenterConfig(name="deeplabv3plus_tiny"), 2)
    train(
        model, Squares(), optim, AUGMENT, seed=0, group=group, checkpoint=folder / "state.pt",
        checkpoint_every=2, on_step=on_step,
    )  # fmt: skip


def other_checkpoints(folder: Path, group: Group) -> None:
    mine = folder / f"only-{group.rank}"
    if group.rank == 0:
        optim = OptimConfig(iterations=2, batch_size=4)
        train(Bare(), Squares(), optim, AUGMENT, seed=0, checkpoint=mine)
    with pytest.raises(InputError, match=r"after \[2, 0\] steps.*storage that all machines"):
        optim = OptimConfig(iterations=2, batch_size=4)
        train(Bare(), Squares(), optim, AUGMENT, seed=0, group=group, checkpoint=mine)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Fresh processes that need not import torch again for each test."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["namedmask.train.loop", "tests.train.test_group"])
    return context


def test_slots_of_all_ranks_are_the_batch_in_order() -> None:
    slots = [slot for rank in range(4) for slot in Group(rank, 4).slots(12)]
    assert slots == list(range(12))
    assert Group().slots(5) == range(5)


def test_group_gradients_and_loss_are_those_of_the_whole_batch(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    assert run_group(processes, 2, bare_gradients, tmp_path) == [0, 0]
    bare_gradients(tmp_path, Group())
    whole = read_tree(tmp_path / "0-of-1.pt")
    for rank in (0, 1):
        shared = read_tree(tmp_path / f"{rank}-of-2.pt")
        assert shared.pop("losses") == pytest.approx(whole["losses"], rel=1e-5)
        for name, gradient in shared.items():
            assert gradient.abs().max() > 1e-4
            torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_group_killed_and_resumed_equals_straight_to_the_bit(
    size: int, processes: ForkServerContext, tmp_path: Path
) -> None:
    cut, straight = tmp_path / "cut", tmp_path / "straight"
    codes = run_group(processes, size, segmenter, cut, 5)
    assert codes[1] == -signal.SIGKILL
    assert all(codes), "the others went on without it"
    assert read_tree(cut / "state.pt")["done"] == 4
    for folder in (cut, straight):
        assert not any(run_group(processes, size, segmenter, folder))
    resumed, whole = (read_tree(folder / "state.pt") for folder in (cut, straight))
    assert resumed["done"] == whole["done"] == 6
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key]), key


def test_group_with_different_checkpoints_is_refused(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    assert run_group(processes, 2, other_checkpoints, tmp_path) == [0, 0]


@pytest.mark.parametrize(
    ("batch_size", "group", "message"),
    [
        (6, Group(0, 4), r"train\.batch_size is 6, which 4 processes cannot share evenly"),
        (4, Group(0, 4), r"leaves each of 4 processes 1 sample.*Raise it to 8"),
        (4, Group(0, 2, sync_batch_norm=True), r"train\.sync_batch_norm is true.* on a CPU"),
    ],
)
def test_group_that_cannot_share_the_batch_is_refused(
    batch_size: int, group: Group, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Bare(), Squares(), TrainConfig(batch_size=batch_size), AUGMENT, seed=0, group=group)
