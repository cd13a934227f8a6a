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
from namedmask.run.ledger import Commit, read_commit
from namedmask.run.stores import GOOD, WaveWriter, file_of
from namedmask.schema.status import FAILURE_CLASSES, KEPT, failure_class_of
from namedmask.storage import Place
from namedmask.storage.files import read_parquet, row_groups


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


class WaveRewriter(WaveWriter):
    """Replaces a committed wave by the rows from `rows_again`, which have passed the stages again.

    Rows with status `kept` are copied from the store. If a process that was wrongly thought dead
    writes the wave a second time, the store does not change.
    """

    def __init__(self, folder: Place, store_name: str, unit: str) -> None:
        """Prepare to replace the wave `unit`.

        Raises:
            InputError: a file is unreadable.
        """
        commit = read_commit(folder, store_name, unit)
        super().__init__(folder, store_name, unit, commit.input_digest, commit)
        self._stored = _StoredRows(folder / file_of(commit, "wave"), GOOD[store_name])

    def add(self, table: pa.Table) -> None:
        """Add rows of the wave, in order.

        Raises:
            InputError: another process writes to the folder.
        """
        is_good = pc.is_in(table["status"], pa.array([schema.OK, KEPT]))
        kept = table["sample_id"].filter(pc.equal(table["status"], KEPT))
        new = table.filter(pc.equal(table["status"], schema.OK))
        stored = self._stored.next_rows(kept.to_pylist())
        good = pa.concat_tables([stored, schema.conform(new, stored.schema, self._store_name)])
        places = pc.index_in(table["sample_id"].filter(is_good), good["sample_id"].combine_chunks())
        self.add_parted(good.take(places), table.filter(pc.invert(is_good)))


class _StoredRows:
    """The good rows of a committed wave, read in order, one row group at a time."""

    def __init__(self, path: Place, rows: pa.Schema) -> None:
        self._path = path
        self._groups = (schema.conform(group, rows, str(path)) for group in row_groups(path))
        self._group = next(self._groups)

    def next_rows(self, ids: list[str]) -> pa.Table:
        """Return the next rows with these sample ids, which are in the order of the file.

        Rows between them are skipped: they are in the file if the wave was replaced before.

        Raises:
            InputError: the file lacks one of the rows, or is unreadable.
        """
        parts = [self._group.slice(0, 0)]
        while ids:
            stored = self._group["sample_id"].combine_chunks()
            places = pc.index_in(pa.array(ids, stored.type), stored).to_pylist()
            found = places.index(None) if None in places else len(places)
            if found:
                parts.append(self._group.take(places[:found]))
                self._group, ids = self._group.slice(places[found - 1] + 1), ids[found:]
            if ids:
                self._group = self._next_group()
        return pa.concat_tables(parts)

    def _next_group(self) -> pa.Table:
        for group in self._groups:
            return group
        raise InputError(
            f"{self._path} has lost some of its rows since they were read. Let only one run at "
            "a time write to this run.out, and run the same command again."
        )
