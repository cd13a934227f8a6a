"""The classes that run in the processes of a graph: a reader, the stages, a sink, and a mapper.

A wave enters the graph in one parcel (see parcels.py). The fetch divides it into slices, whose
images are limited in bytes, and the sinks join the slices again.

Ray restarts a process that dies and gives it the same block again, without limit. Before each
slice, a stage therefore asks the work registry whether it has begun this slice before. If so, the
rows pass the stage in a child process (see isolated.py), and a row that kills the child is
`crashed`.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from namedmask.config import Config
from namedmask.engine.on_ray.isolated import limit_memory, run_isolated
from namedmask.engine.on_ray.parcels import Parcel, from_bytes, pack, to_bytes, unpack
from namedmask.errors import NamedMaskError
from namedmask.images.limits import within
from namedmask.run.layout import part_file
from namedmask.run.machine import memory_bytes, use_threads
from namedmask.run.stages import batch_size_of, open_stage, opened, processes_here, stage_class
from namedmask.run.waves import Wave, WaveHeader, Written, header_of, write, written_before
from namedmask.storage import Place
from namedmask.storage.files import blob_bytes, write_file

MAP = "map"
"""Name under which a `Mapper` registers its work."""

TRIES = 2
"""Number of processes that an item of a list may kill before the run ends with an error."""


class WorkRegistry:
    """An actor, one per graph, with the list of work items and a record of work in progress."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._begun: dict[tuple[str, str], int] = {}
        self._cuts: dict[str, list[int]] = {}
        self._parts: dict[str, dict[int, Parcel]] = {}

    def item(self, number: int) -> Any:
        """Return the item at a position of the list."""
        return self._items[number]

    def begin(self, stage: str, unit: str) -> int:
        """Record that a stage begins a unit; return how many earlier attempts did not end."""
        earlier = self._begun.get((stage, unit), 0)
        self._begun[stage, unit] = earlier + 1
        return earlier

    def end(self, stage: str, unit: str) -> None:
        """Record that a stage has ended a unit."""
        self._begun.pop((stage, unit), None)

    def cuts(self, unit: str) -> list[int]:
        """Return the ends of the slices into which a fetch has cut a unit, as numbers of rows."""
        return self._cuts.get(unit, [])

    def add_cut(self, unit: str, end: int) -> None:
        """Record the end of the next slice of a unit."""
        self._cuts.setdefault(unit, []).append(end)

    def add_part(self, parcel: Parcel) -> list[Parcel]:
        """Record that a slice of a wave is written; return all slices, in order, if all are."""
        parts = self._parts.setdefault(parcel.header.unit, {})
        parts[parcel.number] = parcel
        complete = sum(part.rows for part in parts.values()) == parcel.header.rows
        return [parts[number] for number in sorted(parts)] if complete else []

    def active(self) -> int:
        """Return the number of (stage, unit) pairs that are in progress."""
        return len(self._begun)


class Read:
    """A reader, which turns the number of a wave into a parcel with all its rows."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of a wave; `table` has one row with the number of the wave in `id`."""
        wave: Wave = ray.get(self._registry.item.remote(table["id"][0].as_py()))
        rows = wave.read()
        return pack(Parcel(header_of(wave, rows), 0, 0, rows.num_rows, {}), rows)


class StageWorker:
    """A stage of a graph, which runs in a process of its own."""

    def __init__(self, name: str, config: Config, registry: Any) -> None:
        self._name, self._registry = name, registry
        self._make = partial(load_stage_here, name, config)
        self._adds = stage_class(name).adds
        self._batch_size = batch_size_of((name,), config)
        self._memory_bytes = memory_limit(config)
        limit_memory(self._memory_bytes)
        # an error of the constructor reaches the driver only as text, so the first call raises it
        self._broken: NamedMaskError | None = None
        try:
            self._stage = self._make()
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Yield the parcels of a block with the columns that the stage adds."""
        for parcel, rows in unpack(block):
            yield from (pack(*passed) for passed in self.passed(parcel, rows))

    def passed(self, parcel: Parcel, rows: pa.Table) -> Iterator[tuple[Parcel, pa.Table]]:
        """Yield the rows of a parcel after the stage, in one parcel or, after a fetch, in several.

        If Ray runs a fetch again, it takes the new parcels for those of the first time. So they
        must have the same rows as then, which the registry knows.
        """
        if self._broken:
            raise self._broken
        earlier = ray.get(self._registry.begin.remote(self._name, parcel.name))
        tables = self._tables(parcel, rows, alone=bool(earlier))
        first, began = parcel.first, time.perf_counter()
        for number, table in enumerate(tables, parcel.number):
            seconds = {**parcel.seconds, self._name: time.perf_counter() - began}
            yield Parcel(parcel.header, number, first, table.num_rows, seconds), table
            first, began = first + table.num_rows, time.perf_counter()
        self._registry.end.remote(self._name, parcel.name)

    def _tables(self, parcel: Parcel, rows: pa.Table, alone: bool) -> Iterator[pa.Table]:
        """Yield the rows after the stage; with `alone`, in a child process that a row may kill."""
        run = partial(self._run_in_child if alone else self._run_here, parcel.header.rows)
        if not hasattr(self._stage, "slices"):
            yield pa.concat_tables(list(run(rows)), promote_options="default")
            return
        start = 0
        for end in ray.get(self._registry.cuts.remote(parcel.name)):
            known = rows.slice(start, end - start)
            yield pa.concat_tables(list(run(known)), promote_options="default")
            start = end
        for table in self._in_slices(run(rows.slice(start)) if start < rows.num_rows else ()):
            start += table.num_rows
            ray.get(self._registry.add_cut.remote(parcel.name, start))
            yield table

    def _in_slices(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield tables joined to slices of about half of `limits.encoded_bytes`."""
        limit = self._stage.limits.encoded_bytes // 2
        for part in within(tables, lambda table: int(blob_bytes(table).sum()), limit):
            yield pa.concat_tables(part, promote_options="default")

    def _run_here(self, wave_rows: int, rows: pa.Table) -> Iterator[pa.Table]:
        try:
            done = 0
            slices = getattr(self._stage, "slices", lambda table: iter([self._stage(table)]))
            for table in slices(rows):
                yield table
                done += table.num_rows
        except MemoryError:
            yield from self._run_in_child(wave_rows, rows.slice(done))

    def _run_in_child(self, wave_rows: int, rows: pa.Table) -> Iterator[pa.Table]:
        make = pickle.dumps(self._make)
        return run_isolated(make, rows, self._adds, self._batch_size, self._memory_bytes, wave_rows)


class Sink:
    """A sink, which commits the waves that have passed all stages, and returns their results.

    The slices of a wave may come in any order and to several sinks. Each is written to the store as
    a part, and the sink that writes the last one commits the wave. A wave in one slice has no part.
    """

    def __init__(self, folder: Place, store_name: str, registry: Any = None) -> None:
        self._folder, self._store_name, self._registry = folder, store_name, registry

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return one row, the pickled pair (Written, seconds by stage), per wave that is done."""
        results = [self._taken(parcel, rows) for parcel, rows in unpack(block)]
        return pickled(*(result for result in results if result))

    def write(
        self, header: WaveHeader, slices: Iterable[pa.Table], seconds: Mapping[str, float]
    ) -> pa.Table:
        """Commit a wave; return one row, as `__call__`."""
        return pickled((write(self._folder, self._store_name, header, slices), seconds))

    def _taken(self, parcel: Parcel, rows: pa.Table) -> tuple[Written, Mapping[str, float]] | None:
        header = parcel.header
        if parcel.rows == header.rows:
            return write(self._folder, self._store_name, header, [rows]), parcel.seconds
        if done := written_before(self._folder, self._store_name, header):
            return done, {}
        path = self._folder / part_file(self._store_name, header.unit, parcel.number)
        write_file(path, to_bytes(rows).to_pybytes())
        parts = ray.get(self._registry.add_part.remote(parcel))
        if not parts:
            return None
        paths = [
            self._folder / part_file(self._store_name, header.unit, part.number) for part in parts
        ]
        slices = (from_bytes(path.read_bytes()) for path in paths)
        written = write(self._folder, self._store_name, header, slices)
        if not header.again:  # a wave that replaces another can be committed twice with its parts
            for path in paths:
                path.unlink(missing_ok=True)
        seconds = Counter[str]()
        for part in parts:
            seconds.update(part.seconds)
        return written, dict(seconds)


class StageAndSink:
    """A single stage and its sink in one process, so that the images are not copied between two."""

    def __init__(
        self, name: str, config: Config, registry: Any, *, folder: Place, store_name: str
    ) -> None:
        self._stage, self._sink = StageWorker(name, config, registry), Sink(folder, store_name)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Yield one row per wave, as `Sink` returns it."""
        for parcel, rows in unpack(block):
            seconds = Counter[str]()
            passed = self._counted(self._stage.passed(parcel, rows), seconds)
            yield self._sink.write(parcel.header, passed, seconds)

    @staticmethod
    def _counted(
        passed: Iterable[tuple[Parcel, pa.Table]], seconds: Counter[str]
    ) -> Iterator[pa.Table]:
        for parcel, table in passed:
            seconds.update(parcel.seconds)
            yield table


class Mapper:
    """A mapper, which calls the function that `make` returns on the item with a given number."""

    def __init__(
        self, make: Callable[[], Callable[[Any], Any]], registry: Any, config: Config
    ) -> None:
        self._registry = registry
        self._broken: NamedMaskError | None = None
        try:
            self._function = opened(make, "a model of this step")
            use_threads(config)
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row, the pickled pair (number, result); `table` has one row with `id`.

        Raises:
            NamedMaskError: `make` failed, or the item has killed `TRIES` processes.
        """
        if self._broken:
            raise self._broken
        number = table["id"][0].as_py()
        unit = f"{number:05d}"
        earlier = ray.get(self._registry.begin.remote(MAP, unit))
        if earlier >= TRIES:  # an item has no rows that could be marked as crashed
            raise NamedMaskError(
                f"part {number} killed its process {earlier} times, perhaps for lack of memory. "
                "Lower `actors` in its section, or ray.num_cpus."
            )
        result = self._function(ray.get(self._registry.item.remote(number)))
        self._registry.end.remote(MAP, unit)
        return pickled((number, result))


class Chain:
    """Several stages that run one after the other in one process, the first of which fetches."""

    def __init__(self, names: Sequence[str], config: Config) -> None:
        self._fetch, *self._stages = [load_stage_here(name, config) for name in names]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of the wave with the columns that the stages add."""
        parts = []
        for part in self._fetch.slices(table):
            for stage in self._stages:
                part = stage(part)
            parts.append(part)
        return pa.concat_tables(parts)


def run_in_child(names: Sequence[str], config: Config, rows: pa.Table) -> Iterator[pa.Table]:
    """Yield the rows of a wave after the stages, which run in a child of this process."""
    adds = [column for name in names for column in stage_class(name).adds]
    make = pickle.dumps(partial(Chain, names, config))
    return run_isolated(make, rows, adds, batch_size_of(names, config), memory_limit(config))


def load_stage_here(name: str, config: Config) -> Any:
    """Load a stage in this process, limit its threads as configured, and return it."""
    stage = open_stage(name, config, processes_here(config))
    use_threads(config)
    return stage


def memory_limit(config: Config) -> int:
    """Return the number of bytes that a process of a stage may allocate.

    The default is 60 % of the memory that this process may use.
    """
    if config.ray.memory_limit_gb:
        return int(config.ray.memory_limit_gb * 2**30)
    return memory_bytes() * 6 // 10


def pickled(*values: object) -> pa.Table:
    """Return a table with one row per value, which is pickled."""
    return pa.table(
        {"value": pa.array([pickle.dumps(value) for value in values], pa.large_binary())}
    )
