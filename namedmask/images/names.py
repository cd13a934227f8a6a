"""The names of image files: the suffixes of all formats that the decoder reads."""

from __future__ import annotations

import os

SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo",
        ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".avifs",
    )
)  # fmt: skip
"""Lower-case suffixes of the formats in `codec.FORMATS`. Windows saves JPEGs as .jfif."""


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image; the content is not looked at."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
