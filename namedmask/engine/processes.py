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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TYPE_CHECKING, TypeVar

from namedmask.errors import NamedMaskError
from namedmask.run.machine import cores

if TYPE_CHECKING:
    from namedmask.config import FetchConfig
    from namedmask.run.stages import Stage
    from namedmask.run.waves import FetchedWave, Wave

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


def _fetch_here(wave: Wave, config: FetchConfig, use: Callable[[FetchedWave], T]) -> T:
    from namedmask.run.waves import fetch_wave

    return use(fetch_wave(wave, _stage(config)))


@functools.cache
def _stage(config: FetchConfig) -> Stage:
    from namedmask.fetch.stage import Fetch

    return Fetch(config)


def _submitted(
    pool: ProcessPoolExecutor, wave: Wave, config: FetchConfig, use: Callable[[FetchedWave], T]
) -> Future[T]:
    try:
        return pool.submit(_fetch_here, wave, config, use)
    except OSError as error:
        if error.errno is not None:
            raise
        # A process is to begin, but another one died and the pool has just closed its pipes.
        raise BrokenProcessPool from error


def fetched_by_many(
    waves: Iterable[Wave], config: FetchConfig, use: Callable[[FetchedWave], T]
) -> Iterator[T]:
    """Yield the result of `use` for each fetched wave, in any order.

    `use` is called in the worker process that fetched the wave. Each worker process has one wave,
    and one further wave is queued, so that an idle worker process does not wait for this process.

    Raises:
        NamedMaskError: a worker process died.
    """
    begin_server(config)
    others = set(multiprocessing.active_children())
    count, remaining = process_count(config), iter(waves)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, context, initializer=_end_with_parent) as pool:
        pending: set[Future[T]] = set()
        try:
            while True:
                while len(pending) <= count and (wave := next(remaining, None)):
                    pending.add(_submitted(pool, wave, config, use))
                if not pending:
                    return
                done = wait(pending, return_when=FIRST_COMPLETED).done.pop()
                pending.remove(done)
                yield done.result()
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
