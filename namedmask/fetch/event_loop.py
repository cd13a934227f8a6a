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
    with ThreadPoolExecutor(1, "namedmask-fetch") as thread:
        call = (lambda work, *given: thread.submit(work, *given).result()) if _is_busy() else _call
        runner = asyncio.Runner()
        try:
            while (item := call(runner.run, _next(items))) is not None:
                yield item
        finally:
            call(runner.run, _close(items))
            call(runner.close)


def _is_busy() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _call(work: Callable[..., Any], *given: Coroutine[Any, Any, Any]) -> Any:
    return work(*given)


async def _next(items: AsyncGenerator[T]) -> T | None:
    return await anext(items, None)


async def _close(items: AsyncGenerator[T]) -> None:
    await items.aclose()
