"""Objects on S3 or a compatible service, as paths with the methods of pathlib that a run needs.

A PUT is atomic, and listings show its result at once; S3 has guaranteed both since 2020. An object
that two processes must not both write is written conditionally. `create` requires that the object
does not exist, and `replace_if` requires that it still has the tag that was read.
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
from namedmask.storage.s3_client import (
    TRIES,
    ConditionFailed,
    client,
    missing_object,
    translated_errors,
)

SCHEME = "s3://"

COLLISION_PAUSE_S = 0.5
"""Seconds before the retry of a conditional write that collided with another write."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True)
class Stat:
    """Size and tag of an object, without its content."""

    st_size: int
    tag: str  # the ETag, which changes with the content


@dataclass(frozen=True)
class S3Object:
    """An object that was read: its bytes, its tag, and its age in seconds by the server's clock."""

    data: bytes
    tag: str
    age_s: float


@dataclass(frozen=True, order=True)
class S3Path:
    """The path `s3://bucket/key`; a folder is all keys that begin with its own key and a slash."""

    bucket: str
    key: str = ""  # without a slash at either end; empty for the bucket itself

    @classmethod
    def of(cls, text: str) -> S3Path:
        """Return the path that an `s3://` url names.

        Raises:
            ValueError: the url has no valid bucket. Urls can contain secrets, so none is shown.
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
        """The last part of the path."""
        return self.key.rpartition("/")[2] or self.bucket

    @property
    def stem(self) -> str:
        """The last part of the path, without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part, including the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> S3Path:
        """The folder that contains this path."""
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> S3Path:
        """Return the path with `name` as its last part."""
        return self.parent / name

    def absolute(self) -> S3Path:
        """Return the path itself, because it is always absolute."""
        return self

    def resolve(self) -> S3Path:
        """Return the path itself, because S3 has no links."""
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing, because a folder exists as soon as it has an object."""

    def exists(self) -> bool:
        """Return whether the path is an object or a folder."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether the path is an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether there is an object below the path."""
        return next(self.files(limit=1), None) is not None

    def stat(self) -> Stat:
        """Return the size and the tag of the object.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        if not self.key:
            raise missing_object(self)
        with translated_errors(self, self.bucket):
            head = client().head_object(Bucket=self.bucket, Key=self.key)
        return Stat(head["ContentLength"], head["ETag"])

    def files(self, *, deep: bool = True, limit: int = 1000) -> Iterator[tuple[S3Path, int]]:
        """Yield each object below the path and its size in bytes, sorted by key.

        Args:
            deep: include the objects in subfolders.
            limit: maximum number of objects per request.
        """
        prefix = f"{self.key}/" if self.key else ""
        request = {"Bucket": self.bucket, "Prefix": prefix, "MaxKeys": limit}
        if not deep:
            request["Delimiter"] = "/"
        token: dict[str, str] | None = {}
        while token is not None:
            with translated_errors(self, self.bucket):
                page = client().list_objects_v2(**request, **token)
            for entry in page.get("Contents", ()):
                # Some consoles create an empty object for the folder itself.
                if not entry["Key"].endswith("/"):
                    yield S3Path(self.bucket, entry["Key"]), entry["Size"]
            following = page.get("NextContinuationToken")
            token = {"ContinuationToken": following} if following else None

    def glob(self, pattern: str) -> Iterator[S3Path]:
        """Yield the objects directly in this folder whose names match `pattern`."""
        for path, _ in self.files(deep=False):
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        return self.get().data

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode(encoding)

    def get(self, first: int = 0, count: int = 0, tag: str = "") -> S3Object:
        """Return the object or, if `count` is not 0, `count` bytes of it from offset `first`.

        Raises:
            FileNotFoundError: the object does not exist.
            ConditionFailed: `tag` is given, and the object has another tag.
        """
        request = {"Bucket": self.bucket, "Key": self.key}
        if count:
            request["Range"] = f"bytes={first}-{first + count - 1}"
        if tag:
            request["IfMatch"] = tag
        return self._get_complete(request)

    def download(self, path: Path) -> None:
        """Write the content of the object to a local file, `CHUNK` bytes per request."""
        size, tag = (stat := self.stat()).st_size, stat.tag
        with path.open("wb") as file:
            for first in range(0, size, CHUNK):
                file.write(self.get(first, min(CHUNK, size - first), tag).data)

    def write_bytes(self, data: bytes | BinaryIO) -> None:
        """Write the object atomically."""
        self._put(data)

    def create(self, data: bytes) -> str | None:
        """Write the object and return its tag; return None if it exists with other content."""
        return self._put_if(data, IfNoneMatch="*")

    def replace_if(self, tag: str, data: bytes) -> str | None:
        """Overwrite the object and return its new tag; return None if it no longer has `tag`."""
        return self._put_if(data, IfMatch=tag)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object.

        Raises:
            FileNotFoundError: the object does not exist, and `missing_ok` is False.
        """
        if not missing_ok:
            self.stat()
        _raise_if_forbidden(self)
        with translated_errors(self, self.bucket):
            client().delete_object(Bucket=self.bucket, Key=self.key)

    def _put(self, data: bytes | BinaryIO, **condition: str) -> str:
        _raise_if_forbidden(self)
        with translated_errors(self, self.bucket):
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
        # boto3 repeats a PUT whose answer was lost. The repeat fails if the first PUT succeeded.
        try:
            current = self.get()
        except FileNotFoundError:
            return None
        return current.tag if current.data == data else None

    def _get_complete(self, request: dict[str, str]) -> S3Object:
        """Return the object of a GET request; repeat the request if its body is cut short."""
        if not self.key:
            raise missing_object(self)
        service = client()
        from botocore.exceptions import BotoCoreError

        for left in reversed(range(TRIES)):
            with translated_errors(self, self.bucket):
                answer = service.get_object(**request)
                try:
                    data = answer["Body"].read()
                except BotoCoreError:
                    if not left:
                        raise
                    continue
            sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
            return S3Object(data, answer["ETag"], (now - answer["LastModified"]).total_seconds())
        raise AssertionError


CHUNK = 64 << 20
"""Number of bytes per request when a whole object is downloaded."""


class S3File(io.RawIOBase):
    """An object as a read-only file; each read is one request, always for the same version."""

    def __init__(self, path: S3Path) -> None:
        """Open the object.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        stat = path.stat()
        self._path, self._size, self._tag, self._position = path, stat.st_size, stat.tag, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on, and return the number of bytes read."""
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Return all bytes from the position to the end."""
        return self._read(self._size)

    def _read(self, count: int) -> bytes:
        count = min(count, self._size - self._position)
        if count <= 0:
            return b""
        data = self._path.get(self._position, count, self._tag).data
        self._position += len(data)
        return data


def forbid_writes(folder: S3Path, why: str) -> None:
    """Make every later write of this process below `folder` raise InputError with message `why`."""
    _FORBIDDEN[folder] = why


def allow_writes(folder: S3Path) -> None:
    """Undo `forbid_writes` for a folder."""
    _FORBIDDEN.pop(folder, None)


_FORBIDDEN: dict[S3Path, str] = {}


def _raise_if_forbidden(path: S3Path) -> None:
    for folder, why in list(_FORBIDDEN.items()):
        prefix = f"{folder.key}/" if folder.key else ""
        if path.bucket == folder.bucket and path.key.startswith(prefix):
            raise InputError(why)


def _joined(*parts: str) -> str:
    names = [name for part in parts for name in part.split("/")]
    return "/".join(name for name in names if name not in ("", "."))
