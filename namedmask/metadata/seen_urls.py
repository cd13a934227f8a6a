"""Which digests came before, over an input of any length, in a memory that does not grow with it.

They lie in a file of SQLite's that has no name and is gone with the process: a sorted tree on disk
(where SQLITE_TMPDIR or TMPDIR says), of which no more than `CACHE_MB` are in memory. On a cluster
the same question is settled by an exchange; see on_ray/scan.py.

Cost per million digests: 19 MB of disk, and 3 s of one cloud core (`python bench/metadata.py`).
"""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self

import numpy as np

from namedmask.errors import InputError

CACHE_MB = 32


class SeenUrls:
    """The digests seen so far; a context manager that forgets them at its end."""

    def __enter__(self) -> Self:
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size = -{CACHE_MB << 10}", "journal_mode = off"):
            self._seen.execute(f"PRAGMA {pragma}")
        self._seen.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._seen.execute("BEGIN")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seen.close()

    def of(self, digests: np.ndarray) -> np.ndarray:
        """Return the places, (M,) int64 ascending, of those of `digests` (N,) S10 seen before.

        Seen before is also what stands further ahead in `digests`; all are seen from now on.

        Raises:
            InputError: the disk is full.
        """
        unique, first = np.unique(digests, return_index=True)
        insert = "INSERT OR IGNORE INTO seen VALUES (?)"
        # in order, so that neighbors fall into the same page
        try:
            is_new = [self._seen.execute(insert, (one,)).rowcount for one in unique.tolist()]
        except sqlite3.OperationalError as error:
            raise InputError(
                f"the digests of the urls cannot be kept in a temporary file: {error}. It takes "
                "19 MB a million rows; point TMPDIR to a disk that has them."
            ) from error
        repeated = np.ones(len(digests), bool)
        repeated[first[np.array(is_new, bool)]] = False
        return np.flatnonzero(repeated)
