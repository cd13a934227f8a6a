"""Rows tried again: of committed waves those that failed for a reason of some classes.

The rows come from the metadata once more, as for a run that was cut off, and each wave is found to
be what it was. Its rows of these classes go through the stages, all others stay as they are; then
the wave is written whole, in the order of the metadata, under names of its own, and its record
takes the place of the old one. So a row is in the store once at any moment, and a store whose
failures healed has the bytes of one that never had any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.errors import ConfigError, InputError
from namedmask.run.ledger import Commit, read_commit, write_unit
from namedmask.run.stores import GOOD, file_of, files_of_wave
from namedmask.schema.status import FAILURE_CLASSES, KEPT, failure_class_of
from namedmask.storage import Place
from namedmask.storage.files import digest, read_parquet, row_hashes


def refuse_unknown_classes(failure_classes: Iterable[str]) -> None:
    """Raise ConfigError for a class of failures that there is not."""
    for failure_class in failure_classes:
        if failure_class not in FAILURE_CLASSES:
            raise ConfigError(
                f"--retry: there is no failure class '{failure_class}'; expected one of "
                f"{', '.join(FAILURE_CLASSES)}."
            )


def count_in_classes(counts: Mapping[str, int], failure_classes: Collection[str]) -> int:
    """Return how many rows have a status of one of these classes."""
    return sum(
        count for status, count in counts.items() if failure_class_of(status) in failure_classes
    )


def rows_again(
    read: Callable[[], pa.Table], folder: Place, commit: Commit, failure_classes: Collection[str]
) -> pa.Table:
    """Return the rows of a committed wave: ok where to be tried again, else what they ended as.

    `read` returns them as they were when the wave was begun.

    Raises:
        InputError: a file is unreadable.
    """
    table = read()
    good = read_parquet(folder / file_of(commit, "wave"), ["sample_id"])["sample_id"].to_pylist()
    dead = read_parquet(folder / file_of(commit, "tombstones"), ["sample_id", "status"])
    pairs = zip(dead["sample_id"].to_pylist(), dead["status"].to_pylist(), strict=True)
    # of a url that is there twice the first row is the one that was tried; where that one came,
    # the tombstone is another's
    ended = dict(reversed(list(pairs))) | dict.fromkeys(good, KEPT)
    rows = schema.alive(table)
    tried = [ended.get(one, KEPT) for one in table["sample_id"].take(rows).to_pylist()]
    now = [schema.OK if failure_class_of(status) in failure_classes else status for status in tried]
    return schema.update(table, rows, {"status": now})


def rewrite_wave(folder: Place, store_name: str, unit: str, table: pa.Table) -> Commit:
    """Commit the rows that `rows_again` returned once more, the kept as they are in the store.

    A wave written twice, as when a process was thought lost, ends as one written once.

    Raises:
        InputError: a file is unreadable, or another process writes to the folder.
    """
    commit = read_commit(folder, store_name, unit)
    path = folder / file_of(commit, "wave")
    is_good = pc.is_in(table["status"], pa.array([schema.OK, KEPT]))
    dead = table.filter(pc.invert(is_good))
    new = table.filter(pc.equal(table["status"], schema.OK))
    good = pa.concat_tables([read_parquet(path), schema.conform(new, GOOD[store_name], store_name)])
    places = pc.index_in(table["sample_id"].filter(is_good), good["sample_id"].combine_chunks())
    if places.null_count:
        raise InputError(
            f"{path} has lost {places.null_count} of its rows since they were read. Let one run at "
            "a time write to this run.out, and run the same command again."
        )
    counts = schema.counts_by_status([schema.OK] * len(places) + dead["status"].to_pylist())
    edition = digest(row_hashes(dead, ("sample_id", "status")))[:8]
    files = files_of_wave(store_name, f"{unit}.{edition}", good.take(places), dead)
    if files.keys() == commit.files.keys():
        return commit
    return write_unit(
        folder, store_name, unit, files, rows=commit.rows, counts=counts,
        input_digest=commit.input_digest, over=commit,
    )  # fmt: skip
