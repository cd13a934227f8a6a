"""Rows that travel together: a wave is read, passes the stages, and is committed as one unit.

Reading, passing and writing know nothing of where they run: a plain loop calls them one after the
other, a graph on a cluster calls them in the processes of its pools.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from namedmask.run.layout import IMAGES
from namedmask.run.retry import rewrite_wave
from namedmask.run.stores import hashes_of, verdicts_of, with_hashes, write_wave
from namedmask.storage import Place
from namedmask.storage.files import digest, row_hashes

if TYPE_CHECKING:
    import pyarrow as pa

    from namedmask.run.stages import Stage


SLICE_BATCHES = 8
"""Batches taken through a stage at once: the pace at which progress shows."""


@dataclass(frozen=True)
class Wave:
    """The unit that some rows become, and how to get them; pickles if `read` does."""

    unit: str
    read: Callable[[], pa.Table]
    again: bool = False  # the unit is committed, and is to be written once more; see retry.py


@dataclass(frozen=True)
class Written:
    """What became of a wave: its unit, how many rows it tried, how often each status occurs."""

    unit: str
    tried: int
    counts: Mapping[str, int]
    verdicts: Mapping[str, str] = field(default_factory=dict)  # on its images, by sample id
    hashes: Mapping[str, int] = field(default_factory=dict)  # of its good images, likewise


def input_digest(table: pa.Table) -> str:
    """Return one sha256, hex, over the rows of a wave as they were read."""
    return digest(row_hashes(table, ("sample_id", "status")))


def digest_of(wave: Wave) -> str:
    """Return the input digest of a wave, once it is read again."""
    return input_digest(wave.read())


def slices(table: pa.Table, batch_size: int) -> Iterator[pa.Table]:
    """Yield the rows of a table, whole batches at a time."""
    rows = SLICE_BATCHES * batch_size
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def write(
    folder: Place, store: str, unit: str, table: pa.Table, tried: int, digested: str, again: bool
) -> Written:
    """Commit a wave that has passed all stages; return what became of it."""
    if again:
        return Written(unit, tried, rewrite_wave(folder, store, unit, table).counts)
    if store != IMAGES:
        return Written(unit, tried, write_wave(folder, store, unit, table, digested).counts)
    table = with_hashes(table)
    commit = write_wave(folder, store, unit, table, digested)
    return Written(unit, tried, commit.counts, verdicts_of(table), hashes_of(table))


@dataclass(frozen=True)
class FetchedWave:
    """A wave, the digest of its rows as read, how many are tried, and the rows fetched."""

    wave: Wave
    digest: str
    tried: int
    table: pa.Table
    seconds: float


def fetch_wave(wave: Wave, fetch: Stage) -> FetchedWave:
    """Return a wave once it is read and fetched."""
    from namedmask import schema

    table = wave.read()
    began = time.perf_counter()
    fetched = fetch(table)
    seconds = time.perf_counter() - began
    return FetchedWave(wave, input_digest(table), schema.alive(table).size, fetched, seconds)
