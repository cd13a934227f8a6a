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

from namedmask import schema
from namedmask.run.layout import IMAGES
from namedmask.run.retry import rewrite_wave
from namedmask.run.stores import hashes_by_id, statuses_by_id, with_hashes, write_wave
from namedmask.storage import Place
from namedmask.storage.files import digest, row_hashes

if TYPE_CHECKING:
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
class WaveHeader:
    """What belongs to a whole wave while its rows pass the stages."""

    unit: str
    again: bool
    input_digest: str  # over the rows as they were read
    tried: int  # rows that were ok when they were read


def header_of(wave: Wave, rows: pa.Table) -> WaveHeader:
    """Return the header of a wave, of the rows that its `read` returned."""
    return WaveHeader(wave.unit, wave.again, input_digest(rows), int(schema.alive(rows).size))


@dataclass(frozen=True)
class Written:
    """What became of a wave: its unit, how many rows it tried, how often each status occurs."""

    unit: str
    tried: int
    counts: Mapping[str, int]
    statuses: Mapping[str, str] = field(default_factory=dict)  # of its images, by sample id
    hashes: Mapping[str, int] = field(default_factory=dict)  # of its good images, by sample id


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


def write(folder: Place, store_name: str, header: WaveHeader, table: pa.Table) -> Written:
    """Commit a wave that has passed all stages to a run folder; return what became of it."""
    unit, tried = header.unit, header.tried
    if header.again:
        return Written(unit, tried, rewrite_wave(folder, store_name, unit, table).counts)
    if store_name != IMAGES:
        commit = write_wave(folder, store_name, unit, table, header.input_digest)
        return Written(unit, tried, commit.counts)
    table = with_hashes(table)
    commit = write_wave(folder, store_name, unit, table, header.input_digest)
    return Written(unit, tried, commit.counts, statuses_by_id(table), hashes_by_id(table))


@dataclass(frozen=True)
class FetchedWave:
    """A wave whose rows were read and fetched, and the seconds that the fetch took."""

    header: WaveHeader
    table: pa.Table
    seconds: float


def fetch_wave(wave: Wave, fetch: Stage) -> FetchedWave:
    """Return a wave once it is read and fetched."""
    table = wave.read()
    header = header_of(wave, table)
    began = time.perf_counter()
    fetched = fetch(table)
    return FetchedWave(header, fetched, time.perf_counter() - began)
