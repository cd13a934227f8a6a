"""Waves: rows that are read, pass the stages, and are committed together, as one unit.

The functions for reading and writing a wave do not depend on where they run. The plain loop calls
them one after the other; a graph on a cluster calls them in the processes of its pools.
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
"""Number of batches per slice of a wave; progress advances after each slice."""


@dataclass(frozen=True)
class Wave:
    """A unit and the function that reads its rows; pickles if `read` does."""

    unit: str
    read: Callable[[], pa.Table]
    again: bool = False  # whether the unit is committed and is to be replaced; see retry.py


@dataclass(frozen=True)
class WaveHeader:
    """The data of a wave as a whole, kept while its rows pass the stages."""

    unit: str
    again: bool
    input_digest: str  # digest of the rows as they were read
    tried: int  # number of rows that were ok when they were read


def header_of(wave: Wave, rows: pa.Table) -> WaveHeader:
    """Return the header of a wave; `rows` are the rows that its `read` returned."""
    return WaveHeader(wave.unit, wave.again, input_digest(rows), int(schema.alive(rows).size))


@dataclass(frozen=True)
class Written:
    """The result of a wave: its unit, the number of rows tried, and of rows per status."""

    unit: str
    tried: int
    counts: Mapping[str, int]
    statuses: Mapping[str, str] = field(default_factory=dict)  # of checked images, by sample id
    hashes: Mapping[str, int] = field(default_factory=dict)  # of good checked images, by id


def input_digest(table: pa.Table) -> str:
    """Return a single sha256, hex, over the rows of a wave as they were read."""
    return digest(row_hashes(table, ("sample_id", "status")))


def digest_of(wave: Wave) -> str:
    """Read a wave, and return its input digest."""
    return input_digest(wave.read())


def slices(table: pa.Table, batch_size: int) -> Iterator[pa.Table]:
    """Yield the rows of a table in slices of `SLICE_BATCHES` batches."""
    rows = SLICE_BATCHES * batch_size
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def write(folder: Place, store_name: str, header: WaveHeader, table: pa.Table) -> Written:
    """Commit a wave that has passed all stages to a run folder, and return its result."""
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
    """A wave whose rows were read and fetched, with the seconds that the fetch took."""

    header: WaveHeader
    table: pa.Table
    seconds: float


def fetch_wave(wave: Wave, fetch: Stage) -> FetchedWave:
    """Read a wave, fetch its images, and return it."""
    table = wave.read()
    header = header_of(wave, table)
    began = time.perf_counter()
    fetched = fetch(table)
    return FetchedWave(header, fetched, time.perf_counter() - began)
