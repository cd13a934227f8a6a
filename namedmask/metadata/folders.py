"""Read a folder of images: one row per image, in the order of their paths.

The caption is the file name, or the name of the folder if the file name has no letters. Links are
followed; the url is that of the file itself, so that a file is used once, however often it is
linked. A folder that cannot be read becomes a row with a status, because its images cannot be
counted.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes

import pyarrow as pa

from namedmask.errors import ConfigError, InputError
from namedmask.images.names import is_image_name
from namedmask.metadata.aliases import FAULT
from namedmask.metadata.text_tables import BATCH_ROWS, Say
from namedmask.schema.status import NO_PERMISSION, UNREADABLE
from namedmask.storage.walk import Found, Walk


def read_folder(folder: Path, say: Say) -> Iterator[pa.Table]:
    """Yield the urls and captions of the images below a folder.

    Raises:
        ConfigError: the folder contains no image.
        InputError: the folder itself cannot be read.
    """
    walk = Walk(folder)
    left_out: Counter[str] = Counter()
    batch: list[Found] = []
    has_rows = False
    for found in walk:
        if not found.error and not is_image_name(found.path):
            left_out[os.path.splitext(found.path)[1].lower() or "no suffix"] += 1
            continue
        if found.error and not has_rows and found.path == str(folder):
            raise InputError(
                f"metadata.source '{folder}' cannot be read: {found.error.strerror}. Change its "
                "permissions, or name another folder."
            )
        has_rows = True
        batch.append(found)
        if len(batch) == BATCH_ROWS:
            yield _table(batch)
            batch = []
    if batch:
        yield _table(batch)
    told = _told(left_out, walk.hidden)
    if not has_rows:
        raise ConfigError(
            f"metadata.source '{folder}' contains no image{told and f' ({told})'}. For a folder of "
            f"tables, write '{folder}/*.parquet'."
        )
    if told:
        say(f"folder '{folder}': {told} left out, because they are no images or are hidden.")


def _told(left_out: Counter[str], hidden: int) -> str:
    """Return the numbers of files that are left out, by suffix, and of hidden names, as text."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{count:,} {suffix}" for suffix, count in ordered[:5]]
    rest = sum(count for _, count in ordered[5:])
    told += [f"{rest:,} others"] * bool(rest) + [f"{hidden:,} hidden"] * bool(hidden)
    return ", ".join(told)


def _table(batch: list[Found]) -> pa.Table:
    columns = {
        "url": pa.array([_url(found.real_path) for found in batch], pa.string()),
        "caption": pa.array([_caption(found.path) for found in batch], pa.binary()),
    }
    if any(found.error for found in batch):
        columns[FAULT] = pa.array([_fault(found.error) for found in batch], pa.string())
    return pa.table(columns)


def _url(path: str) -> str:
    return f"file://{quote_from_bytes(os.fsencode(path))}"


def _caption(path: str) -> bytes:
    # A file name without letters is only a number, but the folder's name may describe the image.
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    words = stem if any(letter.isalpha() for letter in stem) else os.path.basename(folder)
    return os.fsencode(re.sub(r"[_-]+", " ", words).strip())


def _fault(error: OSError | None) -> str | None:
    if error is None:
        return None
    return NO_PERMISSION if error.errno in (errno.EACCES, errno.EPERM) else UNREADABLE
