"""Each step of the augmentation, and each defect of the original that must not come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference

from namedmask import schema
from namedmask.config import AugmentConfig
from namedmask.train import augment
from namedmask.train.augment import (
    draft_batch,
    draw_colors,
    draw_paste,
    finish,
    make_batch,
    paste_object,
    random_crop,
    random_view,
    recolor,
)

pytestmark = pytest.mark.numerical

PLAIN = AugmentConfig(
    crop=16, scale=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0, n_max=1
)
IGNORE = schema.IGNORE


def photometric(
    images: torch.Tensor, config: AugmentConfig, rng: np.random.Generator
) -> torch.Tensor:
    return recolor(images, draw_colors(len(images), config, rng))


def copy_paste(
    image: torch.Tensor,
    label: torch.Tensor,
    other_image: torch.Tensor,
    other_label: torch.Tensor,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return copies of a picture and its labels with another picture's object put on them."""
    place = draw_paste(other_label.numpy(), image.shape[1], rng)
    if place is not None:
        image, label = image.clone(), label.clone()
        paste_object(image, label, other_image, other_label, place)
    return image, label


def with_options(**options: object) -> AugmentConfig:
    return PLAIN.model_copy(update=options)


class Squares:
    """Sample i is a gray picture with a square of label i + 1; arrays refuse to be written to."""

    def __init__(self, count: int, side: int = 16, square: int = 3) -> None:
        self.count, self.side, self.square = count, side, square

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image = np.full((self.side, self.side, 3), 100, np.uint8)
        label = np.zeros((self.side, self.side), np.uint16)
        at = np.random.default_rng(index).integers(self.side - self.square, size=2)
        box = tuple(slice(start, start + self.square) for start in at)
        image[box], label[box] = index % 256, index + 1
        image.setflags(write=False)
        label.setflags(write=False)
        return image, label


def things(labels: torch.Tensor) -> set[int]:
    return set(labels.unique().tolist()) - {0, IGNORE}


def paste(thing: torch.Tensor, side: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and label after pasting the label map `thing`, in white, on a black picture."""
    label = torch.full((side, side), IGNORE)
    white = torch.ones(3, side, side)
    return copy_paste(torch.zeros(3, side, side), label, white, thing, np.random.default_rng(seed))


def test_batch_has_the_promised_shapes_types_and_range() -> None:
    config = AugmentConfig(crop=24)
    images, labels = make_batch(Squares(9, 32), range(5), config, seed=0, step=0)
    assert (images.shape, images.dtype) == ((5, 3, 24, 24), torch.float32)
    assert (labels.shape, labels.dtype) == ((5, 24, 24), torch.int64)
    assert things(labels) <= set(range(1, 10))
    assert torch.isfinite(images).all() and images.abs().max() < 3


def test_batch_same_seed_and_step_give_the_same_batch_and_no_others_do() -> None:
    samples, config = Squares(50), AugmentConfig(crop=16)
    first, again, other_seed, other_step = (
        make_batch(samples, range(8), config, seed, step)
        for seed, step in ((4, 7), (4, 7), (5, 7), (4, 8))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other_seed[0])
    assert not torch.equal(first[0], other_step[0])


@pytest.mark.parametrize("shares", [1, 2, 3, 6])
def test_batch_made_in_shares_is_the_same_to_the_bit(shares: int) -> None:
    samples, config = Squares(50, side=40), AugmentConfig(crop=32, scale=(0.5, 1.0), n_max=3)
    whole = make_batch(samples, range(6), config, seed=1, step=2)
    size = 6 // shares
    parts = [
        make_batch(samples, range(start, start + size), config, seed=1, step=2)
        for start in range(0, 6, size)
    ]
    for values, split in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(values, torch.cat(split))


def test_batch_is_the_same_to_the_bit_whatever_threads_torch_has() -> None:
    config = AugmentConfig(crop=256, scale=(0.9, 1.0), jitter=1.0, grayscale=0.0, blur=1.0)
    samples, before = Squares(9, side=300), torch.get_num_threads()
    batches = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            batches.append(make_batch(samples, range(3), config, seed=0, step=0)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*batches)


@pytest.mark.parametrize("crop", [16, 64])
def test_draft_finished_as_a_whole_batch_is_the_batch_made_by_sample(crop: int) -> None:
    samples, config = Squares(50, side=40), AugmentConfig(crop=crop, scale=(0.5, 1.0), n_max=4)
    images, labels = finish(draft_batch(samples, range(9), config, seed=1, step=2))
    by_sample = make_batch(samples, range(9), config, seed=1, step=2)
    assert torch.equal(labels, by_sample[1])
    torch.testing.assert_close(images, by_sample[0], rtol=0, atol=1e-5)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_draft_finished_on_a_gpu_is_the_batch_of_the_cpu() -> None:
    samples, config = Squares(50, side=40), AugmentConfig(crop=64, n_max=4)
    draft = draft_batch(samples, range(9), config, seed=1, step=2)
    here, there = finish(draft), finish(draft, "cuda")
    assert there[0].is_cuda and torch.equal(there[1].cpu(), here[1])
    torch.testing.assert_close(there[0].cpu(), here[0], rtol=0, atol=1e-3)


def test_draft_is_not_changed_by_finishing_it() -> None:
    draft = draft_batch(Squares(9, side=40), range(4), AugmentConfig(crop=32), seed=0, step=0)
    views, labels = draft.views.clone(), draft.labels.clone()
    first, again = finish(draft), finish(draft)
    assert torch.equal(draft.views, views) and torch.equal(draft.labels, labels)
    assert torch.equal(first[0], again[0])


def noting(step: Any, ran: list[str]) -> Any:
    def run(*args: Any) -> Any:
        if ran[-1:] != [step.__name__]:
            ran.append(step.__name__)
        return step(*args)

    return run


def test_sample_runs_the_methods_steps_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    steps = (
        "random_view",
        "random_crop",
        "brightness",
        "gray",
        "blur",
        "normalize",
        "paste_object",
    )
    for name in steps:
        monkeypatch.setattr(augment, name, noting(getattr(augment, name), ran))
    monkeypatch.setattr(augment, "JITTER", ((augment.brightness, 1.0, 0.0),))
    config = AugmentConfig(crop=64, jitter=1.0, grayscale=1.0, blur=1.0, n_max=2)
    for seed in range(20):
        ran.clear()
        augment.make_sample(Squares(5, side=80), config, np.random.default_rng(seed))
        if "paste_object" in ran:  # every other sample
            break
    assert ran == ["random_view", "random_crop", *steps]


def test_defaults_are_the_methods_probabilities_and_widths() -> None:
    config = AugmentConfig()
    assert (config.crop, config.scale, config.n_max) == (384, (0.1, 1.0), 2)
    assert (config.flip, config.jitter, config.grayscale, config.blur) == (0.5, 0.8, 0.2, 0.5)
    widths = {change.__name__: (middle, width) for change, middle, width in augment.JITTER}
    assert widths == {
        "brightness": (1.0, 0.8), "contrast": (1.0, 0.8), "saturation": (1.0, 0.8),
        "hue": (0.0, 0.2),
    }  # fmt: skip
    assert augment.BLUR_SIGMA == (0.1, 2.0)
    assert (augment.IMAGENET_MEAN, augment.IMAGENET_STD) == (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    )  # fmt: skip


@pytest.mark.parametrize(("key", "share"), [("jitter", 0.8), ("grayscale", 0.2), ("blur", 0.5)])
def test_colors_are_drawn_as_often_as_the_method_says(key: str, share: float) -> None:
    colors = augment.draw_colors(4000, AugmentConfig(), np.random.default_rng(0))
    drawn = {"jitter": colors.jittered, "grayscale": colors.grayed, "blur": colors.sigmas > 0}
    assert drawn[key].mean() == pytest.approx(share, abs=0.03)


def test_view_is_flipped_half_of_the_time() -> None:
    image, label = Squares(3, square=2)[2]
    config = with_options(flip=AugmentConfig().flip)
    rng = np.random.default_rng(0)
    flipped = [not np.array_equal(random_view(image, label, config, rng)[0], image)
               for _ in range(400)]  # fmt: skip
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("side", [1, 10])
def test_batch_of_pictures_of_one_and_of_ten_pixels(side: int) -> None:
    class Small(Squares):
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            picture = np.full((side, side, 3), 90, np.uint8)
            return picture, np.full((side, side), index + 1, np.uint16)

    config = AugmentConfig(crop=16, n_max=4)
    images, labels = make_batch(Small(300), range(64), config, seed=0, step=0)
    assert torch.isfinite(images).all()
    assert max(things(labels)) > 255
    assert all(things(label) for label in labels)


def test_batch_n_max_two_pastes_on_half_of_the_samples() -> None:
    _, labels = make_batch(Squares(1000), range(600), with_options(n_max=2), seed=0, step=0)
    pasted = sum(len(things(label)) == 2 for label in labels)
    assert all(1 <= len(things(label)) <= 2 for label in labels)
    assert 255 <= pasted <= 345


def test_batch_n_max_one_never_pastes() -> None:
    _, labels = make_batch(Squares(1000), range(300), PLAIN, seed=0, step=0)
    assert all(len(things(label)) == 1 for label in labels)


def test_batch_n_max_four_draws_each_count_equally_often() -> None:
    samples = Squares(5000, side=32, square=1)
    config = with_options(n_max=4, crop=32)
    _, labels = make_batch(samples, range(400), config, seed=0, step=0)
    counts = np.bincount([len(things(label)) for label in labels], minlength=5)[1:]
    assert (np.abs(counts - 100) < 35).all()


def test_batch_pixels_are_normalized_with_the_mean_of_imagenet() -> None:
    images, labels = make_batch(Squares(1), range(2), PLAIN, seed=0, step=0)
    background = images.permute(0, 2, 3, 1)[labels == 0]
    expected = (100 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(background, expected.expand_as(background))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (10, 10), (7, 3)])
def test_view_smallest_pictures_are_scaled_to_no_less_than_a_pixel(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    label = np.full(shape, 3, np.uint16)
    config = with_options(scale=(0.1, 1.0))
    for seed in range(20):
        view, labels = random_view(image, label, config, np.random.default_rng(seed))
        assert (view.shape, labels.shape) == ((16, 16, 3), (16, 16))
        assert (view == 200).all()
        assert (labels == 3).any()


def test_view_scale_is_of_the_pictures_own_size() -> None:
    image, label = np.zeros((40, 20, 3), np.uint8), np.ones((40, 20), np.uint16)
    config = with_options(crop=64, scale=(0.5, 0.5))
    _, labels = random_view(image, label, config, np.random.default_rng(0))
    rows, columns = np.nonzero(labels == 1)
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (20, 10)


def test_view_flip_mirrors_picture_and_labels_together() -> None:
    image, label = Squares(3)[2]
    rng = np.random.default_rng
    straight = random_view(image, label, PLAIN, rng(0))
    mirrored = random_view(image, label, with_options(flip=1.0), rng(0))
    for plain, flipped in zip(straight, mirrored, strict=True):
        assert np.array_equal(plain[:, ::-1], flipped)


def test_crop_small_picture_lies_in_each_corner_a_quarter_of_the_time() -> None:
    image, label = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.uint16)
    rng, draws = np.random.default_rng(0), 2000
    corners = {(0, 0): 0, (0, 6): 0, (6, 0): 0, (6, 6): 0}
    for _ in range(draws):
        labels = random_crop(image, label, 10, rng)[1]
        row, column = np.argwhere(labels == 1)[0]
        corners[int(row), int(column)] += 1
    for count in corners.values():
        assert count / draws == pytest.approx(0.25, abs=0.04)


def test_crop_around_a_small_picture_are_its_mean_color_and_ignore() -> None:
    image = np.zeros((4, 16, 3), np.uint8)
    image[:2] = 101, 51, 255
    view, labels = random_crop(image, np.ones((4, 16), np.uint16), 10, np.random.default_rng(1))
    padding = labels == IGNORE
    assert padding.sum() == 60
    assert (view[padding] == (50, 25, 127)).all()
    assert (labels[~padding] == 1).all()


def test_crop_large_picture_reaches_every_offset() -> None:
    image = np.zeros((12, 10, 3), np.uint8)
    label = np.arange(120, dtype=np.uint16).reshape(12, 10)
    rng = np.random.default_rng(0)
    corners = {int(random_crop(image, label, 10, rng)[1][0, 0]) for _ in range(60)}
    assert corners == {0, 10, 20}


def test_paste_keeps_the_last_row_and_column() -> None:
    thing = torch.zeros(12, 12, dtype=torch.int64)
    thing[3:6, 2:7] = 9
    image, label = paste(thing, 12)
    rows, columns = (label == 9).nonzero(as_tuple=True)
    assert len(rows) == 15
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (2, 4)
    assert torch.equal(image[0] == 1, label == 9)


@pytest.mark.parametrize("label_id", [1, 254, 255, 256, 1000, IGNORE - 1])
def test_paste_one_pixel_of_any_label_id(label_id: int) -> None:
    thing = torch.zeros(5, 5, dtype=torch.int64)
    thing[4, 4] = label_id
    assert (paste(thing, 5)[1] == label_id).sum() == 1


def test_paste_leaves_background_and_ignored_pixels_behind() -> None:
    thing = torch.tensor([[7, 0, 7], [0, 0, IGNORE], [7, IGNORE, 7]])
    image, label = paste(thing, 3)
    assert torch.equal(label, torch.where(thing == 7, 7, IGNORE))
    assert image.sum() == 3 * 4


def test_paste_offsets_cover_the_picture_evenly() -> None:
    thing = torch.zeros(4, 4, dtype=torch.int64)
    thing[1:3, 0:3] = 1
    counts = np.zeros((3, 2), int)
    for seed in range(600):
        row, column = (paste(thing, 4, seed)[1] == 1).nonzero()[0].tolist()
        counts[row, column] += 1
    assert (np.abs(counts - 100) < 40).all()


def test_paste_writes_to_none_of_its_inputs() -> None:
    thing = torch.ones(6, 6, dtype=torch.int64)
    inputs = [torch.zeros(3, 6, 6), torch.zeros(6, 6, dtype=torch.int64), torch.ones(3, 6, 6)]
    before = [value.clone() for value in (*inputs, thing)]
    copy_paste(*inputs, thing, np.random.default_rng(0))
    assert all(torch.equal(a, b) for a, b in zip((*inputs, thing), before, strict=True))


def test_paste_without_an_object_changes_nothing() -> None:
    _, label = paste(torch.zeros(4, 4, dtype=torch.int64), 4)
    assert (label == IGNORE).all()


def test_photometric_with_all_off_changes_nothing() -> None:
    images = torch.rand(3, 3, 20, 20)
    assert torch.equal(photometric(images, PLAIN, np.random.default_rng(0)), images)


def test_photometric_changes_the_promised_share_and_not_its_input() -> None:
    images = torch.rand(400, 3, 12, 12)
    before = images.clone()
    config = with_options(jitter=0.8)
    changed = photometric(images, config, np.random.default_rng(0)) != images
    assert torch.equal(images, before)
    assert changed.flatten(1).any(1).float().mean().item() == pytest.approx(0.8, abs=0.06)


def test_photometric_grayscale_makes_the_channels_equal() -> None:
    images = photometric(
        torch.rand(2, 3, 8, 8), with_options(grayscale=1.0), np.random.default_rng(0)
    )
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])


def test_photometric_stays_within_zero_and_one() -> None:
    images = torch.randint(0, 2, (40, 3, 24, 24)).float()
    images = photometric(images, AugmentConfig(), np.random.default_rng(0))
    assert images.min() >= 0 and images.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_each_change_equals_torchvision(name: str) -> None:
    images = torch.rand(6, 3, 15, 20)
    images[0] = 0.5
    images[1, :, :5] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    factors = torch.linspace(-0.2, 0.2, 6) if name == "hue" else torch.linspace(0.2, 1.8, 6)
    change, adjust = getattr(augment, name), getattr(reference, f"adjust_{name}")
    expected = [adjust(image, float(f)) for image, f in zip(images, factors, strict=True)]
    # its gray weights have one digit more
    torch.testing.assert_close(change(images, factors), torch.stack(expected), rtol=0, atol=2e-4)


def test_jitter_runs_its_changes_in_every_order() -> None:
    images = torch.rand(1, 3, 4, 4).expand(64, -1, -1, -1)
    seen = photometric(images, with_options(jitter=1.0), np.random.default_rng(0))
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 64


def test_blur_equals_torchvision_with_a_tenth_of_the_side() -> None:
    images, sigmas = torch.rand(4, 3, 50, 50), torch.tensor([0.1, 0.5, 1.0, 2.0])
    expected = [
        reference.gaussian_blur(image, [5, 5], [float(sigma)] * 2)
        for image, sigma in zip(images, sigmas, strict=True)
    ]
    torch.testing.assert_close(augment.blur(images, sigmas), torch.stack(expected))


def test_blur_kernel_is_odd_and_39_at_384() -> None:
    point = torch.zeros(1, 3, 384, 384)
    point[..., 192, 192] = 1
    blurred = augment.blur(point, torch.tensor([50.0]))
    assert (blurred[0, 0, 192] > 0).sum() == 39
