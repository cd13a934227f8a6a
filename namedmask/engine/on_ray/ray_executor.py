"""The executor on Ray: waves pass graphs, and other items pass a pool of actors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import ray

from namedmask.config import Config
from namedmask.engine.local import PlainLoop
from namedmask.engine.on_ray.actors import (
    Mapper,
    Read,
    Sink,
    StageAndSink,
    StageWorker,
    WorkRegistry,
    run_in_child,
)
from namedmask.engine.on_ray.graphs import stream
from namedmask.engine.on_ray.metadata_scan import discard_scan, scanned_waves
from namedmask.engine.on_ray.session import Pool, refuse_too_small, session
from namedmask.engine.on_ray.watch import GraphState
from namedmask.run.job import VerbRun
from namedmask.run.progress import Step
from namedmask.run.waves import Wave, Written, header_of, write

T = TypeVar("T")
R = TypeVar("R")

PARTS_PER_ACTOR = 4
"""Largest number of parts of a long list per actor: few to merge, enough to balance the load."""


@contextmanager
def connect(config: Config) -> Iterator[RayExecutor]:
    """Yield an executor on the Ray at `ray.address`, or on a Ray that is started for this block.

    The executor connects to Ray when it first has work, so a verb that is finished needs no Ray.

    Raises:
        InputError: when the executor connects and nothing answers at the address.
    """
    with ExitStack() as stack:
        yield RayExecutor(config, stack)


class RayExecutor:
    """An executor (see run/executor.py) on Ray, which disconnects when `stack` closes."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        actors = config.retrieve.actors[1]
        self.parts = actors * PARTS_PER_ACTOR if actors > 1 else 1

    def _connect(self) -> None:
        if not ray.is_initialized():
            self._stack.enter_context(session(self._config))

    def metadata(self, run: VerbRun) -> Iterator[Wave]:
        """Yield the waves of the metadata after many tasks have read and deduplicated it."""
        self._connect()
        yield from scanned_waves(run)

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Iterator[Written]:
        """Yield the result of each wave, in any order, once its sink has committed the wave.

        A single wave whose stages need no pool passes them in a child process, since a graph takes
        seconds to start.
        """
        if not waves:
            return
        config = run.config
        self._connect()
        cpus = config.metadata.num_cpus
        refuse_too_small([_pool(config, name, StageWorker) for name in stages], cpus)
        listed = list(waves)
        if len(listed) < 2 and all(_needs_no_pool(config, name) for name in stages):
            for wave in listed:
                yield self._run_in_child(run, wave, stages, store_name, step)
            discard_scan(run)
            return
        registry = ray.remote(num_cpus=0)(WorkRegistry).remote(listed)
        target = {"folder": run.ledger.folder.absolute(), "store_name": store_name}
        if len(stages) == 1:
            name = stages[0]
            pools = [_pool(config, name, StageAndSink, name=name, registry=registry, **target)]
        else:
            pools = [
                _pool(config, name, StageWorker, name=name, registry=registry) for name in stages
            ]
            pools.append(Pool("sink", Sink, target))
        reader = Pool("read", Read, {"registry": registry}, num_cpus=cpus)
        state = GraphState()
        for written, seconds in stream(len(listed), reader, pools, config.ray, state):
            for name, spent in seconds.items():
                run.seconds[name] += spent
            step.advance(sum(written.counts.values()), written.counts, state.slowest)
            yield written
        discard_scan(run)

    def _run_in_child(
        self, run: VerbRun, wave: Wave, stages: Sequence[str], store_name: str, step: Step
    ) -> Written:
        rows = wave.read()
        with run.clock("+".join(stages)):
            passed = run_in_child(stages, run.config, rows)
        written = write(run.ledger.folder, store_name, header_of(wave, rows), passed)
        step.advance(passed.num_rows, written.counts)
        return written

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the results of the function that `make` returns, in the order of the items.

        If the section asks for a single actor without a GPU, the work is done in this process.
        """
        config = run.config
        if _needs_no_pool(config, section):
            yield from PlainLoop().map(run, section, make, items)
            return
        self._connect()
        registry = ray.remote(num_cpus=0)(WorkRegistry).remote(list(items))
        pool = _pool(config, section, Mapper, make=make, registry=registry)
        refuse_too_small([pool], 1.0)
        early_results: dict[int, R] = {}
        next_number = 0
        for number, result in stream(len(items), None, [pool], config.ray):
            early_results[number] = result
            while next_number in early_results:
                yield early_results.pop(next_number)
                next_number += 1

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return the result of the function that `make` returns, for one item."""
        return next(iter(self.map(run, section, make, [item])))

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts, many at once; see experts.refine_archive."""
        from namedmask.engine.on_ray.experts import refine_archive

        self._connect()
        return refine_archive(run, clusters)

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter on `train.processes` processes."""
        from namedmask.engine.on_ray.training import train_on_ray

        self._connect()
        train_on_ray(run.config, run.ledger.folder, on_step, run.archive)


def _needs_no_pool(config: Config, section: str) -> bool:
    """Return whether a section asks for a single actor and no GPU."""
    keys = getattr(config, section)
    return keys.actors[1] == 1 and not keys.reserved_gpus


def _pool(config: Config, section: str, worker: type, **arguments: Any) -> Pool:
    """Return a pool with the number of actors and the resources that a config section declares."""
    keys = getattr(config, section)
    arguments["config"] = config
    return Pool(section, worker, arguments, keys.actors, keys.num_cpus, keys.reserved_gpus)
