"""The classes that run in the processes of a graph: a reader, the stages, a sink, and a mapper.

A wave is one block of Ray Data. The data about the wave as a whole (its header, and the seconds per
stage) is JSON in the column `_wave`, the same in every row.

Ray restarts a process that dies and gives it the same block again, without limit. Before each wave,
a stage therefore asks the work registry whether it has begun this wave before. If so, the rows pass
the stage in a child process (see isolated.py), and a row that kills the child is `crashed`.
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
from namedmask.run.stages import batch_size_of, open_stage, opened, stage_class
from namedmask.run.waves import Wave, WaveHeader, header_of, write
from namedmask.storage import Place

HEADER = "_wave"
"""Name of the column that carries a wave's header and the seconds of its stages, as JSON."""

MAP = "map"
"""Name under which a `Mapper` registers its work."""

TRIES = 2
"""Number of processes that an item of a list may kill before the run ends with an error."""


class WorkRegistry:
    """An actor, one per graph, with the list of work items and a record of work in progress."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._begun: dict[tuple[str, str], int] = {}

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

    def active(self) -> int:
        """Return the number of (stage, unit) pairs that are in progress."""
        return len(self._begun)


class Read:
    """A reader, which turns the number of a wave into its rows, with the header column."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of a wave; `table` has one row with the number of the wave in `id`."""
        wave: Wave = ray.get(self._registry.item.remote(table["id"][0].as_py()))
        rows = wave.read()
        return with_header(rows, header_of(wave, rows), {})


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

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of the wave with the columns that the stage adds."""
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
    """A sink, which commits a wave that has passed all stages, and returns its result."""

    def __init__(self, folder: Place, store_name: str) -> None:
        self._folder, self._store_name = folder, store_name

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row, the pickled pair (Written, seconds by stage)."""
        header, seconds, rows = without_header(table)
        written = write(self._folder, self._store_name, header, rows)
        return pickled((written, seconds))


class StageAndSink:
    """A single stage and its sink in one process, so that the images are not copied between two."""

    def __init__(
        self, name: str, config: Config, registry: Any, *, folder: Place, store_name: str
    ) -> None:
        self._stage, self._sink = StageWorker(name, config, registry), Sink(folder, store_name)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row, as `Sink` returns it."""
        return self._sink(self._stage(table))


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
    """Several stages that run one after the other in one process."""

    def __init__(self, names: Sequence[str], config: Config) -> None:
        self._stages = [load_stage_here(name, config) for name in names]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows of the wave with the columns that the stages add."""
        for stage in self._stages:
            table = stage(table)
        return table


def run_in_child(names: Sequence[str], config: Config, rows: pa.Table) -> pa.Table:
    """Return the rows of a wave after the stages, which run in a child of this process."""
    adds = [column for name in names for column in stage_class(name).adds]
    make = pickle.dumps(partial(Chain, names, config))
    return run_isolated(make, rows, adds, batch_size_of(names, config), memory_limit(config))


def load_stage_here(name: str, config: Config) -> Any:
    """Load a stage in this process, limit its threads as configured, and return it."""
    stage = open_stage(name, config)
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
    """Return the rows with the column `HEADER`, which is the same in every row."""
    text = pa.array([json.dumps({"header": asdict(header), "seconds": seconds})])
    column = pa.DictionaryArray.from_arrays(np.zeros(rows.num_rows, np.int32), text)
    return rows.append_column(HEADER, column)


def without_header(table: pa.Table) -> tuple[WaveHeader, dict[str, float], pa.Table]:
    """Return the header of a wave, its seconds by stage, and its rows without the header column."""
    carried = json.loads(table[HEADER][0].as_py())
    return WaveHeader(**carried["header"]), carried["seconds"], table.drop_columns(HEADER)


def pickled(value: object) -> pa.Table:
    """Return a table whose only row holds the pickled value."""
    return pa.table({"value": pa.array([pickle.dumps(value)], pa.large_binary())})
