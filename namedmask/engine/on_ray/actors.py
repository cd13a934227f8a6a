"""The classes that run in the processes of a graph: a reader, the stages, a sink, and a mapper.

A wave travels as one block. The data of the wave as a whole (its unit, its digest, the number of
rows tried, the seconds of each stage) is JSON in the column `_wave`, the same in every row.

Ray restarts a process that dies and gives it the same block again, without limit. So a stage asks
the work registry before each wave whether the stage has begun this wave before. If so, the rows
pass the stage in a child process (see isolated.py), and a row that kills the child is `crashed`.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from namedmask.config import Config
from namedmask.engine.on_ray.isolated import limit_memory, run_isolated
from namedmask.errors import NamedMaskError
from namedmask.run.machine import use_threads
from namedmask.run.stages import batch_size_of, load_stage, stage_class
from namedmask.run.waves import Wave, WaveHeader, header_of, write
from namedmask.storage import Place

HEADER = "_wave"
"""Name of the column that carries a wave's header and the seconds of its stages, as JSON."""

MAP = "map"
"""Name under which a `Mapper` registers its work."""

TRIES = 2
"""Number of processes that one item of a list may kill; then the run ends."""


class WorkRegistry:
    """An actor, one per graph, with the list of work items and a record of those under way."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._begun: dict[tuple[str, str], int] = {}

    def item(self, number: int) -> Any:
        """Return the item at a position of the list."""
        return self._items[number]

    def begin(self, stage: str, unit: str) -> int:
        """Record that a stage begins a unit; return how often it began the unit without ending."""
        earlier = self._begun.get((stage, unit), 0)
        self._begun[stage, unit] = earlier + 1
        return earlier

    def end(self, stage: str, unit: str) -> None:
        """Record that a stage has ended a unit."""
        self._begun.pop((stage, unit), None)

    def active(self) -> int:
        """Return the number of pairs of stage and unit that have begun and not ended."""
        return len(self._begun)


class Read:
    """Reader: the number of a wave in, its rows with the header column out."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave whose number is in column `id` of the only row."""
        wave: Wave = ray.get(self._registry.item.remote(table["id"][0].as_py()))
        rows = wave.read()
        return with_header(rows, header_of(wave, rows), {})


class StageWorker:
    """A stage of a graph, in a process of its own."""

    def __init__(self, name: str, config: Config, registry: Any) -> None:
        self._name, self._registry = name, registry
        self._make = partial(load_stage_here, name, config)
        self._adds = stage_class(name).adds
        self._batch_size = batch_size_of((name,), config)
        self._memory_bytes = memory_limit(config)
        limit_memory(self._memory_bytes)
        # an error of the constructor would reach the driver as text only: the first call raises it
        self._broken: NamedMaskError | None = None
        try:
            self._stage = self._make()
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave with the columns that the stage adds."""
        if self._broken:
            raise self._broken
        header, seconds, rows = without_header(table)
        earlier = ray.get(self._registry.begin.remote(self._name, header.unit))
        began = time.perf_counter()
        rows = self._run_in_child(rows) if earlier else self._run_here(rows)
        seconds[self._name] = time.perf_counter() - began
        self._registry.end.remote(self._name, header.unit)
        return with_header(rows, header, seconds)

    def _run_here(self, rows: pa.Table) -> pa.Table:
        try:
            return self._stage(rows)
        except MemoryError:
            return self._run_in_child(rows)

    def _run_in_child(self, rows: pa.Table) -> pa.Table:
        make = pickle.dumps(self._make)
        return run_isolated(make, rows, self._adds, self._batch_size, self._memory_bytes)


class Sink:
    """Sink: a wave that has passed all stages in, its result out, once it is committed."""

    def __init__(self, folder: Place, store_name: str) -> None:
        self._folder, self._store_name = folder, store_name

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row: the pickled (Written, seconds by stage)."""
        header, seconds, rows = without_header(table)
        written = write(self._folder, self._store_name, header, rows)
        return pickled((written, seconds))


class StageAndSink:
    """The only stage of a graph and its sink in one process, which saves copies of the images."""

    def __init__(
        self, name: str, config: Config, registry: Any, *, folder: Place, store_name: str
    ) -> None:
        self._stage, self._sink = StageWorker(name, config, registry), Sink(folder, store_name)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row, as `Sink` does."""
        return self._sink(self._stage(table))


class Mapper:
    """Mapper: the number of an item in, the pickled (number, result of the function) out."""

    def __init__(
        self, make: Callable[[], Callable[[Any], Any]], registry: Any, config: Config
    ) -> None:
        self._registry = registry
        self._broken: NamedMaskError | None = None
        try:
            self._function = make()
            use_threads(config)
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row for the item whose number is in column `id` of the only row."""
        if self._broken:
            raise self._broken
        number = table["id"][0].as_py()
        unit = f"{number:05d}"
        earlier = ray.get(self._registry.begin.remote(MAP, unit))
        if earlier >= TRIES:  # an item has no rows of which one could be marked as crashed
            raise NamedMaskError(
                f"part {number} killed its process {earlier} times, perhaps for lack of memory. "
                "Lower actors of its section, or ray.num_cpus."
            )
        result = self._function(ray.get(self._registry.item.remote(number)))
        self._registry.end.remote(MAP, unit)
        return pickled((number, result))


class Chain:
    """Several stages, one after the other, in one process."""

    def __init__(self, names: Sequence[str], config: Config) -> None:
        self._stages = [load_stage_here(name, config) for name in names]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave with the columns that all stages add."""
        for stage in self._stages:
            table = stage(table)
        return table


def run_in_child(names: Sequence[str], config: Config, rows: pa.Table) -> pa.Table:
    """Return the wave after the stages, which run in a single child of this process."""
    adds = [column for name in names for column in stage_class(name).adds]
    make = pickle.dumps(partial(Chain, names, config))
    return run_isolated(make, rows, adds, batch_size_of(names, config), memory_limit(config))


def load_stage_here(name: str, config: Config) -> Any:
    """Return a stage, loaded in this process, with the number of threads that the config allows."""
    stage = load_stage(name, config)
    use_threads(config)
    return stage


def memory_limit(config: Config) -> int:
    """Return the number of bytes that a process of a stage may allocate.

    The default is 60 % of the machine's memory.
    """
    if config.ray.memory_limit_gb:
        return int(config.ray.memory_limit_gb * 2**30)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 6 // 10


def with_header(rows: pa.Table, header: WaveHeader, seconds: dict[str, float]) -> pa.Table:
    """Return the rows with the header of their wave in a column, the same in every row."""
    text = pa.array([json.dumps({"header": asdict(header), "seconds": seconds})])
    column = pa.DictionaryArray.from_arrays(np.zeros(rows.num_rows, np.int32), text)
    return rows.append_column(HEADER, column)


def without_header(table: pa.Table) -> tuple[WaveHeader, dict[str, float], pa.Table]:
    """Return the header of a wave, the seconds per stage so far, and the rows without both."""
    carried = json.loads(table[HEADER][0].as_py())
    return WaveHeader(**carried["header"]), carried["seconds"], table.drop_columns(HEADER)


def pickled(value: object) -> pa.Table:
    """Return a table whose only row holds the pickled value."""
    return pa.table({"value": pa.array([pickle.dumps(value)], pa.large_binary())})
