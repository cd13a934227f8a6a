"""Files of weights by name: which a run needs, fetched into a cache, checked ever after.

The list is data/weights.toml. Nothing is fetched unless asked for (`namedmask weights fetch NAME`),
and nothing whose license is not free without a word for it. A published hash is compared; where
none is, that of the first fetch is written to the cache's `weights.lock.json` and compared from
then on, which is told: the first fetch itself is trusted.

Settings that take weights (`saliency.weights`, …) take a name of the list as well as a path; both
go through `path_of`.
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
from namedmask.errors import CheckpointError
from namedmask.storage import Place, place_of

CACHE_VARIABLE = "NAMEDMASK_CACHE"
LOCK_FILE = "weights.lock.json"
CHUNK = 1 << 20
TIMEOUT_S = 60.0
"""Of one read from the network, not of a whole file."""


@dataclass(frozen=True)
class Weights:
    """One file of the list; see data/weights.toml for what the fields mean."""

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
    """Return the files of the list by name, in its order."""
    text = resources.files("namedmask").joinpath("data", "weights.toml").read_text("utf-8")
    return {name: Weights(name, **entry) for name, entry in tomllib.loads(text).items()}


def cache_folder() -> Path:
    """Return where fetched files lie: $NAMEDMASK_CACHE, else namedmask below the user's cache."""
    told = os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(told) if told else base / "namedmask"


def path_of(value: str) -> Path:
    """Return the file that a setting names: a name of the list lies in the cache, else a path.

    Raises:
        CheckpointError: the name is of the list and its file is not in the cache as it was fetched.
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
    size = _read_lock().get(value, {}).get("bytes", entry.bytes)
    if size and path.stat().st_size != size:
        raise CheckpointError(
            f"weights '{value}', {path}: {path.stat().st_size:,} bytes, expected {size:,}. Remove "
            f"the file and run: namedmask weights fetch {value}{_consent(entry)}"
        )
    return path


def place_named(value: str) -> Place:
    """Return what `path_of` does, and the place of an s3:// url."""
    return path_of(value) if value in known_weights() else place_of(value)


def listed(config: Config | None = None) -> list[dict[str, Any]]:
    """Return the files of the list, or those that a run needs, one dict each.

    `state` is `cached` or `not fetched`; of a setting that holds a path `file` or `missing`, of
    another `a tag of open_clip` or `shipped`.
    """
    if config is None:
        return [_row(entry) for entry in known_weights().values()]
    tree, rows = config.tree(), []
    for key in dict.fromkeys(entry.key for entry in known_weights().values() if entry.when):
        value = _setting(tree, key)
        if not tree[key.partition(".")[0]].get("enabled", True):
            continue  # a filter that is off needs none
        fitting = [one for one in known_weights().values() if one.key == key and _fits(one, tree)]
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
    there = (cache_folder() / entry.file).is_file()
    lock = _read_lock().get(entry.name, {})
    row = asdict(entry) | {"state": "cached" if there else "not fetched"}
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


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock_path() -> Path:
    return cache_folder() / LOCK_FILE


def _read_lock() -> dict[str, dict[str, Any]]:
    try:
        lock = json.loads(_lock_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{_lock_path()} cannot be read as JSON: {error}. Put it right, or remove it together "
            "with the files beside it."
        ) from error
    found: dict[str, dict[str, Any]] = lock
    return found
