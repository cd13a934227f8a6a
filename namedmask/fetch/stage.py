"""Urls to image bytes, each proven to be an image by a decode, each failure with its reason.

Reads `url`; adds `image` (bytes as they came, or shrunk), `image_height`, `image_width`, `status`.
Where the metadata has `md5` or `sha256` (hex), the bytes as they came must have it, or they are
`content_changed`. Every other status is classed in reasons.py; the transient ones are tried again.
download.py keeps the bounds of time and size, addresses.py those of the network.
Cost per 1,000 JPEGs of 12 kB from loopback: 1.0 s of one cloud core, decode included.
Method: the seed downloaded what the retrieval page listed and skipped dead links.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from namedmask import images
from namedmask.config import FetchConfig
from namedmask.fetch.download import Downloader, FailedError, session_of
from namedmask.images import jpegs
from namedmask.schema.columns import alive, require_columns, update
from namedmask.schema.status import (
    BLOCKED_ADDRESS,
    CONTENT_CHANGED,
    CRASHED,
    EMPTY,
    NO_FILE,
    OK,
    TOO_BIG,
    TRANSIENT,
    failure_class_of,
)

BACKOFF_S = 0.5
"""Before the first retry; doubled before each further one."""

JPEG_QUALITY = 95

SMALL_BYTES, SMALL_PIXELS = 2**18, 2**21
"""What a JPEG has at most to be decoded while all downloads of its process wait: milliseconds."""

HASHES = ("md5", "sha256")
"""Columns that, where the metadata has them, say what the bytes must be."""

Hashes = Mapping[str, str]

# a batch makes objects by the ten thousand, few of them in circles: looking for those at the pace
# that Python begins with takes a tenth of the time
gc.set_threshold(50_000, 20, 100)

_log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """What became of one url: a status and, when ok, the bytes and the upright size."""

    status: str
    image: bytes | None = None
    height: int | None = None
    width: int | None = None


class Fetch:
    """The stage: one batch of urls at a time, many in flight."""

    name = "fetch"
    reads = ("url",)
    adds = ("image", "image_height", "image_width", "status")

    def __init__(self, config: FetchConfig) -> None:
        self.config = config
        self.cores = max(1, int(config.num_cpus))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with image, its size and status; rows not ok pass untouched."""
        require_columns(table, (*self.reads, "status"), self.name)
        rows = alive(table)
        urls = table["url"].take(rows).to_pylist()
        hashes = hashes_of(table.take(rows))
        fetched = _run(fetch_all(urls, self.config, hashes, self.cores)) if urls else []
        return update(
            table,
            rows,
            {
                "image": [one.image for one in fetched],
                "image_height": [one.height for one in fetched],
                "image_width": [one.width for one in fetched],
                "status": [one.status for one in fetched],
            },
        )


def hashes_of(table: pa.Table) -> list[Hashes]:
    """Return for each row what its bytes must hash to, as the metadata says."""
    names = [name for name in HASHES if name in table.column_names]
    columns = [[value or "" for value in table[name].to_pylist()] for name in names]
    if not names:
        return [{}] * table.num_rows
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


async def fetch_all(
    urls: Sequence[str], config: FetchConfig, hashes: Sequence[Hashes] = (), cores: int = 1
) -> list[Fetched]:
    """Return what became of each url, in the order of `urls`, with as many decoding threads.

    With one core small images are decoded between two downloads: handing one over to a thread and
    back takes as long as a proof.
    """
    with ThreadPoolExecutor(min(8, cores), "namedmask-decode") as decoders:
        async with session_of(config) as session:
            fetcher = _Fetcher(Downloader(session, config), decoders, config, alone=cores > 1)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(fetcher.fetch(url, wanted))
                    for url, wanted in zip(urls, hashes or [{}] * len(urls), strict=True)
                ]
    return [task.result() for task in tasks]


def _run(work: Coroutine[Any, Any, list[Fetched]]) -> list[Fetched]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # a notebook or an async actor has a loop of its own here: step aside
    with ThreadPoolExecutor(1, "namedmask-fetch") as aside:
        return aside.submit(asyncio.run, work).result()


class _Fetcher:
    """One batch in flight: its downloads and its decoding threads."""

    def __init__(
        self,
        downloader: Downloader,
        decoders: ThreadPoolExecutor,
        config: FetchConfig,
        alone: bool,
    ) -> None:
        self.downloader = downloader
        self.decoders = decoders
        self.config = config
        self.alone = alone

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
                    return await self._in_thread(_prove_file, url, hashes, self.config)
            return await self.downloader.get(url, lambda body: self._prove(body, hashes))
        except (FailedError, images.BadImage) as error:
            return Fetched(error.status)
        except Exception:  # noqa: BLE001  the guard of a row: one url must not end the batch
            _log.exception("fetching %s", url)
            return Fetched(CRASHED)

    async def _prove(self, body: bytes, hashes: Hashes) -> Fetched:
        if not self.alone and len(body) <= SMALL_BYTES and jpegs.pixels_of(body) <= SMALL_PIXELS:
            return _prove_as(body, hashes, self.config)
        return await self._in_thread(_prove_as, body, hashes, self.config)

    async def _in_thread(self, work: Any, *arguments: Any) -> Fetched:
        loop = asyncio.get_running_loop()
        fetched: Fetched = await loop.run_in_executor(self.decoders, work, *arguments)
        return fetched


def prove(body: bytes, config: FetchConfig) -> Fetched:
    """Return the body as an image: proven by decoding all of it, shrunk when the config says so.

    Raises:
        BadImage: see images.decode.
    """
    if not body:
        return Fetched(EMPTY)
    return Fetched(OK, *jpegs.to_store(body, config.longest_side, config.max_pixels, JPEG_QUALITY))


def _prove_as(body: bytes, hashes: Hashes, config: FetchConfig) -> Fetched:
    # before the decode: whoever bought an old domain may serve a picture as well as a page
    if body and not is_as_promised(body, hashes):
        return Fetched(CONTENT_CHANGED)
    return prove(body, config)


def is_as_promised(body: bytes, hashes: Hashes) -> bool:
    """Return whether the bytes have each hash that is given, as hex digits by its name."""
    return all(
        hashlib.new(name, body, usedforsecurity=False).hexdigest() == digest.lower()
        for name, digest in hashes.items()
        if digest
    )


def _prove_file(url: str, hashes: Hashes, config: FetchConfig) -> Fetched:
    if not config.file_root:
        return Fetched(BLOCKED_ADDRESS)
    path = Path(unquote(urlsplit(url).path)).resolve()
    if not path.is_relative_to(Path(config.file_root).resolve()):
        return Fetched(BLOCKED_ADDRESS)
    if not path.is_file():
        return Fetched(NO_FILE)
    if path.stat().st_size > config.max_bytes:
        return Fetched(TOO_BIG)
    return _prove_as(path.read_bytes(), hashes, config)
