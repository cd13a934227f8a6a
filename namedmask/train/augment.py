"""Training samples: random scale, crop, flip, color, blur and copy-paste; all pure.

Every random number comes from a generator passed in, nothing given is written to. A sample is made
alone: the same generator gives it the same bits, whatever it shares a batch with, and however many
threads torch has. The geometry is done on arrays, color, blur and pasting on tensors: by sample
where it is made, or by whole batches on the device that trains (`Draft`, `augment.on_device`).

Method: section 3.3, its steps in their order. Differs: it pasted objects without their last row
and column, and none with a label id of 255 or more; it placed small pictures in the bottom right
corner less often than in the others; it could scale a picture to nothing.

Cost on one core beside other load: 128 pixel photos to crops of 96 with `n_max` 2, 230 samples a
second; 500 pixel photos to crops of 384, 26. Drawing alone, without colors and pasting, makes 4 to
11 times as many (bench/augment.py).
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
"""Method: in pixels, with a kernel of a tenth of the side."""

GRAY_WEIGHTS = (0.299, 0.587, 0.114)


class Samples(Protocol):
    """Pictures with label maps, drawn by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) uint8 RGB and its label map (H, W) uint16.

        0 is background, `schema.IGNORE` no verdict, anything else the label id of the object.
        """
        ...


@dataclass(frozen=True)
class Colors:
    """What happens to the colors of N pictures, row by row."""

    jittered: np.ndarray  # (N,) bool
    factors: np.ndarray  # (N, 4) float64, of the changes in `JITTER`
    order: np.ndarray  # (N, 4) int64, in which those are made
    grayed: np.ndarray  # (N,) bool
    sigmas: np.ndarray  # (N,) float64, of the blur in pixels; 0: none


@dataclass(frozen=True)
class Paste:
    """Where an object's box lies in its own picture, and where its corner comes to lie."""

    rows: slice
    columns: slice
    y: int
    x: int


@dataclass(frozen=True)
class Draft:
    """Samples of which all that is random is settled, and the arithmetic on colors is not done.

    Each sample is a canvas followed by the pictures whose objects go onto it, `sizes` of them.
    """

    views: Tensor  # (N, S, S, 3) uint8 RGB
    labels: Tensor  # (N, S, S) int32: 0, a label id or `schema.IGNORE`
    sizes: tuple[int, ...]  # of the B samples; together N
    colors: Colors
    pastes: tuple[Paste | None, ...]  # of all N; None for a canvas, and where there is no object


def make_batch(
    samples: Samples, slots: range, config: AugmentConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return images (B, 3, S, S) float32, ImageNet-normalised, and labels (B, S, S) int64.

    S is `config.crop`; labels are 0, a label id or `schema.IGNORE`. `slots` are B places in the
    batch of `step`: what lies in a place depends on the seed, the step and the place, and on no
    other place, so that processes may share a batch out and together make the same one.
    """
    pairs = [
        make_sample(samples, config, np.random.default_rng((seed, step, slot))) for slot in slots
    ]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


def make_sample(
    samples: Samples, config: AugmentConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return one image (3, S, S) float32, ImageNet-normalised, and its labels (S, S) int64.

    It is made of 1 to `config.n_max` pictures, equally likely, drawn with replacement. Method:
    steps 1 to 8.
    """
    images, labels = finish(draft_sample(samples, config, rng))
    return images[0], labels[0]


def draft_batch(
    samples: Samples, slots: range, config: AugmentConfig, seed: int, step: int
) -> Draft:
    """Return what `make_batch` would make, to be finished on any device; equal up to rounding."""
    drafts = [
        draft_sample(samples, config, np.random.default_rng((seed, step, slot))) for slot in slots
    ]
    colors = zip(*(vars(one.colors).values() for one in drafts), strict=True)
    return Draft(
        torch.cat([one.views for one in drafts]),
        torch.cat([one.labels for one in drafts]),
        tuple(size for one in drafts for size in one.sizes),
        Colors(*(np.concatenate(rows) for rows in colors)),
        tuple(paste for one in drafts for paste in one.pastes),
    )


def draft_sample(samples: Samples, config: AugmentConfig, rng: np.random.Generator) -> Draft:
    """Return one sample as it is drawn; Method: all that is random in steps 1 to 8."""
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
    """Return images (B, 3, S, S) float32 and labels (B, S, S) int64 of a draft, on a device.

    Colors, blur and normalisation go over all N pictures at once.
    """
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
    """Return one picture (S, S, 3) uint8 and its labels (S, S) uint16, scaled, cropped, flipped.

    The scale is of the picture's own size. Method: steps 3 to 5.
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

    A picture smaller than the window lies in one of its corners, 25 % each; around it are its
    mean color and `schema.IGNORE`.
    """
    down, from_top = _window(label.shape[0], side, rng)
    across, from_left = _window(label.shape[1], side, rng)
    # exact, unlike cv2.mean, which makes 199 of a picture that is 200 all over
    color = np.array(cv2.sumElems(image)[:3]) // label.size
    view = np.full((side, side, 3), color, np.uint8)
    labels = np.full((side, side), IGNORE, np.uint16)
    view[down, across] = image[from_top, from_left]
    labels[down, across] = label[from_top, from_left]
    return view, labels


def _window(length: int, side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return where along one axis the picture goes, and which part of it goes there."""
    if length < side:
        start = (side - length) * int(rng.integers(2))
        return slice(start, start + length), slice(length)
    start = int(rng.integers(length - side, endpoint=True))
    return slice(side), slice(start, start + side)


def draw_colors(count: int, config: AugmentConfig, rng: np.random.Generator) -> Colors:
    """Return the changes of color drawn for `count` pictures. Method: step 6."""
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
    """Return (N, 3, S, S) float32 in [0, 1]: jittered, grayed and blurred as was drawn.

    `images`: the same shape and range, RGB; they stay as they are.
    """
    images = images.clone()
    for place in range(len(JITTER)):
        for number, (change, _, _) in enumerate(JITTER):
            rows = _rows(colors.jittered & (colors.order[:, place] == number))
            if len(rows):
                factors = colors.factors[rows.numpy(), number]
                images[rows] = change(images[rows], _like(factors, images))
    grayed, blurred = _rows(colors.grayed), _rows(colors.sigmas > 0)
    images[grayed] = gray(images[grayed]).expand(-1, 3, -1, -1)
    images[blurred] = blur(images[blurred], _like(colors.sigmas[blurred.numpy()], images))
    return images


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` times `factors` (N,), clamped to [0, 1]."""
    return _blend(images, images.new_zeros(()), factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` drawn away from their mean gray by `factors` (N,), clamped to [0, 1]."""
    return _blend(images, gray(images).mean(3, keepdim=True).mean(2, keepdim=True), factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Return `images` drawn away from their grays by `factors` (N,), clamped to [0, 1]."""
    return _blend(images, gray(images), factors)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """Return `images` with every hue turned by `turns` (N,), 1 being the whole circle."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)
    # the hue in sixths of the circle, counted from the strongest channel
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
"""Change, middle and half width of its uniform factor. Method: these four, these widths."""


def gray(images: Tensor) -> Tensor:
    """Return the luma of `images`, (N, 1, H, W)."""
    weights = images.new_tensor(GRAY_WEIGHTS).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Return `images` under a Gaussian of `sigmas` (N,) pixels each, edges reflected.

    The kernel spans a tenth of the side, made odd: 39 at 384.
    """
    count, channels, *_, side = images.shape
    size = side // 10 | 1
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
    """Return `images` (N, 3, H, W) in [0, 1] with ImageNet's mean and deviation taken out."""
    mean = images.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)


def draw_paste(label: np.ndarray, side: int, rng: np.random.Generator) -> Paste | None:
    """Return where the object of a label map (S, S) goes in a picture; None without an object.

    The object is every pixel with a label id; its tight box lands anywhere in the picture, all
    places equally likely. Method: step 8.
    """
    thing = (label != BACKGROUND) & (label != IGNORE)
    if not thing.any():
        return None
    rows, columns = _extent(thing.any(1)), _extent(thing.any(0))
    y = int(rng.integers(side - (rows.stop - rows.start), endpoint=True))
    x = int(rng.integers(side - (columns.stop - columns.start), endpoint=True))
    return Paste(rows, columns, y, x)


def paste_object(
    image: Tensor, label: Tensor, other_image: Tensor, other_label: Tensor, paste: Paste
) -> None:
    """Write an object onto `image` and `label`, which are the caller's own."""
    box = (..., paste.rows, paste.columns)
    pixels, ids = other_image[box], other_label[box]
    there = (..., slice(paste.y, paste.y + ids.shape[0]), slice(paste.x, paste.x + ids.shape[1]))
    thing = (ids != BACKGROUND) & (ids != IGNORE)
    image[there] = torch.where(thing, pixels, image[there])
    label[there] = torch.where(thing, ids, label[there])


def _extent(line: np.ndarray) -> slice:
    """Return from the first true index of a bool line to one past the last."""
    indices = np.flatnonzero(line)
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _blend(images: Tensor, base: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(base, images, factors.view(-1, 1, 1, 1)).clamp(0, 1)


def _rows(chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen))


def _like(values: np.ndarray, images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images)
