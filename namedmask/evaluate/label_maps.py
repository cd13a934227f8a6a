"""Labeled images, which make up a benchmark, and the conversion of label files to label ids.

A benchmark is a sequence of (sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16). In
its label maps 0 is background, label id i + 1 is `names[i]`, and ignored pixels are 65535.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from namedmask import images
from namedmask.errors import InputError
from namedmask.images.names import is_image_name
from namedmask.metrics import Absent
from namedmask.schema.columns import IGNORE, LABEL_DTYPE
from namedmask.storage import Place
from namedmask.storage.walk import existing_form, is_hidden

_log = logging.getLogger(__name__)

LABEL_MODES = ("1", "L", "P", "I;16")
"""Pillow's modes with one number per pixel, which is the palette index in a palette image."""

UNKNOWN = -1
"""Entry of an id table for an id that the files must not contain."""


class Benchmark(Protocol):
    """A labeled split."""

    @property
    def name(self) -> str:
        """Name of the benchmark in reports."""

    @property
    def names(self) -> tuple[str, ...]:
        """Label names without background; label id i + 1 is `names[i]`."""

    @property
    def absent(self) -> Absent:
        """How the mean IoU treats a label that occurs nowhere."""

    @property
    def by_size(self) -> bool:
        """Whether the additional scores of ImageNet-S are computed as well (imagenet_s.py)."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Return sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16."""


@dataclass(frozen=True)
class Sample:
    """A photo, the file of its label map, and the function that reads this file."""

    name: str
    photo: Path
    label: Path
    read: Callable[[Path], np.ndarray] | None  # label → (H, W) uint16; None: not published


@dataclass(frozen=True)
class LabeledFiles:
    """A benchmark whose samples are pairs of files."""

    name: str
    names: tuple[str, ...]
    absent: Absent
    samples: tuple[Sample, ...]
    by_size: bool = False
    objects_left_out: int = 0  # objects of the truth that cannot be drawn

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Return sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16.

        If the truth is not published, all pixels of the label map are ignored. The photo is rotated
        by its EXIF orientation, unless the label map fits only the photo as it is stored.

        Raises:
            InputError: a file is missing or broken, the sizes differ, or a label id has no name.
        """
        sample = self.samples[index]
        image = _read_photo(sample.photo)
        if sample.read is None:
            return sample.name, image, np.full(image.shape[:2], IGNORE, LABEL_DTYPE)
        label = sample.read(sample.label)
        if label.shape == image.shape[1::-1] != image.shape[:2]:
            image = _read_photo(sample.photo, upright=False)
        if label.shape != image.shape[:2]:
            raise InputError(
                f"{sample.label} is {label.shape} and its photo {sample.photo} "
                f"{image.shape[:2]}; expected one size. Use the label map made for this photo."
            )
        return sample.name, image, label


def photos_in(folder: Path, pattern: str = "") -> list[Path]:
    """Return the photos in a folder, sorted; `pattern` may also match photos in its subfolders.

    Without a pattern, these are all files with the suffix of an image. Hidden files, which some
    systems put beside each photo, are left out, and the log says how many.
    """
    found = folder.glob(pattern or "*")
    paths = [path for path in found if pattern or is_image_name(path.name)]
    shown = [path for path in paths if not any(map(is_hidden, path.relative_to(folder).parts))]
    if len(shown) < len(paths):
        _log.warning("%s: %d hidden photos are left out", folder, len(paths) - len(shown))
    return sorted(shown)


def samples_of(
    pairs: Iterable[tuple[Path, Path]],
    read: Callable[[Path], np.ndarray],
    name_of: Callable[[Path], str] = lambda photo: photo.stem,
) -> list[Sample]:
    """Return one sample per photo with its label map, which may have the other Unicode form.

    Raises:
        InputError: a label map is missing.
    """
    samples = [
        Sample(name_of(photo), photo, existing_form(label, label.parent), read)
        for photo, label in pairs
    ]
    missing = [sample for sample in samples if not sample.label.is_file()]
    if missing:
        raise InputError(
            f"{missing[0].label} is missing, and {len(missing) - 1} more label maps of photos in "
            f"{missing[0].photo.parent}. Every photo needs a label map with the name of the photo."
        )
    return samples


def id_table(label_of: Mapping[int, int], other: int = UNKNOWN) -> np.ndarray:
    """Return a table, (65536,) int32, from ids in files to label ids; other ids map to `other`."""
    table = np.full(IGNORE + 1, other, np.int32)
    table[list(label_of)] = list(label_of.values())
    return table


def read_labels(
    path: Path, table: np.ndarray, read: Callable[[Path], np.ndarray] | None = None
) -> np.ndarray:
    """Return the label map of a file, (H, W) uint16.

    `read` returns the ids in the file, (H, W) uint16, by default as `read_label_map`. `table` maps
    the ids to label ids; see `id_table`.

    Raises:
        InputError: as `read`; or the file contains an id that the table does not know.
    """
    ids = (read or read_label_map)(path)
    labels: np.ndarray = table[ids]
    if labels.size and labels.min() < 0:
        raise InputError(
            f"{path} holds label id {int(ids[labels < 0][0])}; expected {_known_ids(table)}. Use "
            "the label maps that are published with the benchmark."
        )
    return labels.astype(LABEL_DTYPE)


def read_label_map(path: Place) -> np.ndarray:
    """Return the label ids in a PNG of 8 or 16 bit or with a palette, (H, W) uint16.

    Raises:
        InputError: the file does not exist, cannot be decoded, or holds colors instead of ids.
    """
    try:
        mode, array = images.decode_stored(read_bytes(path))
    except images.BadImage as error:
        raise InputError(f"label map {path} cannot be decoded: {error}") from error
    if mode not in LABEL_MODES:
        raise InputError(
            f"label map {path} holds colors (mode {mode}); expected one label id per pixel, in a "
            "PNG of 8 or 16 bit or with a palette."
        )
    return array.astype(LABEL_DTYPE)


def read_bytes(path: Place) -> bytes:
    """Return the contents of a file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _read_photo(path: Path, *, upright: bool = True) -> np.ndarray:
    try:
        return images.decode(read_bytes(path), upright=upright)
    except images.BadImage as error:
        raise InputError(f"{path} cannot be decoded: {error}.") from error


def _known_ids(table: np.ndarray) -> str:
    """Return the ids that a table maps to label ids as text, such as "0 to 2, 7, 255"."""
    known = np.flatnonzero(table >= 0).tolist()
    starts = [known[0], *(b for a, b in pairwise(known) if b > a + 1)]
    ends = [*(a for a, b in pairwise(known) if b > a + 1), known[-1]]
    spans = (str(a) if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
    return ", ".join(spans)
