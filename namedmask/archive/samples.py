"""Archive entries as training samples, decoded on access."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask import images, schema
from namedmask.errors import InputError
from namedmask.storage import Place
from namedmask.storage.place import kept_copy

ROWS_PER_GROUP = 8
"""Number of rows per Parquet row group; small, because training reads single images at random."""

CACHE_MB = 1024
"""Default size, in MiB, of the cache of decoded samples."""


@dataclass(frozen=True)
class Shard:
    """One archive file: its images, their masks, and the label id of the objects."""

    path: Place
    label: int
    masks: list[bytes]  # RLE, one per row
    sizes: np.ndarray  # (N, 2) int32: height, width
    sha256: str


class ArchiveSamples:
    """Archive entries as training samples (`train.augment.Samples`), decoded on access.

    A sample is an image (H, W, 3) uint8 RGB and its labels (H, W) uint16, which are the shard's
    label id on the mask and 0 elsewhere. Decoded samples are cached until the cache has `cache_mb`
    MiB, so callers must not write into them. The object can be pickled and used from forked
    processes.
    """

    def __init__(self, shards: Sequence[Shard], cache_mb: int = CACHE_MB) -> None:
        self._shards = tuple(shards)
        self._ends = list(accumulate(len(shard.masks) for shard in shards))
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._free_bytes = cache_mb << 20

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sample `index`; see the class.

        Raises:
            InputError: the archive file is unreadable or was changed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if index in self._cache:
            return self._cache[index]
        image, label = self._decode(index)
        size = image.nbytes + label.nbytes
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._cache[index] = image, label
        return image, label

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        number = bisect_right(self._ends, index)
        shard = self._shards[number]
        row = index - (self._ends[number - 1] if number else 0)
        height, width = (int(side) for side in shard.sizes[row])
        try:
            path = kept_copy(shard.path, shard.sha256)
            limit = images.limit_of_checked(height, width)
            image = images.decode(_image_bytes(path, row), limit)
            mask = images.decode_mask(shard.masks[row], height, width)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{shard.path}: row {row} holds no sample: {error}. The file has changed "
                "since 'build' wrote it. Copy it back, or run 'build' into another run.out."
            ) from error
        return image, mask.astype(schema.LABEL_DTYPE) * schema.LABEL_DTYPE(shard.label)


def _image_bytes(path: Path, row: int) -> bytes:
    """Return the encoded image of one row.

    The file is opened for each row, because an open file would break in forked processes.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        group, offset = divmod(row, ROWS_PER_GROUP)
        column = file.read_row_group(group, columns=["image"], use_threads=False)["image"]
        data: bytes = column[offset].as_py()
    return data
