"""The scan of the metadata by many tasks, which gives waves that any process can read.

The url digests are deduplicated by a hash exchange (shuffle), in two rounds of tasks. A *scan* task
reads and cleans one table, writes the clean rows to the folder `metadata` of the run folder, and
splits its url digests by their first byte into one partition per CPU. A *deduplication* task gets
all digests of one partition, in the order of the tables, and returns the rows that repeat an
earlier url. The first row of each url is therefore the same as in the plain loop, and no process
has all urls in memory.

The clean rows are needed only to read the waves, and are removed when the verb is done. An
interrupted run scans again, and so detects changed sources.

Memory: 18 bytes per url over all partitions. In the driver, 8 bytes per repeated row, and four
times as many while the waves are cut.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from namedmask import schema
from namedmask.config import MetadataConfig
from namedmask.engine.on_ray.actors import WorkRegistry
from namedmask.engine.on_ray.graphs import own_error
from namedmask.engine.on_ray.watch import gather
from namedmask.metadata import clean as metadata
from namedmask.metadata import sources
from namedmask.run import layout
from namedmask.run.job import VerbRun
from namedmask.run.waves import Wave
from namedmask.storage import Place
from namedmask.storage.place import readable, remove_tree, replaced

ROWS_PER_GROUP = 2048
"""Number of rows per row group of a file of clean metadata."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """The rows of a file of clean metadata from row `start` up to, but without, row `stop`."""

    path: Place
    start: int
    stop: int


def scanned_waves(run: VerbRun) -> list[Wave]:
    """Scan all metadata; return its waves, with the same rows as the waves of the plain loop.

    Raises:
        ConfigError, SchemaError, InputError: as `clean.read_metadata`.
    """
    config = run.config.metadata
    folder = run.ledger.folder.absolute() / layout.CLEAN_METADATA
    remove_tree(folder)
    places = sources.places_of(config.source)
    partitions = max(1, int(ray.cluster_resources().get("CPU", 1)))
    paths = [folder / f"{number:05d}.parquet" for number in range(len(places))]
    scan: Any = ray.remote(num_cpus=config.num_cpus, num_returns=partitions + 1)(_scan)
    count_refs, digest_refs = [], []
    registry = ray.remote(num_cpus=0)(WorkRegistry).remote(places)
    for place, path in zip(places, paths, strict=True):
        count_ref, *partition_refs = scan.remote(place, path, config, partitions, registry)
        count_refs.append(count_ref)
        digest_refs.append(partition_refs)
    find: Any = ray.remote(num_cpus=config.num_cpus)(_repeated)
    repeated_refs = [find.remote(*of_partition) for of_partition in zip(*digest_refs, strict=True)]
    try:
        read: list[tuple[int, list[str]]] = gather(
            count_refs, registry, "reading the metadata", run.config.ray
        )
        repeated = np.concatenate(ray.get(repeated_refs))
    except ray.exceptions.RayError as error:
        raise own_error(error) or error from error
    for sentence in (sentence for _, sentences in read for sentence in sentences):
        _log.warning(sentence)
    counts = [count for count, _ in read]
    return _cut(paths, counts, repeated, run.config.run.wave_rows, config.max_rows)


def discard_scan(run: VerbRun) -> None:
    """Remove the clean rows, once every wave is committed."""
    remove_tree(run.ledger.folder / layout.CLEAN_METADATA)


def _scan(
    place: str, path: Place, config: MetadataConfig, partitions: int, registry: Any
) -> tuple[Any, ...]:
    """Write the clean rows of a table; return their number, then its digests per partition.

    The number comes with the sentences that the reader says about the table. Each partition is a
    pair of row numbers, (N,) int64, and url digests, (N,) S10.
    """
    said: list[str] = []
    ray.get(registry.begin.remote("scan", place))
    count, rows, digests = 0, [np.empty(0, np.int64)], [np.empty(0, "S10")]
    with replaced(path) as part, pq.ParquetWriter(part, schema.METADATA) as writer:
        for table in metadata.clean_place(place, config, said.append):
            if config.max_rows:
                table = table.slice(0, config.max_rows - count)
            writer.write_table(table, ROWS_PER_GROUP)
            table_rows, table_digests = metadata.url_digests(table)
            rows.append(table_rows + count)
            digests.append(table_digests)
            count += table.num_rows
            if config.max_rows and count >= config.max_rows:
                break
    registry.end.remote("scan", place)
    all_rows, all_digests = np.concatenate(rows), np.concatenate(digests)
    first_bytes = all_digests.view(np.uint8).reshape(-1, 10)[:, 0].astype(np.int64)
    partition_of = first_bytes * partitions // 256
    masks = (partition_of == number for number in range(partitions))
    return (count, said), *((all_rows[mask], all_digests[mask]) for mask in masks)


def _repeated(*tables: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return (table, row), (N, 2) int64, of each row whose digest also occurs in an earlier row.

    `tables` has, per table, the row numbers and the digests in one partition.
    """
    numbers = np.concatenate(
        [np.full(len(rows), number) for number, (rows, _) in enumerate(tables)]
    )
    rows = np.concatenate([rows for rows, _ in tables])
    digests = np.concatenate([digests for _, digests in tables])
    first = np.unique(digests, return_index=True)[1]
    later = np.ones(len(digests), bool)
    later[first] = False
    return np.stack([numbers[later], rows[later]], axis=1).astype(np.int64)


def _cut(
    paths: list[Place], counts: list[int], repeated: np.ndarray, wave_rows: int, max_rows: int
) -> list[Wave]:
    """Return the waves of `wave_rows` rows; a wave may have rows of several files."""
    firsts = np.array([0, *accumulate(counts)])
    total = min(int(firsts[-1]), max_rows or int(firsts[-1]))
    repeated_rows = np.sort(firsts[repeated[:, 0]] + repeated[:, 1])
    waves = []
    for number, start in enumerate(range(0, total, wave_rows)):
        stop = min(start + wave_rows, total)
        begin, end = np.searchsorted(repeated_rows, [start, stop])
        pieces = [
            Piece(path, max(start, first) - first, min(stop, first + count) - first)
            for path, first, count in zip(paths, firsts[:-1].tolist(), counts, strict=True)
            if first < stop and start < first + count
        ]
        read = partial(_read, pieces, repeated_rows[begin:end] - start)
        waves.append(Wave(f"{number:05d}", read))
    return waves


def _read(pieces: list[Piece], repeated: np.ndarray) -> pa.Table:
    table = pa.concat_tables([_rows(piece) for piece in pieces]).combine_chunks()
    return metadata.mark_repeated(table, repeated)


def _rows(piece: Piece) -> pa.Table:
    with pq.ParquetFile(readable(piece.path)) as file:
        groups, first = [], 0
        start = None
        for number in range(file.num_row_groups):
            count = file.metadata.row_group(number).num_rows
            if first < piece.stop and piece.start < first + count:
                start = first if start is None else start
                groups.append(number)
            first += count
        return file.read_row_groups(groups).slice(
            piece.start - (start or 0), piece.stop - piece.start
        )
