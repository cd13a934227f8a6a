"""Metadata read and deduplicated by many: tables → waves that can be read anywhere.

Two rounds of tasks. A *scan* reads one table, cleans it, keeps the clean rows in the run folder's
`metadata`, and deals its url digests out to as many hands as there are CPUs. Each *hand* has all
digests that begin alike, in the order of the tables, and names the rows that repeat an earlier one.
So the first row of a url is the same one as in the plain loop, and no process holds all urls.

The clean rows are there for the waves alone and go when the verb is done; a run that was cut off
scans again, and finds out whether its sources have changed.

Memory: 18 bytes a url over all hands, 8 bytes a repeated row in the driver.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a file of clean metadata."""

    path: Place
    start: int
    stop: int


def scanned_waves(run: VerbRun) -> list[Wave]:
    """Return the waves of all metadata, the same rows in each as `metadata.waves` has.

    Raises:
        ConfigError, SchemaError, InputError: as `metadata.read_metadata`.
    """
    config = run.config.metadata
    folder = run.ledger.folder.absolute() / layout.CLEAN_METADATA
    remove_tree(folder)
    places = sources.places_of(config.source)
    hands = max(1, int(ray.cluster_resources().get("CPU", 1)))
    paths = [folder / f"{number:05d}.parquet" for number in range(len(places))]
    scan: Any = ray.remote(num_cpus=config.num_cpus, num_returns=hands + 1)(_scan)
    counted, dealt = [], []
    clerk = ray.remote(num_cpus=0)(WorkRegistry).remote(places)
    for place, path in zip(places, paths, strict=True):
        count, *digests = scan.remote(place, path, config, hands, clerk)
        counted.append(count)
        dealt.append(digests)
    find: Any = ray.remote(num_cpus=config.num_cpus)(_repeated)
    found = [find.remote(*of_one_hand) for of_one_hand in zip(*dealt, strict=True)]
    try:
        counts: list[int] = gather(counted, clerk, "reading the metadata", run.config.ray)
        repeated = np.concatenate(ray.get(found))
    except ray.exceptions.RayError as error:
        raise own_error(error) or error from error
    return _cut(paths, counts, repeated, run.config.run.wave_rows, config.max_rows)


def discard_scan(run: VerbRun) -> None:
    """Remove the clean rows, once every wave is committed."""
    remove_tree(run.ledger.folder / layout.CLEAN_METADATA)


def _scan(
    place: str, path: Place, config: MetadataConfig, hands: int, clerk: Any
) -> tuple[Any, ...]:
    """Write the clean rows of a table; return their number, then the digests for each hand.

    The digests of a hand are (rows (N,) int64, digests (N,) S10).
    """
    ray.get(clerk.begin.remote("scan", place))
    count, rows, digests = 0, [np.empty(0, np.int64)], [np.empty(0, "S10")]
    with replaced(path) as part, pq.ParquetWriter(part, schema.METADATA) as writer:
        for table in metadata.clean_place(place, config):
            if config.max_rows:
                table = table.slice(0, config.max_rows - count)
            writer.write_table(table, ROWS_PER_GROUP)
            with_url, of_url = metadata.url_digests(table)
            rows.append(with_url + count)
            digests.append(of_url)
            count += table.num_rows
            if config.max_rows and count >= config.max_rows:
                break
    clerk.end.remote("scan", place)
    all_rows, all_digests = np.concatenate(rows), np.concatenate(digests)
    hand = all_digests.view(np.uint8).reshape(-1, 10)[:, 0].astype(np.int64) * hands // 256
    return count, *((all_rows[hand == one], all_digests[hand == one]) for one in range(hands))


def _repeated(*tables: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return (table, row), (N, 2) int64, of each digest that an earlier row has too."""
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
    """Return the waves: rows cut every `wave_rows`, across the borders of files."""
    firsts = np.array([0, *accumulate(counts)])
    total = min(int(firsts[-1]), max_rows or int(firsts[-1]))
    everywhere = np.sort(firsts[repeated[:, 0]] + repeated[:, 1])
    waves = []
    for number, start in enumerate(range(0, total, wave_rows)):
        stop = min(start + wave_rows, total)
        begin, end = np.searchsorted(everywhere, [start, stop])
        pieces = [
            Piece(path, max(start, first) - first, min(stop, first + count) - first)
            for path, first, count in zip(paths, firsts[:-1].tolist(), counts, strict=True)
            if first < stop and start < first + count
        ]
        read = partial(_read, pieces, everywhere[begin:end] - start)
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
