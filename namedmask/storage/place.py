"""Files on a local disk or on S3; this module has all operations that differ between the two.

A `Place` is a path of either kind. When pyarrow reads single columns or rows of a parquet file on
S3, `readable` requests only their bytes. It uses the same client as all other access to S3, with
the same credentials, endpoint and retries. pyarrow's own S3 file system would need a second set of
these settings.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from namedmask.errors import ConfigError, InputError
from namedmask.storage.s3 import SCHEME, S3File, S3Path

Place: TypeAlias = Path | S3Path

_CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""Answers of file systems that cannot flush a folder or file: CIFS, VirtualBox, some of FUSE."""

READERS = 16
"""Number of threads that read small objects concurrently."""


def place_of(text: str | Place) -> Place:
    """Return the place that `text` names: an object on S3 for `s3://bucket/key`, or else a file.

    Raises:
        ValueError: `text` is an s3:// url without a valid bucket.
    """
    if isinstance(text, str):
        return S3Path.of(text) if is_s3(text) else Path(text)
    return text


def is_s3(text: str) -> bool:
    """Return whether `text` names a place on S3."""
    return text.startswith(SCHEME)


@contextmanager
def replaced(place: Place) -> Iterator[Path]:
    """Yield a local path to write to; after the block, its file replaces `place` atomically.

    If the block raises, `place` stays as it was.
    """
    if isinstance(place, S3Path):
        with tempfile.TemporaryDirectory(prefix="namedmask-") as folder:
            part = Path(folder) / place.name
            yield part
            with part.open("rb") as file:
                place.write_bytes(file)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.part")
    with named(place):
        try:
            yield part
            with part.open("rb+") as file:
                _flush(file.fileno())
            part.replace(place)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _flush_folder(place.parent)


@contextmanager
def named(place: Path) -> Iterator[None]:
    """Add the path to errors of files inside the block that name no file, as those of writes.

    Raises:
        OSError: the error, with the path as its `filename`.
    """
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        if error.filename is not None or type(error).__module__ != "builtins":
            raise
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error


@contextmanager
def scratch(place: Place) -> Iterator[Path]:
    """Yield a local path for a file that is to become `place`; a file left there is removed.

    On a disk, the path is on the file system of `place`, so that a rename completes the file.
    """
    if isinstance(place, S3Path):
        with tempfile.TemporaryDirectory(prefix="namedmask-") as folder:
            yield Path(folder) / place.name
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place.with_name(f".{place.name}.part")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def create(place: Place, data: bytes) -> None:
    """Write a file that no other process may write with different content.

    On disk, the lock of the run folder ensures this. On S3, the lock of a suspended process can
    expire. Therefore the PUT is also conditional.

    Raises:
        InputError: the object exists with different content.
    """
    if isinstance(place, Path):
        with replaced(place) as part:
            part.write_bytes(data)
    elif place.create(data) is None:
        raise _another_writer(place)


def replace(place: Place, old: bytes, new: bytes) -> None:
    """Overwrite a file whose content is `old`; on S3, the PUT is conditional, as in `create`.

    Raises:
        InputError: the object has different content.
    """
    if isinstance(place, Path):
        with replaced(place) as part:
            part.write_bytes(new)
        return
    current = place.get()
    if current.data != old or place.replace_if(current.tag, new) is None:
        raise _another_writer(place)


def _another_writer(place: Place) -> InputError:
    return InputError(
        f"{place} was written by another process, with different content. This process must be "
        "the only writer. Let one run at a time write to this run.out. The same command resumes "
        "after the last committed unit."
    )


@contextmanager
def fetched(place: Place) -> Iterator[Path]:
    """Yield a local file with the name and content of `place`; a copy from S3 is temporary.

    Raises:
        FileNotFoundError: the object does not exist.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="namedmask-") as folder:
        path = Path(folder) / place.name
        place.download(path)
        yield path


def readable(place: Place) -> Path | S3File | io.BufferedReader:
    """Return an input of which pyarrow reads only the parts that it needs."""
    if isinstance(place, S3Path):
        return S3File(place)
    try:
        os.fspath(place).encode()
    except UnicodeEncodeError:  # pyarrow opens only paths that are valid UTF-8
        return place.open("rb")
    return place


def opened(place: Place) -> io.RawIOBase:
    """Return an open file without a buffer; on S3, each read is one request.

    Raises:
        OSError: the file does not exist.
    """
    return place.open("rb", buffering=0) if isinstance(place, Path) else S3File(place)


def read_many(places: Sequence[Place]) -> list[bytes]:
    """Return the contents of many small files, in order."""
    if not any(isinstance(place, S3Path) for place in places):
        return [place.read_bytes() for place in places]
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(lambda place: place.read_bytes(), places))


def sizes_in(folder: Place) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by name; {} if the folder is missing.

    Files in subfolders are left out.
    """
    if isinstance(folder, S3Path):
        return {path.name: size for path, size in folder.files(deep=False)}
    return {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}


def is_link(place: Place) -> bool:
    """Return whether a place is a symbolic link, which exists on disk only."""
    return isinstance(place, Path) and place.is_symlink()


def sizes_below(folder: Place) -> list[int]:
    """Return the size in bytes of every file below a folder, including those in subfolders."""
    if isinstance(folder, S3Path):
        return [size for _, size in folder.files()]
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def remove_tree(folder: Place) -> None:
    """Remove a folder and everything below it, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path, _ in folder.files():
        path.unlink(missing_ok=True)


def kept_copy(place: Place, sha256: str) -> Path:
    """Return a local file with the content of `place`, for repeated random reads.

    A file on disk is returned without a check. A file on S3 is downloaded once for all processes of
    a machine. The copy is cached by its hash in the system's folder for temporary files, and may be
    removed whenever no run reads it.

    Raises:
        InputError: the content of an object on S3 does not have the hash `sha256`.
        ConfigError: the folder of cached copies belongs to another user.
        FileNotFoundError: the object does not exist.
    """
    if isinstance(place, Path):
        return place
    copy = _cache() / f"{sha256}{place.suffix}"
    if copy.exists():
        return copy
    with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
        part = Path(folder) / "part"
        place.download(part)
        with part.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            raise InputError(
                f"{place} has sha256 {actual}; its record says {sha256}. Restore the "
                "original file, or make it again with another run.out."
            )
        part.replace(copy)
    return copy


def check_writable(folder: Place) -> None:
    """Create a folder if it is missing, and check that a file can be written there.

    The check writes a file, because permissions do not show a read-only disk or a bucket's policy.

    Raises:
        OSError, NamedMaskError: the folder cannot be created or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(folder, S3Path):
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
        return
    with named(folder), tempfile.TemporaryFile(dir=folder):
        pass


def ensure_writable(folder: Place, way_out: str) -> None:
    """Create `folder` if it is missing, and check that a file can be written there.

    Args:
        way_out: the option that sets another folder, for the error message.

    Raises:
        InputError, NamedMaskError: the folder cannot be created or written.
    """
    try:
        check_writable(folder)
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written: {error.strerror or error}. "
            f"Choose another folder with {way_out}."
        ) from error


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"namedmask-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(
            f"{folder}, the cache for files on S3, belongs to another user. Set TMPDIR to a folder "
            "of your own."
        )
    return folder


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def _flush(handle: int) -> None:
    """Write an open file or folder to the disk, where the file system can do this.

    Many shares cannot do it for a folder; the file is there nevertheless.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise
