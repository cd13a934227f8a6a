"""Fetch files of weights, check their hashes, and record them in a lock file."""

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
from namedmask.storage.place import ensure_writable, replaced
from namedmask.weights.catalog import (
    CHUNK,
    LOCK_FILE,
    TIMEOUT_S,
    Weights,
    cache_folder,
    known_weights,
    lock_path,
    read_lock,
    sha256_of,
)

Say = Callable[[str], None]
"""Function that shows a progress message to the user."""


def fetch_weights(
    names: Sequence[str],
    *,
    accepted: Sequence[str] = (),
    folder: Path | None = None,
    mirror: str = "",
    say: Say = lambda line: None,
) -> list[dict[str, Any]]:
    """Bring files into the cache and return one dict per file.

    The keys of a dict are `name`, `path`, `bytes`, `sha256` and `checked`, which says what the hash
    was compared with. A file that is in the cache with the expected hash is not fetched again.

    Args:
        names: names in data/weights.toml.
        accepted: licenses that the caller accepts, spelled as in data/weights.toml.
        folder: folder to copy the files from, instead of the network.
        mirror: base url that replaces the published one; files are fetched by name below it.
        say: called with a message about each download.

    Raises:
        ConfigError: a name is unknown.
        InputError: a license is not accepted (nothing is fetched), or `folder` lacks a file.
        CheckpointError: the received file is truncated or has another hash than expected, or the
            lock file is not JSON.
        NamedMaskError: a file could not be fetched.
    """
    entries = [_known(name) for name in dict.fromkeys(names)]
    for entry in entries:
        if not entry.free and entry.license not in accepted:
            raise InputError(
                f"weights '{entry.name}' are under '{entry.license}', which is not a free license: "
                f"{entry.note}. To accept it, add --accept-license {entry.license}"
            )
    ensure_writable(cache_folder(), "NAMEDMASK_CACHE")
    return [_fetch(entry, folder, mirror, say) for entry in entries]


def _known(name: str) -> Weights:
    if name not in known_weights():
        raise unknown_name("weights", name, known_weights())
    return known_weights()[name]


def _fetch(entry: Weights, folder: Path | None, mirror: str, say: Say) -> dict[str, Any]:
    path, lock = cache_folder() / entry.file, read_lock().get(entry.name)
    expected = entry.sha256 or (lock or {}).get("sha256", "")
    if path.is_file() and expected and sha256_of(path) == expected:
        return _result(entry, path, expected, "already there")
    with replaced(path) as part:
        with _opened(entry, folder, mirror, say) as source:
            sha256 = _copied(source, part)
        _check_content(entry, part, sha256, expected)
    _lock(entry, path, sha256)
    checked = "the published hash" if entry.sha256 else "the hash of the first fetch"
    return _result(entry, path, sha256, checked if expected else "trusted: no hash is published")


def _result(entry: Weights, path: Path, sha256: str, checked: str) -> dict[str, Any]:
    size = path.stat().st_size
    return {"name": entry.name, "path": str(path), "bytes": size, "sha256": sha256,
            "checked": checked}  # fmt: skip


@contextmanager
def _opened(entry: Weights, folder: Path | None, mirror: str, say: Say) -> Iterator[IO[bytes]]:
    """Yield an open file with the weights, unpacked if they are published in a zip archive."""
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
            f"weights '{entry.name}' need. Download it from {entry.url} into that folder."
        )


def _chunks(url: str) -> Iterator[bytes]:
    """Yield the body of a url in chunks; raise if it ends before its announced length."""
    size = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "namedmask"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            while chunk := answer.read(CHUNK):
                size += len(chunk)
                yield chunk
            promised = int(answer.headers.get("Content-Length") or size)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: not a url
        raise NamedMaskError(
            f"{url} cannot be fetched: {error}. Try again, or download the file elsewhere and give "
            "its folder with --from."
        ) from error
    if size != promised:
        raise NamedMaskError(
            f"{url}: the download broke off after {size:,} of {promised:,} bytes. Try again."
        )


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
            f"the archive of weights '{entry.name}' is not a zip file, is damaged, or lacks "
            f"{entry.member}: {error}. Download it again from {entry.url}"
        ) from error


def _copied(source: IO[bytes], part: Path) -> str:
    """Copy `source` into the file `part` and return the SHA-256 of the content."""
    digest = hashlib.sha256()
    with part.open("wb") as file:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _check_content(entry: Weights, part: Path, sha256: str, expected: str) -> None:
    """Raise a CheckpointError unless `part` is plausible and has the expected hash, if any."""
    size = part.stat().st_size
    with part.open("rb") as file:
        is_page = file.read(64).lstrip()[:1] == b"<"
    if is_page or not size:
        raise CheckpointError(
            f"weights '{entry.name}': expected {entry.file}, got "
            f"{'a web page' if is_page else 'an empty file'}. Download it in a browser from "
            f"{entry.url} and use --from FOLDER."
        )
    if expected and sha256 != expected:
        source, advice = "published", "Fetch it again."
        if not entry.sha256:
            source = f"written to {LOCK_FILE} at the first fetch"
            advice = f"To trust it, remove its entry from {lock_path()}."
        raise CheckpointError(
            f"weights '{entry.name}': got {size:,} bytes with sha256 {sha256}, expected {expected} "
            f"as {source}. The file is truncated or is another file, so it was not kept. {advice}"
        )


def verify_weights() -> list[dict[str, Any]]:
    """Return one dict per fetched file: name, path, sha256 and state (ok, changed or missing).

    Raises:
        CheckpointError: the lock file exists and is not JSON.
    """
    rows = []
    for name, lock in sorted(read_lock().items()):
        path = cache_folder() / lock["file"]
        state = "missing"
        if path.is_file():
            state = "ok" if sha256_of(path) == lock["sha256"] else "changed"
        rows.append({"name": name, "path": str(path), "state": state, "sha256": lock["sha256"]})
    return rows


def _lock(entry: Weights, path: Path, sha256: str) -> None:
    record = {"file": entry.file, "url": entry.url, "license": entry.license,
              "bytes": path.stat().st_size, "sha256": sha256}  # fmt: skip
    with replaced(lock_path()) as part:
        text = json.dumps(read_lock() | {entry.name: record}, indent=2, sort_keys=True)
        part.write_text(text + "\n", encoding="utf-8")
