"""Retry of the rows of committed waves that failed with a status of given failure classes.

The metadata is read again, as when a run is resumed, and each wave is checked to be unchanged. The
rows of these failure classes pass the stages again; all other rows stay unchanged. Then the whole
wave is written in the order of the metadata, under new file names, and its new commit record
replaces the old record. Each row is therefore in the store exactly once at any moment. If all
retried rows succeed, the files have the same bytes as after a run without failures.
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
    """Raise ConfigError if a name is not that of a failure class (schema.status)."""
    for failure_class in failure_classes:
        if failure_class not in FAILURE_CLASSES:
            raise ConfigError(
                f"--retry: there is no failure class '{failure_class}'; expected one of "
                f"{', '.join(FAILURE_CLASSES)}."
            )


def count_in_classes(counts: Mapping[str, int], failure_classes: Collection[str]) -> int:
    """Return the number of rows with a status in these failure classes; `counts` is by status."""
    return sum(
        count for status, count in counts.items() if failure_class_of(status) in failure_classes
    )


def rows_again(
    read: Callable[[], pa.Table], folder: Place, commit: Commit, failure_classes: Collection[str]
) -> pa.Table:
    """Return all rows of a committed wave as input of the stages.

    The rows to retry have the status `ok`. Good rows of the store have the status `kept`, and all
    other rows their recorded status. `read` returns the rows as they were before the wave passed
    the stages for the first time.

    Raises:
        InputError: a file is unreadable.
    """
    table = read()
    good = read_parquet(folder / file_of(commit, "wave"), ["sample_id"])["sample_id"].to_pylist()
    dead = read_parquet(folder / file_of(commit, "tombstones"), ["sample_id", "status"])
    pairs = zip(dead["sample_id"].to_pylist(), dead["status"].to_pylist(), strict=True)
    # If a wave has a url twice, only the first row was tried. The first row is either good or has
    # the first tombstone, and the other tombstones of the url are ignored.
    recorded = dict(reversed(list(pairs))) | dict.fromkeys(good, KEPT)
    rows = schema.alive(table)
    old = [recorded.get(sample_id, KEPT) for sample_id in table["sample_id"].take(rows).to_pylist()]
    new = [schema.OK if failure_class_of(status) in failure_classes else status for status in old]
    return schema.update(table, rows, {"status": new})


def rewrite_wave(folder: Place, store_name: str, unit: str, table: pa.Table) -> Commit:
    """Replace a committed wave by the rows from `rows_again`, which have passed the stages again.

    Return the new commit record. Rows with status `kept` are copied from the store. If a process
    that was wrongly thought dead writes the wave a second time, the store does not change.

    Raises:
        InputError: a file is unreadable, or another process writes to the folder.
    """
    commit = read_commit(folder, store_name, unit)
    path = folder / file_of(commit, "wave")
    is_good = pc.is_in(table["status"], pa.array([schema.OK, KEPT]))
    dead = table.filter(pc.invert(is_good))
    new = table.filter(pc.equal(table["status"], schema.OK))
    kept = schema.conform(read_parquet(path), GOOD[store_name], str(path))
    good = pa.concat_tables([kept, schema.conform(new, GOOD[store_name], store_name)])
    places = pc.index_in(table["sample_id"].filter(is_good), good["sample_id"].combine_chunks())
    if places.null_count:
        raise InputError(
            f"{path} has lost {places.null_count} of its rows since they were read. Let only one "
            "run at a time write to this run.out, and run the same command again."
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
