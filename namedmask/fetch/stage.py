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
import errno
import gc
import hashlib
import logging
import os
import stat
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

import pyarrow as pa

from namedmask import images
from namedmask.config import FetchConfig
from namedmask.fetch.download import Downloader, FailedError, session_of
from namedmask.images import jpegs
from namedmask.schema.columns import alive, require_columns, update
from namedmask.schema.status import (
    CONTENT_CHANGED,
    CRASHED,
    EMPTY,
    NO_FILE,
    NO_PERMISSION,
    OK,
    OUTSIDE_ROOT,
    TOO_BIG,
    TRANSIENT,
    UNREADABLE,
    failure_class_of,
)
from namedmask.storage.walk import existing_form

BACKOFF_S = 0.5
"""Seconds before the first retry; the delay doubles with each further retry."""

JPEG_QUALITY = 95

SMALL_BYTES, SMALL_PIXELS = 2**18, 2**21
"""Maximum bytes and pixels of a JPEG that is decoded on the event loop if the stage has one core.

All downloads of the process wait during this decoding, which takes milliseconds."""

HASHES = ("md5", "sha256")
"""Optional metadata columns with a hash of the expected bytes."""

Hashes = Mapping[str, str]

NO_FILE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that leads to no file, such as a link that leads to itself."""

# A batch creates tens of thousands of objects, and few of them are in reference cycles. With
# Python's default thresholds, the cycle collector takes a tenth of the time.
gc.set_threshold(50_000, 20, 100)

_log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """The result for one url: its status and, if ok, the image bytes and the size of the image."""

    status: str
    image: bytes | None = None
    height: int | None = None  # of the upright image
    width: int | None = None


class Fetch:
    """Stage that downloads one batch of urls at a time, many of them concurrently."""

    name = "fetch"
    reads = ("url",)
    adds = ("image", "image_height", "image_width", "status")

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.cores = max(1, int(config.num_cpus))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with image, size and status; rows whose status is not ok stay unchanged.

        Raises:
            SchemaError: `table` lacks `url` or `status`.
        """
        require_columns(table, (*self.reads, "status"), self.name)
        rows = alive(table)
        urls = table["url"].take(rows).to_pylist()
        hashes = hashes_of(table.take(rows))
        fetched = _run(fetch_all(urls, self.config, hashes, self.cores)) if urls else []
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


async def fetch_all(
    urls: Sequence[str], config: FetchConfig, hashes: Sequence[Hashes] = (), cores: int = 1
) -> list[Fetched]:
    """Return the result for each url, in the order of `urls`, decoding in up to `cores` threads.

    With one core, small images are decoded on the event loop, because passing an image to a thread
    and back takes as long as decoding it.
    """
    with ThreadPoolExecutor(min(8, cores), "namedmask-decode") as decoders:
        async with session_of(config) as session:
            fetcher = _Fetcher(Downloader(session, config), decoders, config, threaded=cores > 1)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(fetcher.fetch(url, expected))
                    for url, expected in zip(urls, hashes or [{}] * len(urls), strict=True)
                ]
    return [task.result() for task in tasks]


def _run(work: Coroutine[Any, Any, list[Fetched]]) -> list[Fetched]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A notebook or an async actor already runs an event loop in this thread.
    with ThreadPoolExecutor(1, "namedmask-fetch") as thread:
        return thread.submit(asyncio.run, work).result()


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
                    return await self._in_thread(_verify_file, url, hashes, self.config)
            return await self.downloader.get(url, lambda body: self._verify(body, hashes))
        except (FailedError, images.BadImage) as error:
            return Fetched(error.status)
        except Exception:  # noqa: BLE001  the per-row guard: one url must not end the batch
            _log.exception("fetching %s", url)
            return Fetched(CRASHED)

    async def _verify(self, body: bytes, hashes: Hashes) -> Fetched:
        if self.threaded or len(body) > SMALL_BYTES or jpegs.pixels_of(body) > SMALL_PIXELS:
            return await self._in_thread(_verify_with_hashes, body, hashes, self.config)
        return _verify_with_hashes(body, hashes, self.config)

    async def _in_thread(self, work: Any, *arguments: Any) -> Fetched:
        loop = asyncio.get_running_loop()
        fetched: Fetched = await loop.run_in_executor(self.decoders, work, *arguments)
        return fetched


def verify(body: bytes, config: FetchConfig) -> Fetched:
    """Return the image in `body` after decoding all of it; shrink it to `fetch.longest_side`.

    An empty body has the status `empty`.

    Raises:
        BadImage: the body cannot be decoded; see images.decode.
    """
    if not body:
        return Fetched(EMPTY)
    return Fetched(OK, *jpegs.to_store(body, config.longest_side, config.max_pixels, JPEG_QUALITY))


def _verify_with_hashes(body: bytes, hashes: Hashes, config: FetchConfig) -> Fetched:
    # The hashes are checked before the body is decoded, because the new owner of an expired domain
    # may serve a web page or another image, and both count as changed.
    if body and not matches_hashes(body, hashes):
        return Fetched(CONTENT_CHANGED)
    return verify(body, config)


def matches_hashes(body: bytes, hashes: Hashes) -> bool:
    """Return whether the bytes match every hash that is not empty; `hashes` are hex by name."""
    return all(
        hashlib.new(name, body, usedforsecurity=False).hexdigest() == digest.lower()
        for name, digest in hashes.items()
        if digest
    )


def _verify_file(url: str, hashes: Hashes, config: FetchConfig) -> Fetched:
    try:
        path = _path_of(url, config.file_root)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            return Fetched(NO_FILE)
        if status.st_size > config.max_bytes:
            return Fetched(TOO_BIG)
        body = path.read_bytes()
    except PermissionError:
        return Fetched(NO_PERMISSION)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        missing = isinstance(error, ValueError) or error.errno in NO_FILE_ERRORS
        return Fetched(NO_FILE if missing else UNREADABLE)
    return _verify_with_hashes(body, hashes, config)


def _path_of(url: str, file_root: str) -> Path:
    """Return the path, without links, of the file that a url names.

    Raises:
        FailedError: the file is not below `file_root`, or there is no `file_root`.
        ValueError: the path has a NUL.
    """
    # the bytes of a path need not be valid UTF-8
    given = os.fsdecode(unquote_to_bytes(urlsplit(url).path))
    root, path = Path(os.path.realpath(file_root)), Path(os.path.realpath(given))
    if file_root and path.is_relative_to(root):
        path = Path(os.path.realpath(existing_form(path, root)))  # which may be a link as well
        if path.is_relative_to(root):
            return path
    raise FailedError(OUTSIDE_ROOT)
