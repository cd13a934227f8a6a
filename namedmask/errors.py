"""The exception tree: what can end a run, and with which exit code.

    NamedMaskError             exit 1: the run itself failed
    ├── InputError             exit 2: something the user gave is wrong
    │   ├── ConfigError        a run file or an override
    │   ├── SchemaError        a table without the columns or types a stage needs
    │   ├── CheckpointError    weights or a checkpoint that do not fit
    │   ├── MissingExtraError  an optional package that this run needs
    │   └── ClusterTooSmallError  a Ray cluster that the run would wait on for ever
    ├── TooManyFailuresError   more bad rows than `run.max_failure_share` allows
    └── JobError               a submitted job that did not end well; its own exit code

A bad *row* is never an exception: it is a value of its `status` column (see schema.py).
Every message names the place, what was expected, what was found, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NamedMaskError(Exception):
    """A run failed; the message says where and what to do."""

    exit_code = 1


class InputError(NamedMaskError):
    """Something the user gave cannot be used as it is."""

    exit_code = 2


class ConfigError(InputError):
    """A run file, an override or a name in it is wrong."""


class SchemaError(InputError):
    """A table lacks a column, or holds it in another type, than the reader needs."""


class CheckpointError(InputError):
    """A checkpoint is missing, truncated, or made for another network."""


class MissingExtraError(InputError):
    """An optional package is needed and not installed."""


class ClusterTooSmallError(InputError):
    """The cluster has not, and will not have, what the run needs at once."""


class TooManyFailuresError(NamedMaskError):
    """So many rows failed that going on would waste the run."""


class RayJobError(NamedMaskError):
    """A job on a cluster did not end well, or is followed no longer."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """A ConfigError for a name that is not in a registry, with the nearest known name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{kind} '{name}' is unknown; known: {', '.join(known)}.{hint}")
