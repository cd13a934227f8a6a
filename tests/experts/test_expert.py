"""Experts: what they are trained on, what they draw, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from namedmask import schema
from namedmask.config import BilateralConfig, Config, ExpertsConfig
from namedmask.experts.expert import (
    OneLabel,
    redraw,
    refine_masks,
    train_expert,
    train_shared_expert,
)
from namedmask.segmenter.checkpoint import build_segmenter

pytestmark = pytest.mark.numerical

LABEL_ID = 300


def config_of(iterations: int, batch_size: int = 4) -> Config:
    return Config.of(
        {
            "run": {"out": Path("unused")},
            "segmenter": {"name": "deeplabv3plus_tiny"},
            "augment": {"crop": 32, "scale": [0.8, 1.0], "jitter": 0.0, "blur": 0.0, "n_max": 2},
            "experts": {
                "iterations": iterations,
                "batch_size": batch_size,
                "lr_head": 5e-3,
                "lr_backbone": 5e-3,
            },
        }
    )


class Disks:
    """Bright disks; their pseudo-masks, of label id 300, miss a random quarter of the disk."""

    def __init__(self, count: int = 16) -> None:
        self.count = count
        self.asked = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked += 1
        image, truth = self.picture(index)
        rows, columns = np.nonzero(truth)
        down, right = np.random.default_rng(index + 1000).integers(2, size=2)
        missed = ((rows > rows.mean()) == down) & ((columns > columns.mean()) == right)
        mask = truth.copy()
        mask[rows[missed], columns[missed]] = False
        return image, mask.astype(np.uint16) * np.uint16(LABEL_ID)

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(index)
        rows, columns = np.mgrid[:40, :40]
        truth = (rows - rng.integers(15, 25)) ** 2 + (columns - rng.integers(15, 25)) ** 2 < 144
        image = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
        image[truth] += 130
        return image, truth


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_one_label_maps_every_category_to_one_and_leaves_the_sample_alone() -> None:
    image = np.zeros((1, 4, 3), np.uint8)
    label = np.array([[0, 1, LABEL_ID, schema.IGNORE]], np.uint16)
    label.setflags(write=False)
    samples = OneLabel([(image, label)])
    assert len(samples) == 1
    same_image, ones = samples[0]
    assert same_image is image
    assert ones.dtype == np.uint16
    assert ones.tolist() == [[0, 1, 1, schema.IGNORE]]


def test_expert_draws_better_masks_than_it_was_given() -> None:
    samples = Disks()
    expert = train_expert(samples, config_of(iterations=40), seed=0)
    images, truths = zip(*(samples.picture(i) for i in range(16)), strict=True)
    given = np.mean([iou(samples[i][1] > 0, truths[i]) for i in range(16)])
    drawn = np.mean([iou(m, t) for m, t in zip(refine_masks(expert, images), truths, strict=True)])
    assert drawn > given + 0.02


def test_expert_never_sees_copy_paste() -> None:
    samples = Disks()
    train_expert(samples, config_of(iterations=2, batch_size=4), seed=0)
    assert samples.asked == 8


def test_expert_from_a_start_goes_on_from_it_and_leaves_it_alone() -> None:
    config = config_of(iterations=1)
    start = build_segmenter(config.segmenter, 2, seed=9)
    before = {key: value.clone() for key, value in start.state_dict().items()}
    expert = train_expert(Disks(), config, 0, start)
    for key, value in start.state_dict().items():
        assert torch.equal(value, before[key]), key
    key = "classifier.classifier.3.weight"
    step = (expert.state_dict()[key] - before[key]).abs().max().item()
    assert 0 < step <= 1.1 * config.experts.lr_head


def test_expert_same_seed_gives_the_same_masks() -> None:
    config, image = config_of(iterations=2), Disks().picture(0)[0]
    first, again = (train_expert(Disks(), config, seed=3) for _ in range(2))
    assert np.array_equal(refine_masks(first, [image]), refine_masks(again, [image]))


def test_refine_masks_come_at_original_size_whatever_the_company() -> None:
    expert = build_segmenter(config_of(1).segmenter, 2)
    rng = np.random.default_rng(0)
    shapes = [(40, 40), (1, 1), (33, 57), (40, 40)]
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    masks = refine_masks(expert, images)
    assert [mask.shape for mask in masks] == shapes
    assert all(mask.dtype == bool for mask in masks)
    for image, mask in zip(reversed(images), reversed(masks), strict=True):
        assert np.array_equal(refine_masks(expert, [image])[0], mask)
    assert refine_masks(expert, []) == []


class Blind(torch.nn.Module):
    """Sees the thing in nothing but bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        bright = batch[:, :1]
        return torch.cat([-bright, bright], dim=1)


def test_refine_masks_lower_threshold_takes_in_less_likely_pixels() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 120  # red a little under the mean: the blind one leans to background
    image[0] = 255
    at_half = refine_masks(Blind(), [image])[0]
    lower = refine_masks(Blind(), [image], threshold=0.3)[0]
    assert at_half[0].all() and not at_half[1:].any()
    assert lower[:2].all() and not lower[2:].any()


class Leaning(Blind):
    """Likes what lies to the right."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (
            super().forward(batch)
            + torch.linspace(-9, 9, batch.shape[-1])[None, None, None]
            * (torch.tensor([-1.0, 1.0])[None, :, None, None])
        )


def test_refine_masks_mirror_takes_out_what_depends_on_the_side() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255
    bright = image[..., 0] > 0
    assert not np.array_equal(refine_masks(Leaning(), [image])[0], bright)
    assert np.array_equal(refine_masks(Leaning(), [image], mirror=True)[0], bright)


def test_redraw_keeps_the_pseudo_mask_where_the_expert_saw_nothing() -> None:
    half = np.zeros((8, 8), np.uint16)
    half[:, :4] = 1
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    bright[4:] = 255

    masks, kept = redraw(Blind(), [(dark, half), (bright, half)], ExpertsConfig())
    assert kept == 1
    assert np.array_equal(masks[0], half > 0)
    assert np.array_equal(masks[1], bright[..., 0] > 0)


def test_redraw_as_the_method_does_leaves_an_empty_mask_empty() -> None:
    half = np.ones((8, 8), np.uint16)
    dark = np.zeros((8, 8, 3), np.uint8)
    solver = BilateralConfig(shorter_side=8)
    masks, kept = redraw(Blind(), [(dark, half)], ExpertsConfig(keep_unseen=False), solver)
    assert (kept, masks[0].any()) == (0, False)


def test_redraw_with_a_solver_closes_a_hole_the_image_does_not_have() -> None:
    image = np.full((32, 32, 3), 40, np.uint8)
    image[4:28, 4:28] = 210
    image[16, 16] = 60
    label = np.zeros((32, 32), np.uint16)
    any_color = BilateralConfig(
        shorter_side=32, sigma_spatial=4, sigma_luma=256, sigma_chroma=256, smoothness=8
    )
    plain = redraw(Blind(), [(image, label)], ExpertsConfig())[0][0]
    snapped = redraw(Blind(), [(image, label)], ExpertsConfig(), any_color)[0][0]
    assert not plain[16, 16]
    assert snapped[16, 16]
    assert not snapped[0, 0]


def test_shared_expert_takes_its_own_number_of_steps() -> None:
    config = config_of(iterations=5)
    config = config.model_copy(
        update={"experts": config.experts.model_copy(update={"shared_iterations": 2})}
    )
    steps: list[int] = []
    train_shared_expert(Disks(), config, on_step=lambda done, _: steps.append(done))
    assert steps == [1, 2]
