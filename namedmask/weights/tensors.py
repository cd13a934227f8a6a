"""Read and write files of weights without running code from them, and load them strictly.

All networks of the package are loaded through this module. A file that holds anything but tensors
and plain values is refused. So is a state dict that does not match its network entry by entry; the
error lists the entries that do not match.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from namedmask.errors import CheckpointError, NamedMaskError
from namedmask.storage import Place
from namedmask.storage.place import fetched, replaced


def read_tensors(path: Place) -> dict[str, Any]:
    """Return the tensors in a `.safetensors` file, or the dict in a file written by torch.

    Raises:
        CheckpointError: the file is missing or truncated, or as `read_tree`.
    """
    if path.suffix != ".safetensors":
        return read_tree(path)
    try:
        with fetched(path) as file:
            return dict(safetensors.torch.load_file(file))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_tree(path: Place) -> dict[str, Any]:
    """Return the dict of tensors (on the CPU) and plain values in a file written by torch.

    Raises:
        CheckpointError: the file is missing or truncated, holds code, or is not a dict.
    """
    try:
        with fetched(path) as file:
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(tree).__name__}.")
    return tree


_READ_ERRORS = (
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error, ValueError, TypeError,
    LookupError, AttributeError, MemoryError, OverflowError, AssertionError,
)  # fmt: skip
"""Exceptions that torch raises for missing, truncated or foreign files, found by experiment."""


def _unreadable(path: Place, error: BaseException) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} does not exist. Check the path, or create the file first.")
    # torch's message advises loading the file with the code in it, so it is not shown
    return CheckpointError(
        f"{path}: expected tensors and plain values, but the file cannot be read as such "
        f"({type(error).__name__}). It is truncated, is not a checkpoint, or holds code, which is "
        "never run. Fetch or write it again."
    )


def write_tree(path: Place, tree: Mapping[str, Any]) -> None:
    """Write a dict of tensors and plain values atomically, so `path` is never a partial file.

    Raises:
        NamedMaskError: the file cannot be written.
    """
    try:
        # given a path instead of an open file, torch would store the file's name in the file
        with replaced(path) as part, part.open("wb") as file:
            torch.save(dict(tree), file)
    except (OSError, RuntimeError) as error:
        raise NamedMaskError(
            f"checkpoint {path} cannot be written: {error}. Free space in its folder, or choose "
            "another run.out."
        ) from error


def load_strict(
    module: nn.Module, state: Mapping[str, Any], path: Place | str, network: str
) -> None:
    """Load `state` into `module`; both must have the same entries with the same shapes.

    Half precision is converted to single precision. `path` and `network` appear in error messages.

    Raises:
        CheckpointError: entries are missing, unexpected or of another shape; they are listed.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misfits = [
        f"{key} {_shape(state[key])}, expected {_shape(value)}"
        for key, value in expected.items()
        if key in state and _shape(state[key]) != _shape(value)
    ]
    problems = [
        f"{len(keys)} {problem} ({some_of(keys)})"
        for problem, keys in (
            ("entries missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misfits),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{path}: does not fit {network}: {'; '.join(problems)}. Give the file made for this "
            "network, or name the network and the categories that the file was made for."
        )
    module.load_state_dict(state)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def some_of(keys: object, limit: int = 3) -> str:
    """Return the first `limit` keys as text, followed by an ellipsis if there are more."""
    listed = [str(key) for key in keys] if isinstance(keys, Mapping | Sequence) else []
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
