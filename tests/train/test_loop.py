"""The loop: its rates and loss, what it resumes to, and what it refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from namedmask import schema
from namedmask.config import AugmentConfig, OptimConfig, SegmenterConfig, TrainConfig
from namedmask.errors import CheckpointError, ConfigError, InputError, NamedMaskError
from namedmask.segmenter.checkpoint import build_segmenter
from namedmask.train.loop import (
    Batches,
    Samples,
    build_optimizer,
    pixel_loss,
    poly_rate,
    set_rates,
    train,
)
from namedmask.weights.tensors import read_tree, write_tree

pytestmark = pytest.mark.numerical

IGNORE = schema.IGNORE
TINY = SegmenterConfig(name="deeplabv3plus_tiny")
AUGMENT = AugmentConfig(crop=32, scale=(0.5, 1.0))
PLAIN = AugmentConfig(crop=32, scale=(1.0, 1.0), jitter=0.0, grayscale=0.0, blur=0.0, n_max=1)
OPTIM = OptimConfig(iterations=10, batch_size=2, lr_head=5e-3, lr_backbone=5e-3)


class Squares:
    """Bright squares of label 1 on dark noise."""

    def __init__(self, count: int = 12, label_id: int = 1, background: int = 0) -> None:
        self.count, self.label_id, self.background = count, label_id, background

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 100, (40, 40, 3), dtype=np.uint8)
        label = np.full((40, 40), self.background, np.uint16)
        top, left = rng.integers(20, size=2)
        image[top : top + 20, left : left + 20] += 120
        label[top : top + 20, left : left + 20] = self.label_id
        return image, label


class Interrupted(Exception):
    pass


def fit(
    samples: Samples | None = None,
    optim: OptimConfig = OPTIM,
    augment: AugmentConfig = AUGMENT,
    **options: Any,
) -> nn.Module:
    model = build_segmenter(TINY, 2)
    samples = Squares() if samples is None else samples
    return train(model, samples, optim, augment, **{"seed": 0, **options})


def stop_at(step: int) -> Any:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Interrupted

    return on_step


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    other = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, other[key]), key


def test_train_killed_and_resumed_equals_straight_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        fit(checkpoint=path, checkpoint_every=5, on_step=stop_at(7))
    assert read_tree(path)["done"] == 5
    steps: list[int] = []
    resumed = fit(checkpoint=path, on_step=lambda done, loss: steps.append(done))
    assert steps == [6, 7, 8, 9, 10]
    assert_same_weights(resumed, fit())


def test_train_finished_checkpoint_trains_no_further(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    finished = fit(checkpoint=path)
    again = fit(checkpoint=path, on_step=stop_at(1))
    assert_same_weights(finished, again)
    assert not again.training


def test_train_pool_of_one_more_than_a_batch_has_no_batch_of_one() -> None:
    batches = Batches(Squares(count=5), range(4), AUGMENT, seed=0)
    assert all(len(batches[step][0]) == 4 for step in range(4))
    optim = OPTIM.model_copy(update={"iterations": 2, "batch_size": 4})
    steps: list[int] = []
    fit(Squares(count=5), optim=optim, on_step=lambda done, loss: steps.append(done))
    assert steps == [1, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_train_finishing_samples_on_the_device_trains_the_same(workers: int) -> None:
    optim = OPTIM.model_copy(update={"iterations": 3, "sample_processes": workers})
    there = AUGMENT.model_copy(update={"on_device": True})
    ours, theirs = fit(optim=optim).state_dict(), fit(optim=optim, augment=there).state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4, msg=key)


def test_train_may_be_resumed_finishing_samples_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        fit(checkpoint=path, checkpoint_every=5, on_step=stop_at(7))
    fit(checkpoint=path, augment=AUGMENT.model_copy(update={"on_device": True}))
    assert read_tree(path)["done"] == OPTIM.iterations


def test_train_in_two_processes_equals_one() -> None:
    optim = OPTIM.model_copy(update={"iterations": 3})
    assert_same_weights(
        fit(optim=optim), fit(optim=optim.model_copy(update={"sample_processes": 1}))
    )


def test_train_another_seed_gives_other_weights_and_torch_is_left_alone() -> None:
    optim = OPTIM.model_copy(update={"iterations": 1})
    before = torch.get_rng_state()
    first, second = fit(optim=optim, seed=1), fit(optim=optim, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    key = "classifier.classifier.3.weight"
    assert not torch.equal(first.state_dict()[key], second.state_dict()[key])


def test_train_learns_bright_squares() -> None:
    losses: list[float] = []
    optim = OPTIM.model_copy(update={"iterations": 25, "batch_size": 4})
    fit(optim=optim, augment=PLAIN, on_step=lambda done, loss: losses.append(loss))
    assert len(losses) == 25
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_train_without_a_labeled_pixel_stays_finite() -> None:
    losses: list[float] = []
    samples = Squares(label_id=IGNORE, background=IGNORE)
    optim = OPTIM.model_copy(update={"iterations": 2})
    model = fit(samples, optim=optim, on_step=lambda done, loss: losses.append(loss))
    assert losses == [0.0, 0.0]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_loss_is_the_mean_over_labeled_pixels() -> None:
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[0] = IGNORE
    logs = logits.log_softmax(1)[1]
    expected = -np.mean([float(logs[labels[1, y, x], y, x]) for y in range(4) for x in range(4)])
    assert pixel_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_rates_fall_as_the_method_says() -> None:
    optim = OptimConfig()
    assert poly_rate(5e-4, 0, optim) == 5e-4
    assert poly_rate(5e-4, 10_000, optim) == pytest.approx(5e-4 * 0.5**0.9)
    assert poly_rate(5e-5, 19_999, optim) == 1e-6
    assert poly_rate(5e-4, 19_999, optim) == 1e-6


def test_optimizer_groups_hold_every_parameter_once_with_its_rate_and_decay() -> None:
    model = build_segmenter(TINY, 2)
    optimizer = build_optimizer(model, OptimConfig())
    set_rates(optimizer, OptimConfig(), 0)
    head, backbone = optimizer.param_groups
    assert (head["lr"], backbone["lr"]) == (5e-4, 5e-5)
    assert head["weight_decay"] == backbone["weight_decay"] == 2e-4
    assert {id(p) for p in head["params"]} == {id(p) for p in model.classifier.parameters()}
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}


def test_optimizer_decay_is_l2_and_not_decoupled() -> None:
    model = build_segmenter(TINY, 2)
    expected = copy.deepcopy(model)
    optim = OptimConfig(iterations=1, batch_size=2, lr_head=1e-3, lr_backbone=1e-3)
    ours = build_optimizer(model, optim)
    plain = torch.optim.Adam(expected.parameters(), lr=1e-3, weight_decay=2e-4)
    set_rates(ours, optim, 0)
    for network, optimizer in ((model, ours), (expected, plain)):
        network.eval()(torch.ones(1, 3, 16, 16)).square().sum().backward()
        optimizer.step()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", [{"seed": 1}, {"optim": OPTIM.model_copy(update={"power": 1.0})},
                                    {"augment": PLAIN}, {"samples": Squares(13)}])  # fmt: skip
def test_resume_with_other_settings_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        fit(checkpoint=path, checkpoint_every=1, on_step=stop_at(1))
    with pytest.raises(CheckpointError, match="begun with other settings") as error:
        fit(checkpoint=path, **change)
    assert "delete the file" in str(error.value)


def test_resume_from_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        fit(checkpoint=path, checkpoint_every=1, on_step=stop_at(1))
    tree = read_tree(path)
    write_tree(path, {**tree, "optimizer": {"state": {}}})
    with pytest.raises(CheckpointError, match="optimizer state"):
        fit(checkpoint=path)
    write_tree(path, {**tree, "model": {}})
    with pytest.raises(CheckpointError, match="entries missing"):
        fit(checkpoint=path)
    write_tree(path, {"names": []})
    with pytest.raises(CheckpointError, match="state of a training"):
        fit(checkpoint=path)
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        fit(checkpoint=path)


def test_train_without_samples_says_so() -> None:
    with pytest.raises(InputError, match="no samples"):
        fit(Squares(0))


def test_train_label_id_without_a_logit_is_refused() -> None:
    with pytest.raises(InputError, match=r"label id 300.* 2 labels"):
        fit(Squares(label_id=300))


def test_train_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        fit(optim=TrainConfig(batch_size=1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_train_on_an_absent_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="cuda"):
        fit(optim=OPTIM.model_copy(update={"device": "cuda"}))


def test_train_that_diverges_names_the_step_and_the_way_out() -> None:
    optim = OPTIM.model_copy(update={"lr_head": 1e30, "lr_backbone": 1e30})
    with pytest.raises(NamedMaskError, match=r"at step \d+ of 10.*lr_head"):
        fit(optim=optim)
