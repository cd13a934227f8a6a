"""Find repeated url digests in an input of any length, with bounded memory.

The digests are stored in a temporary SQLite database that has no file name and disappears with the
process. The database is a sorted tree on disk, in SQLITE_TMPDIR or TMPDIR, and at most `CACHE_MB`
MiB of it are in memory. On a cluster, tasks exchange digests instead and find the same repeats; see
engine/on_ray/metadata_scan.py.

Cost per million digests: 19 MB of disk, and 3 s of one cloud core (`python bench/metadata.py`).
"""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self

import numpy as np

from namedmask.errors import InputError

CACHE_MB = 32
"""Maximum size of the database pages in memory, in MiB."""


class SeenUrls:
    """Context manager that records url digests and finds repeats; its exit deletes the digests."""

    def __enter__(self) -> Self:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size = -{CACHE_MB << 10}", "journal_mode = off"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._database.close()

    def find_repeats(self, digests: np.ndarray) -> np.ndarray:
        """Return the indices, (M,) int64 ascending, of the repeats in `digests`, (N,) S10.

        A digest is a repeat if it occurred in an earlier call, or at a smaller index of this call.
        All digests are recorded for later calls.

        Raises:
            InputError: the disk is full.
        """
        unique, first = np.unique(digests, return_index=True)
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        # In sorted order, consecutive digests fall into the same page of the database.
        try:
            is_new = [
                self._database.execute(insert, (digest,)).rowcount for digest in unique.tolist()
            ]
        except sqlite3.OperationalError as error:
            raise InputError(
                f"the digests of the urls cannot be written to a temporary file: {error}. They "
                "take 19 MB per million rows. Set TMPDIR to a folder on a disk with enough space."
            ) from error
        repeated = np.ones(len(digests), bool)
        repeated[first[np.array(is_new, bool)]] = False
        return np.flatnonzero(repeated)
