"""Look up files of weights by name: where they are published, and which of them a run needs.

The list of known files is data/weights.toml. A file is fetched into the cache only by
`namedmask weights fetch NAME`; if its license is not free, the user must accept the license. A
fetched file is compared with its published hash. If no hash is published, the first fetch is
trusted, and the output says so: its hash is written to `weights.lock.json` in the cache, and later
fetches are compared with that hash.

Settings that take weights (`saliency.weights`, …) accept a name in the list as well as a path;
`path_of` resolves both.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from namedmask.config import Config
from namedmask.config.types import expanded
from namedmask.errors import CheckpointError, InputError
from namedmask.storage import Place, place_of

CACHE_VARIABLE = "NAMEDMASK_CACHE"
"""Environment variable that names the cache folder."""

LOCK_FILE = "weights.lock.json"
"""File in the cache that holds the size and hash of every fetched file."""

CHUNK = 1 << 20
"""Number of bytes per read."""

TIMEOUT_S = 15.0
"""Timeout of one read from the network in seconds; the whole file may take longer."""


@dataclass(frozen=True)
class Weights:
    """One known file of weights; data/weights.toml describes the fields."""

    name: str
    file: str
    url: str
    license: str
    key: str
    note: str
    member: str = ""
    bytes: int = 0
    sha256: str = ""
    free: bool = True
    when: Mapping[str, Any] = field(default_factory=dict)


@cache
def known_weights() -> Mapping[str, Weights]:
    """Return all known files by name, in the order of data/weights.toml."""
    text = resources.files("namedmask").joinpath("data", "weights.toml").read_text("utf-8")
    return {name: Weights(name, **entry) for name, entry in tomllib.loads(text).items()}


def cache_folder() -> Path:
    """Return the cache folder: $NAMEDMASK_CACHE, or `namedmask` in the user's cache folder.

    Raises:
        InputError: none of the variables is set, and the user has no home folder.
    """
    for variable, inside in ((CACHE_VARIABLE, "."), ("XDG_CACHE_HOME", "namedmask")):
        if os.environ.get(variable):
            try:
                return Path(expanded(os.environ[variable])) / inside
            except ValueError as error:
                raise InputError(f"${variable}: {error}.") from error
    try:
        return Path.home() / ".cache" / "namedmask"
    except RuntimeError as error:
        raise InputError(
            f"there is no folder for weights, because this user has no home folder. Set "
            f"{CACHE_VARIABLE} to a folder, such as /tmp/namedmask-weights."
        ) from error


def path_of(value: str) -> Path:
    """Return the file that a setting names: the cached file of a known name, or a path as given.

    Raises:
        CheckpointError: the name is known, but its file is not in the cache or has changed in size.
    """
    entry = known_weights().get(value)
    if entry is None:
        return Path(value)
    path = cache_folder() / entry.file
    if not path.is_file():
        raise CheckpointError(
            f"weights '{value}' are not in {cache_folder()}. Run: namedmask weights fetch {value}"
            f"{_consent(entry)}; on a cluster, on every node."
        )
    size = read_lock().get(value, {}).get("bytes", entry.bytes)
    if size and path.stat().st_size != size:
        raise CheckpointError(
            f"weights '{value}', {path}: got {path.stat().st_size:,} bytes, expected {size:,}. "
            f"Remove the file and run: namedmask weights fetch {value}{_consent(entry)}"
        )
    return path


def place_named(value: str) -> Place:
    """Return the place of a known name, a path or an s3:// url.

    Raises:
        CheckpointError: see `path_of`.
    """
    return path_of(value) if value in known_weights() else place_of(value)


def listed(config: Config | None = None) -> list[dict[str, Any]]:
    """Return one dict per known file or, given a run's config, per file that the run needs.

    The `state` of a known file is `cached` or `not fetched`. For a setting that holds a path it is
    `file` or `missing`; for any other value it is `a tag of open_clip` or `shipped`.
    """
    if config is None:
        return [_row(entry) for entry in known_weights().values()]
    tree, rows = config.tree(), []
    for key in dict.fromkeys(entry.key for entry in known_weights().values() if entry.when):
        value = _setting(tree, key)
        if not tree[key.partition(".")[0]].get("enabled", True):
            continue  # a disabled filter needs no weights
        fitting = [e for e in known_weights().values() if e.key == key and _fits(e, tree)]
        if value in known_weights():
            rows.append(_row(known_weights()[value]) | {"setting": f"{key} = {value}"})
        elif not value:
            rows += [_row(entry) | {"setting": f"{key} is empty"} for entry in fitting]
        else:
            state = "a tag of open_clip" if key == "embed.weights" else "shipped"
            if "/" in value or Path(value).suffix:
                state = "file" if Path(value).exists() else "missing"
            rows.append({"name": "", "file": value, "state": state, "setting": f"{key} = {value}"})
    return rows


def _row(entry: Weights) -> dict[str, Any]:
    is_cached = (cache_folder() / entry.file).is_file()
    lock = read_lock().get(entry.name, {})
    row = asdict(entry) | {"state": "cached" if is_cached else "not fetched"}
    return row | {key: row[key] or lock.get(key) for key in ("bytes", "sha256")}


def _fits(entry: Weights, tree: Mapping[str, Any]) -> bool:
    """Return whether a run with these settings can use the file."""
    wanted = {k: v if isinstance(v, list) else [v] for k, v in entry.when.items()}
    return all(_setting(tree, key) in values for key, values in wanted.items())


def _setting(tree: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return tree[section][name]


def _consent(entry: Weights) -> str:
    return "" if entry.free else f" --accept-license {entry.license}"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_path() -> Path:
    """Return the path of the lock file in the cache."""
    return cache_folder() / LOCK_FILE


def read_lock() -> dict[str, dict[str, Any]]:
    """Return the lock file's entries by name: file, url, license, bytes and sha256 of each.

    Raises:
        CheckpointError: the lock file exists and is not JSON.
    """
    try:
        lock = json.loads(lock_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{lock_path()} cannot be read as JSON: {error}. Repair it, or remove it together with "
            "the other files in its folder."
        ) from error
    entries: dict[str, dict[str, Any]] = lock
    return entries
