"""Waves of rows. The rows of a wave are read, pass the stages, and are committed together.

A committed wave is one unit of a store. The functions that read and write a wave can run in any
process. The plain loop calls them one after the other; a graph on a cluster calls them in the
processes of its pools.
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
"""Number of batches in a slice of a wave; progress advances after each slice."""


@dataclass(frozen=True)
class Wave:
    """The name of a unit, and the function that reads its rows; pickles if `read` pickles."""

    unit: str
    read: Callable[[], pa.Table]
    again: bool = False  # whether the wave replaces a committed unit; see retry.py


@dataclass(frozen=True)
class WaveHeader:
    """The data about a wave as a whole, which accompanies its rows through the stages."""

    unit: str
    again: bool
    input_digest: str  # as the function `input_digest` returns it
    tried: int  # number of rows that were ok when they were read


def header_of(wave: Wave, rows: pa.Table) -> WaveHeader:
    """Return the header of a wave; `rows` are the rows that its `read` returned."""
    return WaveHeader(wave.unit, wave.again, input_digest(rows), int(schema.alive(rows).size))


@dataclass(frozen=True)
class Written:
    """The result of a committed wave, with its numbers of rows tried and of rows by status."""

    unit: str
    tried: int
    counts: Mapping[str, int]
    statuses: Mapping[str, str] = field(default_factory=dict)  # of checked images, by sample id
    hashes: Mapping[str, int] = field(default_factory=dict)  # perceptual, of good checked images


def input_digest(table: pa.Table) -> str:
    """Return one sha256, hex, over sample ids and statuses of a wave's rows, as they were read."""
    return digest(row_hashes(table, ("sample_id", "status")))


def digest_of(wave: Wave) -> str:
    """Return the input digest of a wave, whose rows are read for this."""
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
    """Read the rows of a wave, fetch their images, and return the fetched wave."""
    table = wave.read()
    header = header_of(wave, table)
    began = time.perf_counter()
    fetched = fetch(table)
    return FetchedWave(header, fetched, time.perf_counter() - began)
