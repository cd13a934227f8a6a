"""Run an asynchronous generator from code that is not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def driven(items: AsyncGenerator[T]) -> Iterator[T]:
    """Yield the items of an asynchronous generator; its event loop runs while one is awaited.

    A notebook or an async actor already runs an event loop in this thread; then the items run in a
    thread of their own.
    """
    runner = asyncio.Runner()
    with ThreadPoolExecutor(1, "namedmask-fetch") as thread:
        try:
            while (item := _call(thread, runner.run, _next(items))) is not None:
                yield item
        finally:  # perhaps in another thread, if the items are not used up
            _call(thread, runner.run, _close(items))
            _call(thread, runner.close)


def _call(
    thread: ThreadPoolExecutor, work: Callable[..., Any], *given: Coroutine[Any, Any, Any]
) -> Any:
    """Call a function here or, if an event loop runs in this thread, in another one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work(*given)
    return thread.submit(work, *given).result()


async def _next(items: AsyncGenerator[T]) -> T | None:
    return await anext(items, None)


async def _close(items: AsyncGenerator[T]) -> None:
    await items.aclose()
