"""Augmentation of training samples: random scale, crop, flip, color, blur and copy-paste.

All random numbers come from a generator that the caller passes in, and only `paste_object` changes
its arguments. The same generator gives the same sample to the bit, whatever else is in the batch
and however many threads torch uses. Scale, crop and flip work on arrays. Color, blur and pasting
work on tensors, per sample, or per batch on the training device (`Draft`, `augment.on_device`).

Method: section 3.3, its steps in their order. Differs: the original pasted objects without their
last row and column, and never pasted an object with a label id of 255 or more; it placed small
images in the bottom right corner less often than in the others; it could scale an image to 0 × 0.

Speed on one core of a busy machine, with `n_max` 2: 230 samples per second for 128-pixel photos
and crops of 96, and 26 for 500-pixel photos and crops of 384. Drafts alone, without colors and
pasting, are 4 to 11 times as fast (bench/augment.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from namedmask.config import AugmentConfig
from namedmask.images.codec import IMAGENET_MEAN, IMAGENET_STD, resize
from namedmask.schema.columns import BACKGROUND, IGNORE

BLUR_SIGMA = (0.1, 2.0)
"""Range of the blur's sigma, in pixels. Method: the same, with a kernel of a tenth of the side."""

GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma."""


class Samples(Protocol):
    """A sequence of images with label maps."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) uint8 RGB and its label map (H, W) uint16.

        0 is background, `schema.IGNORE` marks ignored pixels, other values are label ids.
        """


@dataclass(frozen=True)
class Colors:
    """The color changes drawn for N images; each array has one row per image."""

    jittered: np.ndarray  # (N,) bool
    factors: np.ndarray  # (N, 4) float64, one factor per change in `JITTER`
    order: np.ndarray  # (N, 4) int64, the order in which the changes apply
    grayed: np.ndarray  # (N,) bool
    sigmas: np.ndarray  # (N,) float64, sigma of the blur in pixels; 0: no blur


@dataclass(frozen=True)
class Paste:
    """The box of an object in its own image, and the top left corner where it is pasted."""

    rows: slice
    columns: slice
    y: int
    x: int


@dataclass(frozen=True)
class Draft:
    """B samples whose random numbers are drawn, but whose colors and pasting are not computed."""

    views: Tensor  # (N, S, S, 3) uint8 RGB: per sample a canvas, then the images to paste from
    labels: Tensor  # (N, S, S) int32: 0, a label id or `schema.IGNORE`
    sizes: tuple[int, ...]  # number of images per sample, B numbers with sum N
    colors: Colors
    pastes: tuple[Paste | None, ...]  # one per image; None for a canvas or without an object


def make_batch(
    samples: Samples, slots: range, config: AugmentConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) float32, ImageNet-normalized, and labels (B, S, S) int64.

    S is `config.crop`; labels are 0, a label id or `schema.IGNORE`. `slots` are B slots of the
    batch of `step`. The sample in a slot depends only on the seed, the step and the slot, so
    processes that split a batch between them together make the same batch as one process.
    """
    pairs = [
        make_sample(samples, config, np.random.default_rng((seed, step, slot))) for slot in slots
    ]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


def make_sample(
    samples: Samples, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return one image (3, S, S) float32, ImageNet-normalized, and its labels (S, S) int64.

    A sample combines 1 to `config.n_max` images (equally likely numbers), drawn with replacement.
    Method: steps 1 to 8.
    """
    images, labels = finish(draft_sample(samples, config, rng))
    return images[0], labels[0]


def draft_batch(
    samples: Samples, slots: range, config: AugmentConfig, seed: int, step: int
) -> Draft:
    """Return a draft that `finish` turns into the batch of `make_batch`, up to rounding."""
    drafts = [
        draft_sample(samples, config, np.random.default_rng((seed, step, slot))) for slot in slots
    ]
    colors = zip(*(vars(draft.colors).values() for draft in drafts), strict=True)
    return Draft(
        torch.cat([draft.views for draft in drafts]),
        torch.cat([draft.labels for draft in drafts]),
        tuple(size for draft in drafts for size in draft.sizes),
        Colors(*(np.concatenate(rows) for rows in colors)),
        tuple(paste for draft in drafts for paste in draft.pastes),
    )


def draft_sample(samples: Samples, config: AugmentConfig, rng: np.random.Generator) -> Draft:
    """Return the draft of one sample. Method: the random part of steps 1 to 8."""
    count = rng.integers(1, config.n_max, endpoint=True)
    views = [
        random_view(*samples[int(index)], config, rng)
        for index in rng.integers(len(samples), size=count)
    ]
    colors = draw_colors(len(views), config, rng)
    pastes = [None, *(draw_paste(label, config.crop, rng) for _, label in views[1:])]
    return Draft(
        torch.from_numpy(np.stack([image for image, _ in views])),
        torch.from_numpy(np.stack([label for _, label in views]).astype(np.int32)),
        (len(views),), colors, tuple(pastes),
    )  # fmt: skip


def finish(draft: Draft, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the images and labels of a draft, the same as `make_batch`, computed on `device`."""
    labels = draft.labels.to(device).long()
    images = draft.views.to(device).permute(0, 3, 1, 2).float() / 255
    images = normalize(recolor(images, draft.colors))
    first = 0
    canvases = []
    for size in draft.sizes:
        canvases.append(first)
        for row in range(first + 1, first + size):
            paste = draft.pastes[row]
            if paste is not None:
                paste_object(images[first], labels[first], images[row], labels[row], paste)
        first += size
    return images[canvases], labels[canvases]


def random_view(
    image: np.ndarray, label: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (S, S, 3) uint8 and its labels (S, S) uint16, scaled, cropped and flipped.

    The scale is relative to the image's own size. Method: steps 3 to 5.
    """
    scale = rng.uniform(*config.scale)
    height, width = (max(1, int(side * scale)) for side in label.shape)
    view, labels = random_crop(
        resize(image, height, width), resize(label, height, width, nearest=True), config.crop, rng
    )
    if rng.random() < config.flip:
        return view[:, ::-1], labels[:, ::-1]
    return view, labels


def random_crop(
    image: np.ndarray, label: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random window (side, side, 3) uint8 of `image` and (side, side) uint16 of `label`.

    Along an axis where the image is shorter, it lies at either end of the window: a small image in
    each corner in 25 % of cases. The rest has the image's mean color and label `schema.IGNORE`.
    """
    down, from_top = _window(label.shape[0], side, rng)
    across, from_left = _window(label.shape[1], side, rng)
    # the sum is exact, whereas cv2.mean gives 199 for an image of constant 200
    color = np.array(cv2.sumElems(image)[:3]) // label.size
    view = np.full((side, side, 3), color, np.uint8)
    labels = np.full((side, side), IGNORE, np.uint16)
    view[down, across] = image[from_top, from_left]
    labels[down, across] = label[from_top, from_left]
    return view, labels


def _window(length: int, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return, along one axis, the slice of the window to fill and the slice of the image for it."""
    if length < side:
        start = (side - length) * int(rng.integers(2))
        return slice(start, start + length), slice(length)
    start = int(rng.integers(length - side, endpoint=True))
    return slice(side), slice(start, start + side)


def draw_colors(count: int, config: AugmentConfig, rng: np.random.Generator) -> Colors:
    """Return random color changes for `count` images. Method: step 6."""
    jittered = rng.random(count) < config.jitter
    grayed = rng.random(count) < config.grayscale
    blurred = rng.random(count) < config.blur
    factors, sigmas = np.zeros((count, len(JITTER))), np.zeros(count)
    order = np.tile(np.arange(len(JITTER)), (count, 1))
    for number, (_, middle, strength) in enumerate(JITTER):
        factors[jittered, number] = rng.uniform(
            middle - strength, middle + strength, jittered.sum()
        )
    order[jittered] = rng.permuted(order[jittered], axis=1)
    sigmas[blurred] = rng.uniform(*BLUR_SIGMA, blurred.sum())
    return Colors(jittered, factors, order, grayed, sigmas)


def recolor(images: Tensor, colors: Colors) -> Tensor:
    """Return `images`, (N, 3, S, S) float32 RGB in [0, 1], with the color changes applied."""
    images = images.clone()
    for position in range(len(JITTER)):
        for number, (change, _, _) in enumerate(JITTER):
            rows = _rows(colors.jittered & (colors.order[:, position] == number))
            if len(rows):
                factors = colors.factors[rows.numpy(), number]
                images[rows] = change(images[rows], _like(factors, images))
    grayed, blurred = _rows(colors.grayed), _rows(colors.sigmas > 0)
    images[grayed] = gray(images[grayed]).expand(-1, 3, -1, -1)
    images[blurred] = blur(images[blurred], _like(colors.sigmas[blurred.numpy()], images))
    return images


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` (N, 3, H, W) multiplied by `factors` (N,), clamped to [0, 1]."""
    return _blend(images, images.new_zeros(()), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` scaled around their mean gray by `factors` (N,), clamped to [0, 1]."""
    return _blend(images, gray(images).mean(3, keepdim=True).mean(2, keepdim=True), factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` scaled around their gray versions by `factors` (N,), clamped to [0, 1]."""
    return _blend(images, gray(images), factors)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Return `images` with hues rotated by `turns` (N,), where 1 is the whole color circle."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)
    # the hue in sixths of the color circle, by the formula of the strongest channel
    sixth = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sixth = sixth + 6 * turns[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        distance = (sixth + offset) % 6
        channels.append(value - chroma * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.stack(channels, 1)


JITTER: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float, float], ...] = (
    (brightness, 1.0, 0.8),
    (contrast, 1.0, 0.8),
    (saturation, 1.0, 0.8),
    (hue, 0.0, 0.2),
)
"""Color changes, each with the center and half width of its uniform factor. Method: the same."""


def gray(images: Tensor) -> Tensor:
    """Return the luma of `images` (N, 3, H, W) as (N, 1, H, W)."""
    weights = images.new_tensor(GRAY_WEIGHTS).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Return `images` (N, 3, S, S) blurred with `sigmas` (N,) in pixels; edges are reflected."""
    count, channels, *_, side = images.shape
    size = side // 10 | 1  # a tenth of the side, made odd: 39 at 384
    if size == 1 or not count:
        return images
    offsets = torch.arange(size, device=images.device) - size // 2
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = F.pad(images, [size // 2] * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[:, None, None, :], groups=len(kernels))
    planes = F.conv2d(planes, kernels[:, None, :, None], groups=len(kernels))
    return planes.view_as(images)


def normalize(images: Tensor) -> Tensor:
    """Return `images` (N, 3, H, W) in [0, 1], normalized with ImageNet's mean and deviation."""
    mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)


def draw_paste(label: np.ndarray, side: int, rng: np.random.Generator) -> Paste | None:
    """Return where to paste the object of a label map (S, S); None if there is no object.

    All pixels with a label id form one object. Its bounding box goes anywhere in an image of
    `side` × `side` pixels, all positions equally likely. Method: step 8.
    """
    is_object = (label != BACKGROUND) & (label != IGNORE)
    if not is_object.any():
        return None
    rows, columns = _extent(is_object.any(1)), _extent(is_object.any(0))
    y = int(rng.integers(side - (rows.stop - rows.start), endpoint=True))
    x = int(rng.integers(side - (columns.stop - columns.start), endpoint=True))
    return Paste(rows, columns, y, x)


def paste_object(
    image: Tensor, label: Tensor, other_image: Tensor, other_label: Tensor, paste: Paste
) -> None:
    """Paste an object into `image` (3, S, S) and `label` (S, S) in place."""
    box = (..., paste.rows, paste.columns)
    pixels, ids = other_image[box], other_label[box]
    target = (..., slice(paste.y, paste.y + ids.shape[0]), slice(paste.x, paste.x + ids.shape[1]))
    is_object = (ids != BACKGROUND) & (ids != IGNORE)
    image[target] = torch.where(is_object, pixels, image[target])
    label[target] = torch.where(is_object, ids, label[target])


def _extent(line: np.ndarray) -> slice:
    """Return the slice from the first to the last true index of a bool array (S,)."""
    indices = np.flatnonzero(line)
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _blend(images: Tensor, base: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(base, images, factors.view(-1, 1, 1, 1)).clamp(0, 1)


def _rows(chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _like(values: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images)
