"""Download images by url, and verify each image by decoding it.

The stage reads `url`. It adds `image` (the bytes as downloaded, or a smaller JPEG), `image_height`,
`image_width` and `status`. If the metadata has `md5` or `sha256` (hex), the downloaded bytes must
match, or the status is `content_changed`. schema/status.py has the failure class of every status;
transient failures are retried. download.py enforces the limits on time and size. addresses.py
limits connections to public addresses.
Cost per 1,000 JPEGs of 12 kB from loopback: 1.0 s of one cloud core, including decoding.
Method: the original code downloaded the images on the retrieval page and skipped dead links.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pyarrow as pa

from namedmask import images
from namedmask.config import FetchConfig
from namedmask.fetch.download import Downloader, FailedError, downloader_of
from namedmask.fetch.event_loop import driven
from namedmask.fetch.verify import (
    Fetched,
    Hashes,
    given_path,
    verify_file,
    verify_with_hashes,
)
from namedmask.images import jpegs
from namedmask.images.limits import Limits, within
from namedmask.schema.columns import alive, require_columns, update
from namedmask.schema.status import (
    CRASHED,
    TRANSIENT,
    failure_class_of,
)

BACKOFF_S = 0.5
"""Seconds before the first retry; the delay doubles with each further retry."""

PILOT_ROWS = 32
"""Number of urls in the first slice of a process, which tells the size of the images."""

SMALL_BYTES, SMALL_PIXELS = 2**18, 2**21
"""Maximum bytes and pixels of a JPEG that is decoded on the event loop if the stage has one core.

All downloads of the process wait during this decoding, which takes milliseconds."""

HASHES = ("md5", "sha256")
"""Optional metadata columns with a hash of the expected bytes."""

# A batch creates tens of thousands of objects, and few of them are in reference cycles. With
# Python's default thresholds, the cycle collector takes a tenth of the time.
gc.set_threshold(50_000, 20, 100)

_log = logging.getLogger(__name__)


class Fetch:
    """Stage that downloads one batch of urls at a time, many of them concurrently."""

    name = "fetch"
    reads = ("url",)
    adds = ("image", "image_height", "image_width", "status")

    limits = Limits()

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.cores = max(1, int(config.num_cpus))
        self._mean_bytes = 0.0  # per row of the last slice; 0 before the first

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with image, size and status; rows whose status is not ok stay unchanged.

        Raises:
            SchemaError: `table` lacks `url` or `status`.
        """
        return pa.concat_tables(list(self.slices(table)))

    def slices(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield all rows of `table`, in order, as `__call__` returns them, in slices.

        The images of a slice have about half of `limits.encoded_bytes`, as far as their sizes are
        known before the download: a file's size, or the mean size of the images of the last slice.
        If they have more than `limits.encoded_bytes`, the slice is cut.

        Raises:
            SchemaError: as `__call__`.
        """
        require_columns(table, (*self.reads, "status"), self.name)
        yield from driven(self._slices(table))

    async def _slices(self, table: pa.Table) -> AsyncGenerator[pa.Table]:
        start = 0
        async with _fetcher_of(self.config, self.cores) as fetcher:
            while start < table.num_rows or not start:
                part = table.slice(start, self._rows_at_once(table, start))
                part = await self._fetched(fetcher, part)
                yield part
                start += max(1, part.num_rows)

    def _rows_at_once(self, table: pa.Table, start: int) -> int:
        """Return the number of rows from `start` on that are fetched at once."""
        most = self.limits.encoded_bytes / 2
        mean = self._mean_bytes or most / PILOT_ROWS
        urls = table["url"].slice(start, int(most / mean) + 1).to_pylist()
        first = next(within(urls, lambda url: _expected_bytes(url, mean), int(most)), [])
        return max(1, len(first))

    async def _fetched(self, fetcher: _Fetcher, table: pa.Table) -> pa.Table:
        """Return the rows of `table` after the fetch, or the first of them if all are too large."""
        rows = alive(table)
        urls = table["url"].take(rows).to_pylist()
        hashes, most = hashes_of(table.take(rows)), self.limits.encoded_bytes
        fetched = await fetcher.fetch_all(urls, hashes, most) if urls else []
        if len(fetched) < len(rows):
            table, rows = table.slice(0, rows[len(fetched)]), rows[: len(fetched)]
        total = sum(len(result.image or b"") for result in fetched)
        if rows.size:
            self._mean_bytes = max(1.0, total / table.num_rows, self._mean_bytes / 2)
        return update(
            table,
            rows,
            {
                "image": [result.image for result in fetched],
                "image_height": [result.height for result in fetched],
                "image_width": [result.width for result in fetched],
                "status": [result.status for result in fetched],
            },
        )


def hashes_of(table: pa.Table) -> list[Hashes]:
    """Return the expected hashes of each row by name; "" is a hash that the metadata lacks."""
    names = [name for name in HASHES if name in table.column_names]
    columns = [[value or "" for value in table[name].to_pylist()] for name in names]
    if not names:
        return [{}] * table.num_rows
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _expected_bytes(url: str, mean: float) -> int:
    """Return the size of a file, or the mean size `mean` of the images that are downloaded."""
    if not url.startswith("file:"):
        return int(mean) + 1
    try:
        return os.stat(given_path(url)).st_size
    except (OSError, ValueError):  # the fetch itself finds the status
        return 0


async def fetch_all(
    urls: Sequence[str], config: FetchConfig, hashes: Sequence[Hashes] = (), cores: int = 1
) -> list[Fetched]:
    """Return the result for each url, in the order of `urls`, decoding in up to `cores` threads.

    With one core, small images are decoded on the event loop, because passing an image to a thread
    and back takes as long as decoding it.
    """
    async with _fetcher_of(config, cores) as fetcher:
        return await fetcher.fetch_all(urls, hashes or [{}] * len(urls))


@asynccontextmanager
async def _fetcher_of(config: FetchConfig, cores: int) -> AsyncIterator[_Fetcher]:
    with ThreadPoolExecutor(min(8, cores), "namedmask-decode") as decoders:
        async with downloader_of(config) as downloader:
            yield _Fetcher(downloader, decoders, config, threaded=cores > 1)


async def _complete(tasks: Sequence[asyncio.Task[Fetched]], most_bytes: float) -> int:
    """Wait until all tasks are done, or until their images have `most_bytes`.

    Return the number of the first tasks that are done and reach the bytes, at least 1.
    """
    ended = asyncio.Event()
    left, held = len(tasks), 0

    def count(task: asyncio.Task[Fetched]) -> None:
        nonlocal left, held
        left -= 1
        if not task.cancelled() and not task.exception():
            held += len(task.result().image or b"")
        if not left or held >= most_bytes:
            ended.set()

    for task in tasks:
        task.add_done_callback(count)
    if tasks:
        await ended.wait()
    complete, held = 0, 0
    while complete < len(tasks) and tasks[complete].done() and held < most_bytes:
        held += len(tasks[complete].result().image or b"")
        complete += 1
    return max(1, complete)


class _Fetcher:
    """The downloads and the decoding threads of one batch."""

    def __init__(
        self,
        downloader: Downloader,
        decoders: ThreadPoolExecutor,
        config: FetchConfig,
        threaded: bool,
    ) -> None:
        self.downloader = downloader
        self.decoders = decoders
        self.config = config
        self.threaded = threaded

    async def fetch_all(
        self, urls: Sequence[str], hashes: Sequence[Hashes], most_bytes: float = math.inf
    ) -> list[Fetched]:
        """Return the result for each url, in the order of `urls`.

        Once all images have `most_bytes`, the fetch ends early: the results are those of the first
        urls, at least of one.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.fetch(url, expected))
                for url, expected in zip(urls, hashes, strict=True)
            ]
            complete = await _complete(tasks, most_bytes)
            for task in tasks[complete:]:
                task.cancel()
        return [task.result() for task in tasks[:complete]]

    async def fetch(self, url: str, hashes: Hashes) -> Fetched:
        for attempt in range(self.config.retries + 1):
            if attempt:
                await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
            fetched = await self._attempt(url, hashes)
            if failure_class_of(fetched.status) != TRANSIENT:
                break
        return fetched

    async def _attempt(self, url: str, hashes: Hashes) -> Fetched:
        try:
            if url.startswith("file:"):
                async with self.downloader.slots:
                    return await self._in_thread(verify_file, url, hashes, self.config)
            return await self.downloader.get(url, lambda body: self._verify(body, hashes))
        except (FailedError, images.BadImage) as error:
            return Fetched(error.status)
        except Exception:  # noqa: BLE001  the per-row guard: one url must not end the batch
            _log.exception("fetching %s", url)
            return Fetched(CRASHED)

    async def _verify(self, body: bytes, hashes: Hashes) -> Fetched:
        if self.threaded or len(body) > SMALL_BYTES or jpegs.pixels_of(body) > SMALL_PIXELS:
            return await self._in_thread(verify_with_hashes, body, hashes, self.config)
        return verify_with_hashes(body, hashes, self.config)

    async def _in_thread(self, work: Any, *arguments: Any) -> Fetched:
        loop = asyncio.get_running_loop()
        fetched: Fetched = await loop.run_in_executor(self.decoders, work, *arguments)
        return fetched
