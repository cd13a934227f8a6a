"""What the processes of a graph do: a reader, the stages, a sink; and a mapper for everything else.

A wave travels as one block. What belongs to all of it (its unit, its digest, how many rows were to
be tried, the seconds each stage took) stands as JSON in the column `_wave`, the same in every row.

A process that is lost is begun again by Ray, and its block given to it again, without end. So a
stage asks before each wave whether it was begun before; if it was, it goes on carefully (see
careful.py), and a row that kills it a second time is `crashed`.
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
"""The column that carries the header of a wave and the seconds of its stages, as JSON."""

MAP = "map"

TRIES = 2
"""Processes that a part of a list may take with it."""


class WorkRegistry:
    """Has the list of what is to be done, and knows who has begun what; one a graph."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._begun: dict[tuple[str, str], int] = {}

    def item(self, number: int) -> Any:
        """Return an item of the list."""
        return self._items[number]

    def begin(self, stage: str, unit: str) -> int:
        """Return how often this was begun before and not ended."""
        earlier = self._begun.get((stage, unit), 0)
        self._begun[stage, unit] = earlier + 1
        return earlier

    def end(self, stage: str, unit: str) -> None:
        """Forget it."""
        self._begun.pop((stage, unit), None)

    def active(self) -> int:
        """Return how many have begun and not ended."""
        return len(self._begun)


class Read:
    """Number of a wave → its rows, with the header that travels with them."""

    def __init__(self, clerk: Any) -> None:
        self._clerk = clerk

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave whose number is in `id`."""
        wave: Wave = ray.get(self._clerk.item.remote(table["id"][0].as_py()))
        rows = wave.read()
        return with_header(rows, header_of(wave, rows), {})


class StageWorker:
    """A stage in a process of its own, for graphs."""

    def __init__(self, name: str, config: Config, clerk: Any) -> None:
        self._name, self._clerk = name, clerk
        self._make = partial(load_stage_here, name, config)
        self._adds = stage_class(name).adds
        self._batch_size = batch_size_of((name,), config)
        self._memory_bytes = memory_limit(config)
        limit_memory(self._memory_bytes)
        # from a constructor an error would reach the driver as text only
        self._broken: NamedMaskError | None = None
        try:
            self._stage = self._make()
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave with what the stage adds."""
        if self._broken:
            raise self._broken
        header, seconds, rows = without_header(table)
        earlier = ray.get(self._clerk.begin.remote(self._name, header.unit))
        began = time.perf_counter()
        rows = self._carefully(rows) if earlier else self._plainly(rows)
        seconds[self._name] = time.perf_counter() - began
        self._clerk.end.remote(self._name, header.unit)
        return with_header(rows, header, seconds)

    def _plainly(self, rows: pa.Table) -> pa.Table:
        try:
            return self._stage(rows)
        except MemoryError:
            return self._carefully(rows)

    def _carefully(self, rows: pa.Table) -> pa.Table:
        make = pickle.dumps(self._make)
        return run_isolated(make, rows, self._adds, self._batch_size, self._memory_bytes)


class Sink:
    """A wave that has passed all stages → what became of it, once it is committed."""

    def __init__(self, folder: Place, store_name: str) -> None:
        self._folder, self._store_name = folder, store_name

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row: the pickled (Written, seconds by stage)."""
        header, seconds, rows = without_header(table)
        written = write(self._folder, self._store_name, header, rows)
        return pickled((written, seconds))


class StageAndSink:
    """A stage that is its graph's only one and the sink, in one process: no image travels."""

    def __init__(
        self, name: str, config: Config, clerk: Any, *, folder: Place, store_name: str
    ) -> None:
        self._stage, self._sink = StageWorker(name, config, clerk), Sink(folder, store_name)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row, as the sink."""
        return self._sink(self._stage(table))


class Mapper:
    """Number of an item → the pickled (number, what the function makes of the item)."""

    def __init__(
        self, make: Callable[[], Callable[[Any], Any]], clerk: Any, config: Config
    ) -> None:
        self._clerk = clerk
        self._broken: NamedMaskError | None = None
        try:
            self._function = make()
            use_threads(config)
        except NamedMaskError as error:
            self._broken = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return one row."""
        if self._broken:
            raise self._broken
        number = table["id"][0].as_py()
        unit = f"{number:05d}"
        earlier = ray.get(self._clerk.begin.remote(MAP, unit))
        if earlier >= TRIES:  # there is no row to bury here
            raise NamedMaskError(
                f"part {number} took its process with it {earlier} times. Is there memory for it? "
                "Lower actors of its section, or ray.num_cpus."
            )
        found = self._function(ray.get(self._clerk.item.remote(number)))
        self._clerk.end.remote(MAP, unit)
        return pickled((number, found))


class Chain:
    """Some stages one after the other, in one process."""

    def __init__(self, names: Sequence[str], config: Config) -> None:
        self._stages = [load_stage_here(name, config) for name in names]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the wave with what all of them add."""
        for stage in self._stages:
            table = stage(table)
        return table


def run_alone(names: Sequence[str], config: Config, rows: pa.Table) -> pa.Table:
    """Return the wave as the stages leave it, passed through one child of this process."""
    adds = [column for name in names for column in stage_class(name).adds]
    make = pickle.dumps(partial(Chain, names, config))
    return run_isolated(make, rows, adds, batch_size_of(names, config), memory_limit(config))


def load_stage_here(name: str, config: Config) -> Any:
    """Return a stage in this process, with the threads the config allows."""
    stage = load_stage(name, config)
    use_threads(config)
    return stage


def memory_limit(config: Config) -> int:
    """Return the bytes a process of a stage may allocate."""
    if config.ray.memory_limit_gb:
        return int(config.ray.memory_limit_gb * 2**30)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 6 // 10


def with_header(rows: pa.Table, header: WaveHeader, seconds: dict[str, float]) -> pa.Table:
    """Return the rows with the header of their wave, the same in every row."""
    text = pa.array([json.dumps({"header": asdict(header), "seconds": seconds})])
    column = pa.DictionaryArray.from_arrays(np.zeros(rows.num_rows, np.int32), text)
    return rows.append_column(HEADER, column)


def without_header(table: pa.Table) -> tuple[WaveHeader, dict[str, float], pa.Table]:
    """Return the header of a wave, the seconds by stage so far, and the rows alone."""
    carried = json.loads(table[HEADER][0].as_py())
    return WaveHeader(**carried["header"]), carried["seconds"], table.drop_columns(HEADER)


def pickled(value: object) -> pa.Table:
    """Return a table of one row that holds a value."""
    return pa.table({"value": pa.array([pickle.dumps(value)], pa.large_binary())})
