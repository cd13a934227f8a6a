"""The executor on Ray, in which waves pass graphs, and other items pass a single pool of actors."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
from namedmask.engine.on_ray.opening import open_on_ray
from namedmask.engine.on_ray.session import Pool, refuse_too_small, session
from namedmask.engine.on_ray.watch import GraphState
from namedmask.errors import NamedMaskError
from namedmask.run.job import VerbRun
from namedmask.run.progress import Step
from namedmask.run.stages import Part
from namedmask.run.waves import Wave, Written, header_of, write

T = TypeVar("T")
R = TypeVar("R")

PARTS_PER_ACTOR = 4
"""Number of parts per actor into which a long list is split.

Few parts are cheap to merge, and several parts per actor balance the load.
"""


@contextmanager
def connect(config: Config) -> Iterator[RayExecutor]:
    """Yield an executor on a running Ray, or on a Ray started for this block; see `session`.

    The executor connects to Ray when it first has work, so a finished verb needs no Ray. If nothing
    answers at the address, its methods raise InputError.
    """
    with ExitStack() as stack:
        yield RayExecutor(config, stack)


class RayExecutor:
    """An executor (see run/executor.py) on Ray, which disconnects when `stack` closes."""

    def __init__(self, config: Config, stack: ExitStack) -> None:
        self._config, self._stack = config, stack
        self._opened: set[bytes] = set()  # pickled parts
        actors = config.retrieve.actors[1]
        self.parts = actors * PARTS_PER_ACTOR if actors > 1 else 1

    def _connect(self) -> None:
        if not ray.is_initialized():
            self._stack.enter_context(session(self._config))

    def open(self, run: VerbRun, parts: Sequence[Part], later: Sequence[Part] = ()) -> None:
        """Open parts in processes of the cluster, each part once per command; see opening.py."""
        new = [part for part in (*parts, *later) if pickle.dumps(part) not in self._opened]
        for part in new:
            if not part.section:
                part.open()
        if on_cluster := [part for part in new if part.section]:
            self._connect()
            open_on_ray(on_cluster, run.config)
        self._opened.update(map(pickle.dumps, new))

    def metadata(self, run: VerbRun) -> Iterator[Wave]:
        """Yield the waves of the metadata, which many tasks have read and deduplicated."""
        self._connect()
        yield from scanned_waves(run)

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Generator[Written]:
        """Pass each wave through a graph that commits it; yield its result, in any order.

        A graph takes seconds to start. If there is only one wave and no stage needs a pool, the
        wave passes the stages in a child process instead.

        Raises:
            ClusterTooSmallError: the smallest pools of the graph do not fit into the cluster.
            NamedMaskError: a stage raised this error, or nothing moved for `ray.stall_timeout_s`.
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
            pools.append(Pool("sink", Sink, target | {"registry": registry}))
        reader = Pool("read", Read, {"registry": registry}, num_cpus=cpus)
        state = GraphState()
        missing = {wave.unit for wave in listed}
        for written, seconds in stream(len(listed), reader, pools, config.ray, state):
            missing.discard(written.unit)
            for name, spent in seconds.items():
                run.seconds[name] += spent
            step.advance(sum(written.counts.values()), written.counts, state.slowest)
            yield written
        if missing:
            raise NamedMaskError(
                f"Ray lost slices of {len(missing):,} waves, the first of them {min(missing)}, so "
                "they are not stored. All other waves are; run the same command again."
            )
        discard_scan(run)

    def _run_in_child(
        self, run: VerbRun, wave: Wave, stages: Sequence[str], store_name: str, step: Step
    ) -> Written:
        rows = wave.read()
        with run.clock("+".join(stages)):
            passed = run_in_child(stages, run.config, rows)
            written = write(run.ledger.folder, store_name, header_of(wave, rows), passed)
        step.advance(rows.num_rows, written.counts)
        return written

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the results of `make()` for the items, in the order of the items.

        If the section has at most one actor and no GPU, the work is done in this process.

        Raises:
            ClusterTooSmallError: the smallest pool does not fit into the cluster.
            NamedMaskError: the function raised this error, an item killed its process twice, or
                nothing moved for `ray.stall_timeout_s`.
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
        """Return the result of `make()` for one item."""
        return next(iter(self.map(run, section, make, [item])))

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train several experts at the same time; see engine.on_ray.experts.refine_archive."""
        from namedmask.engine.on_ray.experts import refine_archive

        self._connect()
        return refine_archive(run, clusters)

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter on `train.processes` processes; see training.train_on_ray."""
        from namedmask.engine.on_ray.training import train_on_ray

        self._connect()
        train_on_ray(run.config, run.ledger.folder, on_step, run.archive)


def _needs_no_pool(config: Config, section: str) -> bool:
    """Return whether a section has at most one actor and no GPU."""
    keys = getattr(config, section)
    return keys.actors[1] == 1 and not keys.reserved_gpus


def _pool(config: Config, section: str, worker: type, **arguments: Any) -> Pool:
    """Return a pool with the numbers of actors and the resources in a config section."""
    keys = getattr(config, section)
    arguments["config"] = config
    return Pool(section, worker, arguments, keys.actors, keys.num_cpus, keys.reserved_gpus)
