"""Prove that the bytes of an answer or a file are the image that the metadata describes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from namedmask.config import FetchConfig
from namedmask.fetch.download import FailedError
from namedmask.images import jpegs
from namedmask.schema.status import (
    CONTENT_CHANGED,
    EMPTY,
    NO_FILE,
    NO_PERMISSION,
    OK,
    OUTSIDE_ROOT,
    TOO_BIG,
    UNREADABLE,
)
from namedmask.storage.walk import existing_form

Hashes = Mapping[str, str]

JPEG_QUALITY = 95

NO_FILE_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that leads to no file, such as a link that leads to itself."""


class Fetched(NamedTuple):
    """The result for one url: its status and, if ok, the image bytes and the size of the image."""

    status: str
    image: bytes | None = None
    height: int | None = None  # of the upright image
    width: int | None = None


def verify(body: bytes, config: FetchConfig) -> Fetched:
    """Return the image in `body` after decoding all of it; shrink it to `fetch.longest_side`.

    An empty body has the status `empty`.

    Raises:
        BadImage: the body cannot be decoded; see images.decode.
    """
    if not body:
        return Fetched(EMPTY)
    return Fetched(OK, *jpegs.to_store(body, config.longest_side, config.max_pixels, JPEG_QUALITY))


def verify_with_hashes(body: bytes, hashes: Hashes, config: FetchConfig) -> Fetched:
    """Return the image in `body` as `verify`, or the status `content_changed`."""
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


def verify_file(url: str, hashes: Hashes, config: FetchConfig) -> Fetched:
    """Return the image in the file that a url names, as `verify_with_hashes`, or a status.

    Raises:
        FailedError: the file is not below `fetch.file_root`.
        BadImage: as `verify`.
    """
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
    return verify_with_hashes(body, hashes, config)


def given_path(url: str) -> str:
    """Return the path that a file:// url names; its bytes need not be valid UTF-8."""
    return os.fsdecode(unquote_to_bytes(urlsplit(url).path))


def _path_of(url: str, file_root: str) -> Path:
    """Return the path, without links, of the file that a url names.

    Raises:
        FailedError: the file is not below `file_root`, or there is no `file_root`.
        ValueError: the path has a NUL.
    """
    root, path = Path(os.path.realpath(file_root)), Path(os.path.realpath(given_path(url)))
    if file_root and path.is_relative_to(root):
        path = Path(os.path.realpath(existing_form(path, root)))  # which may be a link as well
        if path.is_relative_to(root):
            return path
    raise FailedError(OUTSIDE_ROOT)
