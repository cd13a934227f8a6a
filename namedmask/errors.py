"""The exceptions that end a run, and the exit code of the command line for each.

    NamedMaskError               exit 1: the run itself failed
    ├── InputError               exit 2: the user's input cannot be used
    │   ├── ConfigError          a run file or an override is wrong
    │   ├── SchemaError          a table lacks a column or type that a stage needs
    │   ├── CheckpointError      weights or a checkpoint do not fit
    │   ├── MissingExtraError    an optional package that the run needs is not installed
    │   └── ClusterTooSmallError a Ray cluster lacks CPUs or GPUs, so the run would wait forever
    ├── TooManyFailuresError     more rows failed than `run.max_failure_share` allows
    └── RayJobError              a Ray job failed, was stopped, or is no longer followed

A failed *row* never raises an exception. Its `status` column says what went wrong (see
schema/status.py). Every message names the place, says what was expected and what was found, and
tells the user what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NamedMaskError(Exception):
    """A run failed; the message says where it failed and what the user can do."""

    exit_code = 1
    details = ""  # traceback of an unexpected cause, for the log file


class InputError(NamedMaskError):
    """An input from the user cannot be used as it is."""

    exit_code = 2


class ConfigError(InputError):
    """A run file or an override has a wrong key, value or name."""


class SchemaError(InputError):
    """A table lacks a column that its reader needs, or has the column in another type."""


class CheckpointError(InputError):
    """A checkpoint is missing, truncated, or was made for another network."""


class MissingExtraError(InputError):
    """The run needs an optional package that is not installed."""


class ClusterTooSmallError(InputError):
    """The Ray cluster cannot provide the CPUs or GPUs that the run needs at the same time."""


class TooManyFailuresError(NamedMaskError):
    """So many rows failed that it would be a waste to continue the run."""


class RayJobError(NamedMaskError):
    """A Ray job failed, was stopped, or is no longer followed by this process.

    `exit_code` is the exit code of the job, 130 if it was stopped or is no longer followed, or 1 if
    it failed before its command ran.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return a ConfigError for a name that is not among the `known` names.

    Its message lists the known names, and proposes the closest one if there is a similar name.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"{kind} '{name}' is unknown; known: {', '.join(known)}.{hint}")
