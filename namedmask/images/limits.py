"""Limits on the memory that images take, and the division of work into parts within them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MAX_PIXELS = 50_000_000
"""Default of `fetch.max_pixels`, the maximum number of pixels of an image that is decoded."""

MAX_SCANS = 100
"""Largest number of scans of a progressive JPEG. The limit is lower for large images: all scans
together may cover at most `COVERS` times `max_pixels`. A file of 100 kB can have a thousand empty
scans, and libjpeg visits all pixels for each of them, which would take minutes. Encoders write
about ten scans."""

COVERS = 20
"""Largest number of times that the scans of a JPEG may visit `max_pixels` pixels."""

PREDICT_SIDE = 2048
"""Default of the longest side, in pixels, at which `predict` gives an image to the network.

For a photo of 12 megapixels, the backbone of a ResNet-50 alone would need 7 GB; at this side,
`predict` with 919 names needs 3.6 GB (docs/results.md)."""

PREDICT_PIXELS = 200_000_000
"""Default of the largest image that `predict` decodes; phones take photos of 108 megapixels."""


@dataclass(frozen=True)
class Limits:
    """The limits of one process; `run.machine.limits_of` derives them from the config."""

    max_pixels: int = MAX_PIXELS  # of one image
    decoded_bytes: int = 256 << 20  # of the decoded images that a stage holds at once, or one image
    encoded_bytes: int = 64 << 20  # of the encoded images in a slice of a wave, or one image


def within(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield all items, in order, in lists that end with the item that reaches `limit` bytes.

    An item's bytes are those that `size` returns. The sizes in a list sum to less than `limit` plus
    the size of its last item.
    """
    part: list[T] = []
    held = 0
    for item in items:
        part.append(item)
        held += size(item)
        if held >= limit:
            yield part
            part, held = [], 0
    if part:
        yield part


def limit_of_checked(height: int, width: int) -> int:
    """Return the `max_pixels` for an image of this size that was accepted with an unknown limit.

    It allows as many scans as any limit does.
    """
    return height * width * MAX_SCANS // COVERS
