"""Objects of S3, or of what speaks like it, as paths: the part of pathlib that a run folder needs.

A PUT is atomic, and listings show it at once: S3 promises both since 2020. What must not be written
twice is written with a condition: `create` where nothing is, `replace_if` over what was read.
"""

from __future__ import annotations

import fnmatch
import io
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from namedmask.errors import InputError
from namedmask.storage.s3_client import TRIES, ConditionFailed, client, not_there, told

SCHEME = "s3://"
COLLISION_PAUSE_S = 0.5

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True)
class Stat:
    """What is known of an object without reading it."""

    st_size: int
    tag: str  # changes with the content


@dataclass(frozen=True)
class Seen:
    """An object as it was read: its bytes, their tag, and their age by the server's clock."""

    data: bytes
    tag: str
    age_s: float


@dataclass(frozen=True, order=True)
class S3Path:
    """`s3://bucket/key`; a folder is whatever keys begin with its key and a slash."""

    bucket: str
    key: str = ""  # no slash at either end; empty: the bucket itself

    @classmethod
    def of(cls, text: str) -> S3Path:
        """Return the path of an `s3://` url.

        Raises:
            ValueError: it names no bucket; the text may hold a secret, so the message has none.
        """
        bucket, _, key = text.removeprefix(SCHEME).partition("/")
        if not text.startswith(SCHEME) or not _BUCKET.fullmatch(bucket):
            raise ValueError(
                "expected s3://bucket/prefix with the bucket's bare name; credentials belong in "
                "the environment or in ~/.aws"
            )
        return cls(bucket, _joined(key))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"

    def __truediv__(self, below: str | PurePath) -> S3Path:
        return S3Path(self.bucket, _joined(self.key, str(below)))

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part, dot included."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> S3Path:
        """The folder it lies in."""
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> S3Path:
        """Return its neighbor of that name."""
        return self.parent / name

    def absolute(self) -> S3Path:
        """Return itself: it holds everywhere."""
        return self

    def resolve(self) -> S3Path:
        """Return itself: there are no links."""
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there with its first object."""

    def exists(self) -> bool:
        """Return whether it is an object, or a folder of any."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether it is an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether any object lies below it."""
        return next(self.files(limit=1), None) is not None

    def stat(self) -> Stat:
        """Return size and tag; FileNotFoundError where there is no such object."""
        if not self.key:
            raise not_there(self)
        with told(self, self.bucket):
            found = client().head_object(Bucket=self.bucket, Key=self.key)
        return Stat(found["ContentLength"], found["ETag"])

    def files(self, *, deep: bool = True, limit: int = 1000) -> Iterator[tuple[S3Path, int]]:
        """Yield every object below it with its size, by name; only its own ones unless `deep`."""
        prefix = f"{self.key}/" if self.key else ""
        wanted = {"Bucket": self.bucket, "Prefix": prefix, "MaxKeys": limit}
        if not deep:
            wanted["Delimiter"] = "/"
        token: dict[str, str] | None = {}
        while token is not None:
            with told(self, self.bucket):
                page = client().list_objects_v2(**wanted, **token)
            for found in page.get("Contents", ()):
                # some consoles make an empty object for the folder itself
                if not found["Key"].endswith("/"):
                    yield S3Path(self.bucket, found["Key"]), found["Size"]
            following = page.get("NextContinuationToken")
            token = {"ContinuationToken": following} if following else None

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """Yield the objects right in this folder whose name matches."""
        for path, _ in self.files(deep=False):
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def read_bytes(self) -> bytes:
        """Return its content."""
        return self.look().data

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return its content as text."""
        return self.read_bytes().decode(encoding)

    def look(self, first: int = 0, count: int = 0, tag: str = "") -> Seen:
        """Return `count` bytes from `first` on, 0: all; with `tag`, only while it is that one."""
        wanted = {"Bucket": self.bucket, "Key": self.key}
        if count:
            wanted["Range"] = f"bytes={first}-{first + count - 1}"
        if tag:
            wanted["IfMatch"] = tag
        return self._whole(wanted)

    def download(self, path: Path) -> None:
        """Write its content to a local file."""
        size, tag = (stat := self.stat()).st_size, stat.tag
        with path.open("wb") as file:
            for first in range(0, size, CHUNK):
                file.write(self.look(first, min(CHUNK, size - first), tag).data)

    def write_bytes(self, data: bytes | BinaryIO) -> None:
        """Put a content, whole or not at all."""
        self._put(data)

    def create(self, data: bytes) -> str | None:
        """Put a content where there is none; return its tag, None where there was one."""
        return self._put_if(data, IfNoneMatch="*")

    def replace_if(self, tag: str, data: bytes) -> str | None:
        """Put a content in place of the one with that tag; return its tag, None if it was gone."""
        return self._put_if(data, IfMatch=tag)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it; FileNotFoundError where there was none, unless `missing_ok`."""
        if not missing_ok:
            self.stat()
        _refuse_lost(self)
        with told(self, self.bucket):
            client().delete_object(Bucket=self.bucket, Key=self.key)

    def _put(self, data: bytes | BinaryIO, **condition: str) -> str:
        _refuse_lost(self)
        with told(self, self.bucket):
            put = client().put_object(Bucket=self.bucket, Key=self.key, Body=data, **condition)
        tag: str = put["ETag"]
        return tag

    def _put_if(self, data: bytes, **condition: str) -> str | None:
        for _ in range(TRIES):
            try:
                return self._put(data, **condition)
            except FileNotFoundError:
                return None
            except ConditionFailed as failed:
                if not failed.collided:
                    break
                time.sleep(COLLISION_PAUSE_S)
        # a PUT whose answer was lost is sent again, and then meets what it wrote itself
        try:
            seen = self.look()
        except FileNotFoundError:
            return None
        return seen.tag if seen.data == data else None

    def _whole(self, wanted: dict[str, str]) -> Seen:
        """Return what is asked for; where the body is cut short, it is asked for again."""
        if not self.key:
            raise not_there(self)
        service = client()
        from botocore.exceptions import BotoCoreError

        for left in reversed(range(TRIES)):
            with told(self, self.bucket):
                found = service.get_object(**wanted)
                try:
                    data = found["Body"].read()
                except BotoCoreError:
                    if not left:
                        raise
                    continue
            sent = found["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
            return Seen(data, found["ETag"], (now - found["LastModified"]).total_seconds())
        raise AssertionError


CHUNK = 64 << 20
"""Bytes asked for at once of a file that is fetched whole."""


class S3File(io.RawIOBase):
    """An object as a file: each read is one request for just these bytes, of one version of it."""

    def __init__(self, path: S3Path) -> None:
        """Look for the object; FileNotFoundError where there is none."""
        stat = path.stat()
        self._path, self._size, self._tag, self._at = path, stat.st_size, stat.tag, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Return the new position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Return how many bytes were put into `buffer`."""
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return all that follows."""
        return self._take(self._size)

    def _take(self, count: int) -> bytes:
        count = min(count, self._size - self._at)
        if count <= 0:
            return b""
        data = self._path.look(self._at, count, self._tag).data
        self._at += len(data)
        return data


def forbid_writes(folder: S3Path, why: str) -> None:
    """Let every later write of this process below a folder fail with that message."""
    _LOST[folder] = why


def allow_writes(folder: S3Path) -> None:
    """Take `forbid_writes` back."""
    _LOST.pop(folder, None)


_LOST: dict[S3Path, str] = {}


def _refuse_lost(path: S3Path) -> None:
    for folder, why in list(_LOST.items()):
        within = f"{folder.key}/" if folder.key else ""
        if path.bucket == folder.bucket and path.key.startswith(within):
            raise InputError(why)


def _joined(*parts: str) -> str:
    pieces = [piece for part in parts for piece in part.split("/")]
    return "/".join(piece for piece in pieces if piece not in ("", "."))
