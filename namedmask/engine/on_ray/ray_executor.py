"""The verbs' work done on a cluster: waves through graphs, items through a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import ray

from namedmask import schema
from namedmask.config import Config
from namedmask.engine.local import PlainLoop
from namedmask.engine.on_ray.actors import (
    Clerk,
    Mapper,
    Read,
    Sink,
    StageAndSink,
    StageWorker,
    run_alone,
)
from namedmask.engine.on_ray.graphs import stream
from namedmask.engine.on_ray.metadata_scan import discard_scan, scanned_waves
from namedmask.engine.on_ray.session import Pool, refuse_too_small, session
from namedmask.engine.on_ray.watch import Seen
from namedmask.run.job import Job
from namedmask.run.progress import Step
from namedmask.run.waves import Wave, Written, input_digest, write

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

    def metadata(self, job: Job) -> Iterator[Wave]:
        """Yield the waves of the metadata, once many tasks have read and deduplicated it."""
        self._connect()
        yield from scanned_waves(job)

    def run(
        self, job: Job, waves: Iterable[Wave], stages: Sequence[str], store: str, step: Step
    ) -> Iterator[Written]:
        """Yield what became of each wave, in any order, once its sink has committed it.

        A single wave that needs no pool goes through a child process: a graph costs seconds.
        """
        if not waves:
            return
        config = job.config
        self._connect()
        cpus = config.metadata.num_cpus
        refuse_too_small([_pool(config, name, StageWorker) for name in stages], cpus)
        listed = list(waves)
        if len(listed) < 2 and all(_is_alone(config, name) for name in stages):
            for wave in listed:
                yield self._alone(job, wave, stages, store, step)
            discard_scan(job)
            return
        clerk = ray.remote(num_cpus=0)(Clerk).remote(listed)
        into = {"folder": job.ledger.folder.absolute(), "store": store}
        if len(stages) == 1:
            name = stages[0]
            pools = [_pool(config, name, StageAndSink, name=name, clerk=clerk, **into)]
        else:
            pools = [_pool(config, name, StageWorker, name=name, clerk=clerk) for name in stages]
            pools.append(Pool("sink", Sink, into))
        reader = Pool("read", Read, {"clerk": clerk}, num_cpus=cpus)
        seen = Seen()
        for written, seconds in stream(len(listed), reader, pools, config.ray, seen):
            for name, spent in seconds.items():
                job.seconds[name] += spent
            step.advance(sum(written.counts.values()), written.counts, seen.slowest)
            yield written
        discard_scan(job)

    def _alone(
        self, job: Job, wave: Wave, stages: Sequence[str], store: str, step: Step
    ) -> Written:
        rows = wave.read()
        with job.clock("+".join(stages)):
            passed = run_alone(stages, job.config, rows)
        tried, digested = int(schema.alive(rows).size), input_digest(rows)
        folder = job.ledger.folder
        written = write(folder, store, wave.unit, passed, tried, digested, wave.again)
        step.advance(passed.num_rows, written.counts)
        return written

    def map(
        self, job: Job, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield what the function that `make` returns makes of each item, in order.

        A pool of one actor on a CPU is no pool, and its work is done here.
        """
        config = job.config
        if _is_alone(config, section):
            yield from PlainLoop().map(job, section, make, items)
            return
        self._connect()
        clerk = ray.remote(num_cpus=0)(Clerk).remote(list(items))
        pool = _pool(config, section, Mapper, make=make, clerk=clerk)
        refuse_too_small([pool], 1.0)
        early: dict[int, R] = {}
        following = 0
        for number, found in stream(len(items), None, [pool], config.ray):
            early[number] = found
            while following in early:
                yield early.pop(following)
                following += 1

    def refine(self, job: Job, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts, many at once; see refine.refine_archive."""
        from namedmask.engine.on_ray.experts import refine_archive

        self._connect()
        return refine_archive(job, clusters)

    def train(self, job: Job, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter on `train.processes` processes."""
        from namedmask.engine.on_ray.training import train_on_ray

        self._connect()
        train_on_ray(job.config, job.ledger.folder, on_step, job.archive)


def _is_alone(config: Config, section: str) -> bool:
    """Return whether a section asks for nothing that this process has not."""
    keys = getattr(config, section)
    return keys.actors[1] == 1 and not keys.reserved_gpus


def _pool(config: Config, section: str, worker: type, **arguments: Any) -> Pool:
    """Return a pool with the resources that a section of the config declares."""
    keys = getattr(config, section)
    arguments["config"] = config
    return Pool(section, worker, arguments, keys.actors, keys.num_cpus, keys.reserved_gpus)
