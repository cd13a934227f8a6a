"""Waves of rows. The rows of a wave are read, pass the stages, and are committed together.

The rows pass the stages in slices, whose images are limited in bytes (`Limits.encoded_bytes`), so
that memory depends neither on the number of rows of a wave nor on the size of its images. A
committed wave is one unit of a store. The functions that read and write a wave can run in any
process. The plain loop calls them one after the other; a graph on a cluster calls them in the
processes of its pools.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from namedmask import schema
from namedmask.run import layout
from namedmask.run.layout import IMAGES
from namedmask.run.ledger import read_commit
from namedmask.run.retry import WaveRewriter
from namedmask.run.stores import (
    WaveWriter,
    findings_of,
    hashes_by_id,
    statuses_by_id,
    with_hashes,
)
from namedmask.storage import Place
from namedmask.storage.files import digest, row_hashes

if TYPE_CHECKING:
    from namedmask.run.stages import Fetcher


SLICE_BATCHES = 8
"""Number of batches that pass a stage together; progress advances after them."""


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
    rows: int


def header_of(wave: Wave, rows: pa.Table) -> WaveHeader:
    """Return the header of a wave; `rows` are the rows that its `read` returned."""
    tried = int(schema.alive(rows).size)
    return WaveHeader(wave.unit, wave.again, input_digest(rows), tried, rows.num_rows)


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


def in_batches(table: pa.Table, batch_size: int) -> Iterator[pa.Table]:
    """Yield the rows of a table in parts of `SLICE_BATCHES` batches."""
    rows = SLICE_BATCHES * batch_size
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def write(
    folder: Place, store_name: str, header: WaveHeader, slices: Iterable[pa.Table]
) -> Written:
    """Commit a wave to a run folder, and return its result.

    `slices` are all rows of the wave, in order, which have passed all stages.
    """
    with WaveSink(folder, store_name, header) as sink:
        for table in slices:
            sink.add(table)
        return sink.commit()


class WaveSink:
    """Commits a wave, slice by slice, to a run folder; see `WaveWriter`."""

    def __init__(self, folder: Place, store_name: str, header: WaveHeader) -> None:
        self._header, self._is_checked = header, store_name == IMAGES
        self._statuses: dict[str, str] = {}
        self._hashes: dict[str, int] = {}
        if header.again:
            self._writer: WaveWriter = WaveRewriter(folder, store_name, header.unit)
        else:
            self._writer = WaveWriter(folder, store_name, header.unit, header.input_digest)

    def __enter__(self) -> WaveSink:
        self._writer.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._writer.__exit__(*details)

    def add(self, table: pa.Table) -> None:
        """Add rows of the wave, in order, which have passed all stages."""
        if self._is_checked and not self._header.again:
            table = with_hashes(table)
            self._statuses.update(statuses_by_id(table))
            self._hashes.update(hashes_by_id(table))
        self._writer.add(table)

    def commit(self) -> Written:
        """Commit all rows that were added, and return the result of the wave."""
        commit, header = self._writer.commit(), self._header
        return Written(header.unit, header.tried, commit.counts, self._statuses, self._hashes)


def written_before(folder: Place, store_name: str, header: WaveHeader) -> Written | None:
    """Return the result of a wave that is committed already; None if it is not."""
    path = folder / store_name / layout.commit_file(header.unit)
    if header.again or not path.is_file():
        return None
    commit = read_commit(folder, store_name, header.unit)
    if commit.input_digest != header.input_digest:
        return None
    findings = findings_of(folder, header.unit) if store_name == IMAGES else ({}, {})
    return Written(header.unit, header.tried, commit.counts, *findings)


@dataclass(frozen=True)
class FetchedSlice:
    """Consecutive rows of a wave with their images, and the seconds that their fetch took."""

    header: WaveHeader
    table: pa.Table
    seconds: float


def fetch_wave(wave: Wave, fetch: Fetcher, start: int = 0) -> Iterator[FetchedSlice]:
    """Read the rows of a wave, fetch their images from row `start` on, and yield them in slices."""
    rows = wave.read()
    header = header_of(wave, rows)
    began = time.perf_counter()
    for table in fetch.slices(rows.slice(start)):
        yield FetchedSlice(header, table, time.perf_counter() - began)
        began = time.perf_counter()
