"""The verbs' work done on a cluster: waves through graphs, items through a pool."""

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
    run_alone,
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

PARTS_AN_ACTOR = 4
"""Parts of a long list for each actor at most: few enough to merge, enough to even out."""


@contextmanager
def connect(config: Config) -> Iterator[RayExecutor]:
    """Yield an executor on the Ray of `ray.address`, or on one begun for this block.

    Ray is looked for when there is work: a verb that is finished needs none.

    Raises:
        InputError: on the way, nothing answers at the address.
    """
    with ExitStack() as stack:
        yield RayExecutor(config, stack)


class RayExecutor:
    """An executor (see executor.py) on a Ray that is left when `stack` closes."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        actors = config.retrieve.actors[1]
        self.parts = actors * PARTS_AN_ACTOR if actors > 1 else 1

    def _connect(self) -> None:
        if not ray.is_initialized():
            self._stack.enter_context(session(self._config))

    def metadata(self, run: VerbRun) -> Iterator[Wave]:
        """Yield the waves of the metadata, once many tasks have read and deduplicated it."""
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
        """Yield what became of each wave, in any order, once its sink has committed it.

        A single wave that needs no pool goes through a child process: a graph costs seconds.
        """
        if not waves:
            return
        config = run.config
        self._connect()
        cpus = config.metadata.num_cpus
        refuse_too_small([_pool(config, name, StageWorker) for name in stages], cpus)
        listed = list(waves)
        if len(listed) < 2 and all(_is_alone(config, name) for name in stages):
            for wave in listed:
                yield self._alone(run, wave, stages, store_name, step)
            discard_scan(run)
            return
        clerk = ray.remote(num_cpus=0)(WorkRegistry).remote(listed)
        into = {"folder": run.ledger.folder.absolute(), "store_name": store_name}
        if len(stages) == 1:
            name = stages[0]
            pools = [_pool(config, name, StageAndSink, name=name, clerk=clerk, **into)]
        else:
            pools = [_pool(config, name, StageWorker, name=name, clerk=clerk) for name in stages]
            pools.append(Pool("sink", Sink, into))
        reader = Pool("read", Read, {"clerk": clerk}, num_cpus=cpus)
        seen = GraphState()
        for written, seconds in stream(len(listed), reader, pools, config.ray, seen):
            for name, spent in seconds.items():
                run.seconds[name] += spent
            step.advance(sum(written.counts.values()), written.counts, seen.slowest)
            yield written
        discard_scan(run)

    def _alone(
        self, run: VerbRun, wave: Wave, stages: Sequence[str], store_name: str, step: Step
    ) -> Written:
        rows = wave.read()
        with run.clock("+".join(stages)):
            passed = run_alone(stages, run.config, rows)
        written = write(run.ledger.folder, store_name, header_of(wave, rows), passed)
        step.advance(passed.num_rows, written.counts)
        return written

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield what the function that `make` returns makes of each item, in order.

        A pool of one actor on a CPU is no pool, and its work is done here.
        """
        config = run.config
        if _is_alone(config, section):
            yield from PlainLoop().map(run, section, make, items)
            return
        self._connect()
        clerk = ray.remote(num_cpus=0)(WorkRegistry).remote(list(items))
        pool = _pool(config, section, Mapper, make=make, clerk=clerk)
        refuse_too_small([pool], 1.0)
        early: dict[int, R] = {}
        following = 0
        for number, found in stream(len(items), None, [pool], config.ray):
            early[number] = found
            while following in early:
                yield early.pop(following)
                following += 1

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return what the function that `make` returns makes of one item."""
        return next(iter(self.map(run, section, make, [item])))

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts, many at once; see refine.refine_archive."""
        from namedmask.engine.on_ray.experts import refine_archive

        self._connect()
        return refine_archive(run, clusters)

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter on `train.processes` processes."""
        from namedmask.engine.on_ray.training import train_on_ray

        self._connect()
        train_on_ray(run.config, run.ledger.folder, on_step, run.archive)


def _is_alone(config: Config, section: str) -> bool:
    """Return whether a section asks for nothing that this process has not."""
    keys = getattr(config, section)
    return keys.actors[1] == 1 and not keys.reserved_gpus


def _pool(config: Config, section: str, worker: type, **arguments: Any) -> Pool:
    """Return a pool with the resources that a section of the config declares."""
    keys = getattr(config, section)
    arguments["config"] = config
    return Pool(section, worker, arguments, keys.actors, keys.num_cpus, keys.reserved_gpus)
