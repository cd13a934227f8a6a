"""Where files lie: a disk or S3; the few things that the two do differently, each done here once.

A `Place` is a path of either kind. Reading single columns or rows of parquet asks S3 for no more
than their bytes (`readable`): through the same client as everything else, and so with the same
credentials, endpoint and retries, which pyarrow's own S3 file system would want told a second time.
"""

from __future__ import annotations

import fnmatch
import glob
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

READERS = 16
"""Small objects asked for at once."""


def place_of(text: str | Place) -> Place:
    """Return the place that a text names: `s3://bucket/prefix`, else a path.

    Raises:
        ValueError: an s3:// url that names no bucket.
    """
    if isinstance(text, str):
        return S3Path.of(text) if is_s3(text) else Path(text)
    return text


def is_s3(text: str) -> bool:
    """Return whether a text names a place on S3."""
    return text.startswith(SCHEME)


@contextmanager
def replaced(place: Place) -> Iterator[Path]:
    """Yield a path to write to; what is there after the block takes the place, whole or not at all.

    An exception in the block leaves the place as it was.
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
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(place)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _flush_folder(place.parent)


def create(place: Place, data: bytes) -> None:
    """Write a file that nobody else may write otherwise.

    On a disk the run folder's lock sees to that. On S3, where a lock may run out under a process
    that slept, the PUT has a condition too.

    Raises:
        InputError: another content is there.
    """
    if isinstance(place, Path):
        with replaced(place) as part:
            part.write_bytes(data)
    elif place.create(data) is None:
        raise _another_writer(place)


def replace(place: Place, old: bytes, new: bytes) -> None:
    """Write a file over what is known to be there; as `create`, on S3 on that condition.

    Raises:
        InputError: another content is there.
    """
    if isinstance(place, Path):
        with replaced(place) as part:
            part.write_bytes(new)
        return
    seen = place.look()
    if seen.data != old or place.replace_if(seen.tag, new) is None:
        raise _another_writer(place)


def _another_writer(place: Place) -> InputError:
    return InputError(
        f"{place} was written by another process, with another content; expected this process "
        "to be the only writer. Let one run at a time write to this run.out; the same command "
        "goes on from what is committed."
    )


@contextmanager
def fetched(place: Place) -> Iterator[Path]:
    """Yield a local file with the content of a place, under its name; on S3 gone after the block.

    Raises:
        FileNotFoundError: there is no such object.
    """
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="namedmask-") as folder:
        path = Path(folder) / place.name
        place.download(path)
        yield path


def readable(place: Place) -> Path | S3File:
    """Return what pyarrow reads a place from, by the parts that it needs."""
    return place if isinstance(place, Path) else S3File(place)


def opened(place: Place) -> io.RawIOBase:
    """Return a place as an open file without a buffer: on S3 each read is one request.

    Raises:
        OSError: there is no such file.
    """
    return place.open("rb", buffering=0) if isinstance(place, Path) else S3File(place)


def read_many(places: Sequence[Place]) -> list[bytes]:
    """Return the contents of many small files."""
    if not any(isinstance(place, S3Path) for place in places):
        return [place.read_bytes() for place in places]
    with ThreadPoolExecutor(READERS) as threads:
        return list(threads.map(lambda place: place.read_bytes(), places))


def sizes_in(folder: Place) -> dict[str, int]:
    """Return the bytes of each file right in a folder by its name; of none where there is none."""
    if isinstance(folder, S3Path):
        return {path.name: size for path, size in folder.files(deep=False)}
    return {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}


def is_link(place: Place) -> bool:
    """Return whether a path is a symbolic link; S3 has none."""
    return isinstance(place, Path) and place.is_symlink()


def sizes_below(folder: Place) -> list[int]:
    """Return the bytes of every file below a folder."""
    if isinstance(folder, S3Path):
        return [size for _, size in folder.files()]
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def remove_tree(folder: Place) -> None:
    """Remove a folder with all below it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path, _ in folder.files():
        path.unlink(missing_ok=True)


def kept_copy(place: Place, sha256: str) -> Path:
    """Return a local file with a content that is read again and again, at random.

    A file on S3 is fetched once for all processes of a machine and stays below the system's folder
    of temporary files, by its hash; it may be removed whenever no run reads it.

    Raises:
        InputError: the content is not what its hash says.
        FileNotFoundError: there is no such object.
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
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise InputError(
                f"{place} has sha256 {found}; its record says {sha256}. Copy the right file back, "
                "or run the verb that makes it into another run.out."
            )
        part.replace(copy)
    return copy


def expand(source: str) -> list[str]:
    """Return the files that a path with wildcards matches, in order; `**` is any depth of folders.

    Raises:
        ValueError: an s3:// url that names no bucket.
    """
    if not is_s3(source):
        return sorted(path for path in glob.glob(source, recursive=True) if Path(path).is_file())
    pattern = S3Path.of(source)
    parts = pattern.key.split("/")
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    folder = S3Path(pattern.bucket, "/".join(parts[:plain]))
    return sorted(
        str(path)
        for path, _ in folder.files(deep=len(parts) > plain + 1 or "**" in parts)
        if _matches(path.key.split("/")[plain:], parts[plain:])
    )


def prove_writable(folder: Place) -> None:
    """Make a folder when missing, and prove that a file can be written there.

    Asked by writing, since permissions tell neither of a read-only disk nor of a bucket's policy.

    Raises:
        OSError, NamedMaskError: it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(folder, S3Path):
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
        return
    with tempfile.TemporaryFile(dir=folder):
        pass


def ensure_writable(folder: Place, way_out: str) -> None:
    """Make `folder` when missing, and prove that a file can be written there.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        prove_writable(folder)
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written: {error.strerror or error}. "
            f"Choose another with {way_out}."
        ) from error


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    part, pattern = (parts or [""])[0], patterns[0]
    if part.startswith(".") and not pattern.startswith("."):  # hidden, as on a disk
        return False
    if pattern == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatch.fnmatchcase(part, pattern) and _matches(parts[1:], patterns[1:])


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"namedmask-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(
            f"{folder}, where copies of files on S3 are kept, belongs to somebody else. Set TMPDIR "
            "to a folder of your own."
        )
    return folder


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
