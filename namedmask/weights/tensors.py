"""Files of weights: read without running code from them, filled in exactly, written whole.

Every network of the package is loaded through here. A file gives tensors and plain values or is
refused, and what it gives fits the network to the last entry or is refused with what does not fit.
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
    """Return the flat state dict in a `.safetensors` file, or in one written by torch.

    Raises:
        CheckpointError: missing, truncated or hostile.
    """
    if path.suffix != ".safetensors":
        return read_tree(path)
    try:
        with fetched(path) as file:
            return dict(safetensors.torch.load_file(file))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_tree(path: Place) -> dict[str, Any]:
    """Return the dict in a file written by torch; tensors and plain values only, on the CPU.

    Raises:
        CheckpointError: missing, truncated, hostile, or something else than a dict.
    """
    try:
        with fetched(path) as file:
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except _TORN as error:
        raise _unreadable(path, error) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(tree).__name__}.")
    return tree


_TORN = (
    OSError, RuntimeError, EOFError, pickle.UnpicklingError, struct.error, ValueError, TypeError,
    LookupError, AttributeError, MemoryError, OverflowError, AssertionError,
)  # fmt: skip
"""What torch raises on a file that is absent, cut short or not its own, found by cutting files."""


def _unreadable(path: Place, error: BaseException) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} does not exist. Check the path, or make the file first.")
    # torch's own text advises to load the file with code and all, so it is not passed on
    return CheckpointError(
        f"{path}: expected tensors and plain values, but it cannot be read as such "
        f"({type(error).__name__}): it is truncated, no checkpoint, or holds code, which is "
        "never run. Fetch or write it again."
    )


def write_tree(path: Place, tree: Mapping[str, Any]) -> None:
    """Write a dict of tensors and plain values so that `path` is the old file or the new one.

    Raises:
        NamedMaskError: the folder cannot be written.
    """
    try:
        # a path would be written into the file, name and all
        with replaced(path) as part, part.open("wb") as file:
            torch.save(dict(tree), file)
    except (OSError, RuntimeError) as error:
        raise NamedMaskError(
            f"checkpoint {path} cannot be written: {error}. Free space there, or choose another "
            "run.out."
        ) from error


def load_strict(
    module: nn.Module, state: Mapping[str, Any], path: Place | str, network: str
) -> None:
    """Fill `module` with `state`; every entry of either must be in the other, in the same shape.

    Half precision is widened. `path` and `network` are for the message.

    Raises:
        CheckpointError: with what is missing, unexpected or of another shape.
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
        f"{len(keys)} {what} ({some_of(keys)})"
        for what, keys in (
            ("entries missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misfits),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{path}: does not fit {network}: {'; '.join(problems)}. Give the file made for this "
            "network, or name the network and the categories it was made for."
        )
    module.load_state_dict(state)


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def some_of(keys: object, limit: int = 3) -> str:
    """Return the first few of some keys as one text."""
    listed = [str(key) for key in keys] if isinstance(keys, Mapping | Sequence) else []
    return ", ".join(listed[:limit]) + (", …" if len(listed) > limit else "")
