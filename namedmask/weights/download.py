"""Files of weights fetched, checked against their hashes, and noted in a lock file."""

from __future__ import annotations

import hashlib
import http.client
import json
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from namedmask.errors import CheckpointError, InputError, NamedMaskError, unknown_name
from namedmask.storage.place import replaced
from namedmask.weights.catalogue import (
    CHUNK,
    LOCK_FILE,
    TIMEOUT_S,
    Weights,
    _lock_path,
    _read_lock,
    _sha256_of,
    cache_folder,
    known_weights,
)

Say = Callable[[str], None]


def fetch_weights(
    names: Sequence[str],
    *,
    accepted: Sequence[str] = (),
    folder: Path | None = None,
    mirror: str = "",
    say: Say = lambda line: None,
) -> list[dict[str, Any]]:
    """Bring files into the cache; return for each its path, bytes, sha256 and how it was `checked`.

    Args:
        names: of the list.
        accepted: licenses that the caller agrees to, as the list calls them.
        folder: take the files from here and not from the network.
        mirror: url below which the files lie by their names, in place of their own.
        say: told what is fetched from where.

    Raises:
        ConfigError: an unknown name.
        InputError: a license is not agreed to, or the folder lacks a file. Nothing is fetched.
        CheckpointError: what came is not the file: cut short, or of another hash.
        NamedMaskError: it could not be fetched.
    """
    entries = [_known(name) for name in dict.fromkeys(names)]
    for entry in entries:
        if not entry.free and entry.license not in accepted:
            raise InputError(
                f"weights '{entry.name}' are under '{entry.license}', which is no free license: "
                f"{entry.note}. Where you agree, add --accept-license {entry.license}"
            )
    return [_fetch(entry, folder, mirror, say) for entry in entries]


def _known(name: str) -> Weights:
    if name not in known_weights():
        raise unknown_name("weights", name, known_weights())
    return known_weights()[name]


def _fetch(entry: Weights, folder: Path | None, mirror: str, say: Say) -> dict[str, Any]:
    place, lock = cache_folder() / entry.file, _read_lock().get(entry.name)
    expected = entry.sha256 or (lock or {}).get("sha256", "")
    if place.is_file() and expected and _sha256_of(place) == expected:
        return _told(entry, place, expected, "already there")
    with replaced(place) as part:
        with _opened(entry, folder, mirror, say) as source:
            found = _copied(source, part)
        _require_same(entry, part, found, expected)
    _lock(entry, place, found)
    checked = "the published hash" if entry.sha256 else "the hash of the first fetch"
    return _told(entry, place, found, checked if expected else "trusted: no hash is published")


def _told(entry: Weights, place: Path, sha256: str, checked: str) -> dict[str, Any]:
    size = place.stat().st_size
    return {"name": entry.name, "path": str(place), "bytes": size, "sha256": sha256,
            "checked": checked}  # fmt: skip


@contextmanager
def _opened(entry: Weights, folder: Path | None, mirror: str, say: Say) -> Iterator[IO[bytes]]:
    """Yield the content of an entry's file, out of its archive where it has one."""
    archive = Path(urlsplit(entry.url).path).name if entry.member else ""
    if folder is None:
        name = archive or entry.file
        url = f"{mirror.rstrip('/')}/{name}" if mirror else entry.url
        say(f"fetching {entry.name} from {url}")
        with tempfile.TemporaryFile(dir=cache_folder()) as download:
            for chunk in _chunks(url):
                download.write(chunk)
            download.seek(0)
            with _member(download, entry) if archive else nullcontext(download) as content:
                yield content
    elif (folder / entry.file).is_file():
        with (folder / entry.file).open("rb") as file:
            yield file
    elif archive and (folder / archive).is_file():
        with (folder / archive).open("rb") as file, _member(file, entry) as content:
            yield content
    else:
        raise InputError(
            f"folder {folder} has no {entry.file}{f' and no {archive}' if archive else ''}, which "
            f"weights '{entry.name}' are made of. Download it from {entry.url} and put it there."
        )


def _chunks(url: str) -> Iterator[bytes]:
    """Yield the body of a url, all of it."""
    size = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "namedmask"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK):
                size += len(chunk)
                yield chunk
            promised = int(answer.headers.get("Content-Length") or size)
    except (OSError, ValueError, http.client.HTTPException) as error:  # the second: no url at all
        raise NamedMaskError(
            f"{url} cannot be fetched: {error}. Try again, or download it elsewhere and give its "
            "folder with --from."
        ) from error
    if size != promised:
        raise NamedMaskError(f"{url} broke off after {size:,} of {promised:,} bytes. Try again.")


@contextmanager
def _member(file: IO[bytes], entry: Weights) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            inner = next(n for n in archive.namelist() if Path(n).name == entry.member)
            with archive.open(inner) as content:
                yield content
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError,
            StopIteration) as error:  # fmt: skip
        raise CheckpointError(
            f"the archive of weights '{entry.name}' is none or damaged, or lacks {entry.member}: "
            f"{error}. It is published as {entry.url}"
        ) from error


def _copied(source: IO[bytes], part: Path) -> str:
    """Copy to a file and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with part.open("wb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _require_same(entry: Weights, part: Path, found: str, expected: str) -> None:
    size = part.stat().st_size
    with part.open("rb") as file:
        page = file.read(64).lstrip()[:1] == b"<"
    if page or not size:
        raise CheckpointError(
            f"weights '{entry.name}': what came is {'a web page' if page else 'empty'}, not "
            f"{entry.file}. Download it in a browser from {entry.url} and use --from FOLDER."
        )
    if expected and found != expected:
        first = "published" if entry.sha256 else f"written to {LOCK_FILE} at the first fetch"
        raise CheckpointError(
            f"weights '{entry.name}': {size:,} bytes with sha256 {found}, expected {expected}, as "
            f"{first}. The file was cut short, or is another one; it is not kept. "
            + ("" if entry.sha256 else f"To trust it, remove its entry from {_lock_path()}.")
        )


def verify_weights() -> list[dict[str, Any]]:
    """Return for every file that was fetched `state`: `ok`, `changed` or `missing`."""
    rows = []
    for name, lock in sorted(_read_lock().items()):
        path = cache_folder() / lock["file"]
        state = "missing"
        if path.is_file():
            state = "ok" if _sha256_of(path) == lock["sha256"] else "changed"
        rows.append({"name": name, "path": str(path), "state": state, "sha256": lock["sha256"]})
    return rows


def _lock(entry: Weights, place: Path, sha256: str) -> None:
    kept = {"file": entry.file, "url": entry.url, "license": entry.license,
            "bytes": place.stat().st_size, "sha256": sha256}  # fmt: skip
    with replaced(_lock_path()) as part:
        text = json.dumps(_read_lock() | {entry.name: kept}, indent=2, sort_keys=True)
        part.write_text(text + "\n", encoding="utf-8")
