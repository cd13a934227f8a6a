"""Decode image bytes to arrays, and encode arrays to image bytes.

See jpegs.py for a faster way to decode JPEGs, and masks.py for encoded masks. A decoded image is
(H, W, 3) uint8 RGB and upright: the EXIF orientation is applied, an animation becomes its first
frame, transparent pixels are blended with white, and 16 bit and CMYK become 8 bit RGB. Only the
raster formats in `FORMATS` are read, and the size is checked before any pixel is decoded.

Cost of `decode` per 1,000 images of 10 kB (256 × 256 pixels) on a busy cloud core: 0.7 s.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from namedmask.images import structure
from namedmask.images.limits import COVERS, MAX_SCANS
from namedmask.schema.status import NOT_AN_IMAGE, TOO_MANY_PIXELS, TOO_MANY_SCANS, TRUNCATED

if TYPE_CHECKING:
    import torch


# several images are processed in parallel, so threads within an image would only compete
cv2.setNumThreads(1)

# Pillow warns of broken EXIF blocks and large headers; a crawl would log a line per such file
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that Pillow may decode; formats for which it starts another program are left out."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""ImageNet's mean of the RGB channels, for values in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""ImageNet's standard deviation of the RGB channels, for values in [0, 1].

Method: the input of all networks except CLIP and the face detectors is normalized with it."""

WHITE = (255, 255, 255, 255)
"""RGBA of the background behind transparent pixels."""

_OF_SIXTEEN_BIT = np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)

_ORIENTATION_TAG = 0x0112
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""

_SIGNATURES = (structure.JPEG, structure.PNG, structure.GIF, structure.RIFF, *structure.TIFFS)
_AVIF = (b"ftypavif", b"ftypavis")  # they begin at the fifth byte


class BadImage(ValueError):
    """Raised for bytes that cannot be decoded as an image; `status` is the status of the row."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status


def decode(
    data: bytes, max_pixels: int = 50_000_000, longest_side: int = 0, *, upright: bool = True
) -> np.ndarray:
    """Return the image, (H, W, 3) uint8 RGB, shrunk so that no side is above `longest_side`.

    Args:
        data: an encoded image.
        max_pixels: maximum number of pixels of the encoded image, checked in its header.
        longest_side: limit of both sides in pixels; 0 means no limit.
        upright: whether to apply the EXIF orientation. The orientation of a TIFF is always applied.

    Raises:
        BadImage: the status is `not_an_image`, `truncated`, `too_many_pixels` or `too_many_scans`.
    """
    image = opened(data, max_pixels)
    width, height = fitted(*image.size, longest_side)
    array, orientation = _pixels(image, (width, height), upright)
    if orientation in SIDEWAYS:
        width, height = height, width
    return array if array.shape[:2] == (height, width) else resize(array, height, width)


def decode_coarse(data: bytes, least_side: int, max_pixels: int = 50_000_000) -> np.ndarray:
    """Return the image, (H, W, 3) uint8 RGB, upright; a JPEG is shrunk while it is decoded.

    The sides of a JPEG are divided by 8, 4 or 2, whichever is the largest number that divides both
    sides without remainder and leaves no side below `least_side` pixels. If none of them does, or
    the image is not a JPEG, the size is kept. A remainder would add a partial pixel at the end,
    which would shift the result of a later resize.

    Raises:
        BadImage: the image cannot be decoded; see `decode`.
    """
    image = opened(data, max_pixels)
    part = coarse_part(image, least_side)
    width, height = image.size
    return _pixels(image, (width // part, height // part), upright=True)[0]


def coarse_part(image: Image.Image, least_side: int) -> int:
    """Return the number, 8, 4, 2 or 1, by which `decode_coarse` divides the sides of a JPEG."""
    width, height = image.size
    for part in (8, 4, 2):
        if width % part == height % part == 0 and min(width, height) >= least_side * part:
            return part
    return 1


def _pixels(image: Image.Image, enough: tuple[int, int], upright: bool) -> tuple[np.ndarray, int]:
    """Return the pixels, with sides of at least `enough`, and the undone EXIF orientation."""
    try:
        # libjpeg leaves out high frequencies and computes up to 8 times fewer samples per side
        image.draft(None, enough)
        image.load()
        orientation = orientation_of(image) if upright else 1
        return np.array(turned(_rgb(image), orientation)), orientation
    except Exception as error:  # per-row guard: on hostile bytes, plug-ins raise errors of any type
        raise BadImage(TRUNCATED, str(error)) from error


def size_of(data: bytes, max_pixels: int = 50_000_000) -> tuple[int, int]:
    """Return (height, width) in pixels of the upright image from its header, without decoding it.

    Raises:
        BadImage: the header is not valid or has too many pixels or scans; see `decode`.
    """
    image = opened(data, max_pixels)
    width, height = image.size
    return (width, height) if orientation_of(image) in SIDEWAYS else (height, width)


def opened(data: bytes, max_pixels: int = 50_000_000) -> Image.Image:
    """Return the Pillow image of `data`, with its header read and no pixel decoded.

    Raises:
        BadImage: the header is not valid or has too many pixels or scans; see `decode`.
    """
    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own limit, also while it reads a header
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        image = _opened(data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(TOO_MANY_PIXELS, str(error)) from error
    except Exception as error:  # per-row guard, as in `_pixels`
        known = data.startswith(_SIGNATURES) or data[4:12] in _AVIF
        status = TRUNCATED if known else NOT_AN_IMAGE
        raise BadImage(status, f"{len(data)} bytes beginning {data[:12]!r}") from error
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(TOO_MANY_PIXELS, f"{width} × {height}, at most {max_pixels} pixels")
    if _tile_pixels(image) > max_pixels:
        raise BadImage(TOO_MANY_PIXELS, f"tiles of more than {max_pixels} pixels")
    most = min(MAX_SCANS, COVERS * max_pixels // max(1, width * height))
    if data.startswith(structure.JPEG) and structure.has_more_scans(data, most):
        raise BadImage(TOO_MANY_SCANS, f"{width} × {height} in more than {most} scans")
    return image


def _opened(data: bytes) -> Image.Image:
    """Return the Pillow image of `data`, whose metadata are no reason to refuse it."""
    try:
        return Image.open(io.BytesIO(structure.without_misleading(data)), formats=FORMATS)
    except Exception:
        bare = structure.without_metadata(data)
        if bare is None:
            raise
        return Image.open(io.BytesIO(bare), formats=FORMATS)


def _tile_pixels(image: Image.Image) -> int:
    """Return the number of pixels per tile of a TIFF; 0 for an image without tiles.

    libtiff decodes whole tiles, even if a tile is larger than the image.
    """
    tags = getattr(image, "tag_v2", {})
    try:
        return int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    except Exception:  # noqa: BLE001  no valid tile size, but the TIFF may have valid strips
        return 0


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, and any number that is not in 2 to 8, means upright."""
    if image.format == "TIFF":  # Pillow itself turns a TIFF upright
        return 1
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look further
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  the pixels can be valid although the EXIF block is broken
        return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image that is stored with an EXIF `orientation`, turned upright."""
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(array: np.ndarray) -> np.ndarray:
    # Pillow would clip values above 255. Here white becomes 255, and white is the smallest of the
    # usual levels (1, 255, 65535) that no value exceeds, or else the largest value.
    if array.dtype == np.uint16:
        result: np.ndarray = _OF_SIXTEEN_BIT[array]
        return result
    high = float(array.max())
    white = next((level for level in (1.0, 255.0, 65535.0) if high <= level), high)
    return np.clip(np.rint(array * (255.0 / white)), 0, 255).astype(np.uint8)


def fitted(width: int, height: int, longest_side: int) -> tuple[int, int]:
    """Return (width, height), shrunk with its aspect ratio if a side is above `longest_side`.

    If `longest_side` is 0, there is no limit.
    """
    scale = min(1.0, longest_side / max(width, height)) if longest_side else 1.0
    return max(1, round(width * scale)), max(1, round(height * scale))


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Return JPEG bytes of an (H, W, 3) uint8 RGB image; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(array: np.ndarray) -> bytes:
    """Return PNG bytes of an (H, W) uint8 map or an (H, W, 3) uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def decode_gray(data: bytes, max_pixels: int = 50_000_000) -> np.ndarray:
    """Return an encoded map as (H, W) uint8: palette indices if it has a palette, else gray values.

    Raises:
        BadImage: the map cannot be decoded; see `decode`.
    """
    image = opened(data, max_pixels)
    try:
        image.load()
        return np.array(image if image.mode in ("L", "P") else image.convert("L"))
    except Exception as error:  # per-row guard, as in `_pixels`
        raise BadImage(TRUNCATED, str(error)) from error


def decode_stored(data: bytes, max_pixels: int = 50_000_000) -> tuple[str, np.ndarray]:
    """Return Pillow's mode of a PNG and its pixels as they are stored, (H, W) or (H, W, C).

    Raises:
        BadImage: the data are not a PNG, or cannot be decoded; see `decode`.
    """
    image = opened(data, max_pixels)
    if image.format != "PNG":
        raise BadImage(NOT_AN_IMAGE, f"expected a PNG, got {image.format}")
    try:
        image.load()
        return image.mode, np.array(image)
    except Exception as error:  # per-row guard, as in `_pixels`
        raise BadImage(TRUNCATED, str(error)) from error


def resize(image: np.ndarray, height: int, width: int, *, nearest: bool = False) -> np.ndarray:
    """Return `image`, (H, W) or (H, W, C), resized to (height, width); dtype and channels are kept.

    Images (uint8 or float32) are averaged over areas along sides that shrink, and interpolated
    linearly along sides that grow. `nearest` is for labels and masks of any dtype, because it
    creates no new values.
    """
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return image.copy()
    if nearest:
        rows = ((np.arange(height) + 0.5) * (old_height / height)).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * (old_width / width)).astype(np.int64)
        result: np.ndarray = image[rows[:, None], columns]
        return result
    # two steps, because area averaging works only if no side grows
    small = (min(width, old_width), min(height, old_height))
    if small != (old_width, old_height):
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if small != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def resize_shorter_side(image: np.ndarray, side: int) -> np.ndarray:
    """Return `image`, (H, W, 3) uint8, resized to a shorter side of `side`; the ratio is kept."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    return resize(image, max(side, round(height * scale)), max(side, round(width * scale)))


def center_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Return the central (side, side) pixels of `image`, (H, W) or (H, W, C).

    Raises:
        ValueError: a side of `image` is shorter than `side`.
    """
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise ValueError(f"an image of {height} × {width} is too small for a crop of {side}.")
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def to_tensor(
    images: Sequence[np.ndarray],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> torch.Tensor:
    """Return B images (H, W, 3) uint8 RGB of equal size as (B, 3, H, W) float32, normalized."""
    import torch

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0
    return (batch - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
