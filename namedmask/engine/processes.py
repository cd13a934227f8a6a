"""Worker processes of the plain loop, which fetch several waves at once.

A single process downloads and checks images on little more than one core, because Python runs one
thread at a time. The worker processes are forked by a server that has imported only the modules
that they need. They end when this process ends, even if it is killed.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, TypeVar

from namedmask.errors import NamedMaskError
from namedmask.run.machine import cores, limits_of

if TYPE_CHECKING:
    from namedmask.config import Config, FetchConfig
    from namedmask.fetch.stage import Fetch
    from namedmask.images.limits import Limits
    from namedmask.run.waves import FetchedSlice, Wave

T = TypeVar("T")


def process_count(config: FetchConfig) -> int:
    """Return the number of processes that fetch: `fetch.processes`, or one per core."""
    return config.processes or cores()


def begin_server(config: FetchConfig) -> bool:
    """Start the fork server if several processes are to fetch; return whether it was started."""
    if process_count(config) == 1:
        return False
    multiprocessing.set_forkserver_preload([__name__, "namedmask.engine.preload"])
    forkserver.ensure_running()
    return True


@dataclass(frozen=True)
class _Task:
    """The fetch of a wave's rows from `start` on, and the use of their slices, in a process."""

    config: FetchConfig
    limits: Limits
    use: Callable[[Iterator[FetchedSlice]], Any]

    def __call__(self, wave: Wave, start: int) -> Any:
        from namedmask.run.waves import fetch_wave

        return self.use(fetch_wave(wave, _stage(self.config, self.limits), start))


@functools.cache
def _stage(config: FetchConfig, limits: Limits) -> Fetch:
    from namedmask.fetch.stage import Fetch

    stage = Fetch(config)
    stage.limits = limits
    return stage


def _submitted(pool: ProcessPoolExecutor, task: _Task, wave: Wave, start: int = 0) -> Future[Any]:
    try:
        return pool.submit(task, wave, start)
    except OSError as error:
        if error.errno is not None:
            raise
        # A process is to begin, but another one died and the pool has just closed its pipes.
        raise BrokenProcessPool from error


def _result(pool: ProcessPoolExecutor, task: _Task, wave: Wave, start: int) -> Any:
    return _submitted(pool, task, wave, start).result()


def slices_by_many(waves: Iterable[Wave], config: Config) -> Iterator[FetchedSlice]:
    """Yield the fetched slices of each wave, in order; the waves come in any order.

    A process returns one slice at a time, so that its memory does not depend on the wave.

    Raises:
        NamedMaskError: a worker process died.
    """
    results = _by_many(waves, config, next)
    for first, rest in results:
        yield first
        done = first.table.num_rows
        while done < first.header.rows:
            try:
                following = rest(done)
            except BrokenProcessPool as error:
                results.throw(error)  # it ends the pool and raises the error with a message
            yield following
            done += following.table.num_rows


def fetched_by_many(
    waves: Iterable[Wave], config: Config, use: Callable[[Iterator[FetchedSlice]], T]
) -> Iterator[T]:
    """Yield the result of `use` for the slices of each wave, in any order.

    `use` is called in the worker process that fetches the wave.

    Raises:
        NamedMaskError: a worker process died.
    """
    for result, _ in _by_many(waves, config, use):
        yield result


def _by_many(
    waves: Iterable[Wave], config: Config, use: Callable[[Iterator[FetchedSlice]], T]
) -> Generator[tuple[T, Callable[[int], T]]]:
    """Yield the result of `use` for each wave, and a function that uses its rows from a row on.

    Each worker process has one wave, and one further wave is queued, so that an idle worker process
    does not wait for this process.
    """
    begin_server(config.fetch)
    others = set(multiprocessing.active_children())
    count, remaining = process_count(config.fetch), iter(waves)
    task = _Task(config.fetch, limits_of(config, count + 1), use)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, context, initializer=_end_with_parent) as pool:
        pending: dict[Future[T], Wave] = {}
        try:
            while True:
                while len(pending) <= count and (wave := next(remaining, None)):
                    pending[_submitted(pool, task, wave)] = wave
                if not pending:
                    return
                done = wait(pending, return_when=FIRST_COMPLETED).done.pop()
                wave = pending.pop(done)
                yield done.result(), partial(_result, pool, task, wave)
        except BrokenProcessPool:
            # The pool ends the processes that it knows of. One that began at that moment is not
            # among them and would wait for work for ever, and the exit of this process for it.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise NamedMaskError(
                "a process that fetches images died, because it was killed or because an image "
                "crashed it. Run the same command again; on Ray, such an image gets the status "
                "'crashed'."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets the signal too, and then ends
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
