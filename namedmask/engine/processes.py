"""Waves fetched by several processes beside this one, for the plain loop.

One process downloads and proves images on little more than one core, since Python runs one thread
at a time. Processes are begun by a server that has imported what they need and nothing else; they
end with this one, however it ends.
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

if TYPE_CHECKING:
    from namedmask.config import FetchConfig
    from namedmask.run.stages import Stage
    from namedmask.run.waves import FetchedWave, Wave

T = TypeVar("T")


def process_count(config: FetchConfig) -> int:
    """Return how many processes fetch."""
    return config.processes or os.cpu_count() or 1


def begin_server(config: FetchConfig) -> bool:
    """Begin the server of processes, which imports what they need; return whether there is one."""
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


def fetched_by_many(
    waves: Iterable[Wave], config: FetchConfig, use: Callable[[FetchedWave], T]
) -> Iterator[T]:
    """Yield what `use`, called where they are fetched, makes of the waves, in any order.

    Each process has one in hand. One more waits, for the first that is done while the last is in
    use here.

    Raises:
        NamedMaskError: a process was lost.
    """
    begin_server(config)
    count, left = process_count(config), iter(waves)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(count, context, initializer=_end_with_parent) as pool:
        coming: set[Future[T]] = set()
        try:
            while True:
                while len(coming) <= count and (wave := next(left, None)):
                    coming.add(pool.submit(_fetch_here, wave, config, use))
                if not coming:
                    return
                done = wait(coming, return_when=FIRST_COMPLETED).done.pop()
                coming.remove(done)
                yield done.result()
        except BrokenProcessPool:
            raise NamedMaskError(
                "a process that fetches was lost: killed, or by an image that no decoder survives. "
                "Run the same command again; on Ray such an image ends as 'crashed'."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this one
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
