"""The store of checked images, from which the archives take their entries."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.run import layout
from namedmask.run.layout import IMAGES
from namedmask.run.ledger import Ledger
from namedmask.run.stores import findings_of
from namedmask.storage import Place
from namedmask.storage import place as storage
from namedmask.storage.files import blob_bytes, read_group, row_groups

OPEN_GROUPS = 4
"""Number of row groups of checked images that are cached in memory while archives are written."""

SMALL_BYTES = 64 << 20
"""Bytes of images below which the entries of an archive are put in order in memory."""

IMAGE_COLUMNS = ("sample_id", "image", "image_height", "image_width", "mask")
"""Columns of a checked image that an archive entry takes over."""


class ImageStore:
    """The checked images of a run: statuses of all images, pixels and masks of good images."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._units: dict[str, str] = {}  # sample_id of a good image → its unit
        self.statuses: dict[str, str] = {}  # by sample id
        self.hashes: dict[str, int] = {}  # perceptual hashes of the good images, by sample id
        self._group = lru_cache(OPEN_GROUPS)(read_group)
        units = list(ledger.commits(IMAGES))
        self._next = int(units[-1]) + 1 if units else 0
        for unit in units:
            self.add_unit(unit, *findings_of(ledger.folder, unit))

    def new_unit(self) -> str:
        """Return a new unit name, for the next wave of checked images."""
        self._next += 1
        return f"{self._next - 1:05d}"

    def add_unit(self, unit: str, statuses: Mapping[str, str], hashes: Mapping[str, int]) -> None:
        """Add the statuses and the hashes of a committed unit's images, by sample id."""
        self.statuses.update(statuses)
        self.hashes.update(hashes)
        good = (sample_id for sample_id, status in statuses.items() if status == schema.OK)
        self._units.update(dict.fromkeys(good, unit))

    def entries(self, candidates: pa.Table) -> Iterator[pa.Table]:
        """Yield the archive entries (schema.ARCHIVE) of one category's accepted candidates.

        The entries are in the order of the candidates. Each table has one entry, except that all
        entries are in one table if their images take less than `SMALL_BYTES`.
        """
        if not candidates.num_rows:
            return
        images = self._images(candidates["sample_id"].to_pylist())
        scratch = self._ledger.folder / layout.part_file(IMAGES, "00000", 0)
        for number, image in _in_order(images, scratch):
            entry = candidates.slice(number, image.num_rows)
            for name in IMAGE_COLUMNS[1:]:
                entry = entry.append_column(name, image[name])
            yield schema.conform(entry, schema.ARCHIVE, "the archive")

    def _images(self, ids: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Yield, per row group with any of the images, their positions in `ids` and their rows."""
        position_of = {sample_id: position for position, sample_id in enumerate(ids)}
        for unit in dict.fromkeys(self._units[sample_id] for sample_id in ids):
            path = self._ledger.folder / layout.wave_file(IMAGES, "wave", unit)
            for group, table in enumerate(row_groups(path, ["sample_id"])):
                in_group = table["sample_id"].to_pylist()
                rows = [row for row, one in enumerate(in_group) if one in position_of]
                if rows:
                    images = self._group(path, group, IMAGE_COLUMNS).take(rows)
                    yield np.array([position_of[in_group[row]] for row in rows]), images


def _in_order(
    groups: Iterable[tuple[np.ndarray, pa.Table]], scratch: Place
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (position, rows from there on) in ascending order of the positions of all rows.

    If all rows together are small, they are sorted in memory and yielded at once. Otherwise they
    are written to a file beside `scratch`, one record batch per row, and are read back in order.
    """
    held: list[tuple[np.ndarray, pa.Table]] = []
    remaining = iter(groups)
    for positions, table in remaining:
        held.append((positions, table))
        if sum(int(blob_bytes(part).sum()) for _, part in held) >= SMALL_BYTES:
            break
    else:
        positions = np.concatenate([part for part, _ in held])
        yield 0, pa.concat_tables([table for _, table in held]).take(np.argsort(positions))
        return
    with storage.scratch(scratch) as path:
        order: list[int] = []
        with pa.ipc.new_file(path, held[0][1].schema) as file:
            for positions, table in itertools.chain(held, remaining):
                file.write_table(table, max_chunksize=1)
                order += positions.tolist()
            held.clear()
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
            for position, row in enumerate(np.argsort(order).tolist()):
                yield position, pa.Table.from_batches([reader.get_batch(row)])
