"""Reading `tests/golden`, and filling a network by the formula of its README."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of `tests/golden/<name>.npz`; a missing file fails the test."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def golden_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Return key → shape of `tests/golden/<name>_keys.json`."""
    shapes: dict[str, Any] = json.loads((GOLDEN / f"{name}_keys.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def golden_weights(module: torch.nn.Module) -> None:
    """Overwrite every floating-point entry of `module` by the formula; integers become 0."""
    filled = {
        key: _entry(key, tuple(value.shape)) if value.is_floating_point() else value * 0
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(filled)


def _entry(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    normal = np.asarray(random.standard_normal(shape)).astype(np.float32)
    value = _scaled(key.rsplit(".", 1)[-1], normal)
    if key.startswith("decoder.norm."):
        value = value * 0.05
    if "Head." in key:
        value = value * 1e-4
    return torch.from_numpy(np.asarray(value, np.float32))


def _scaled(last: str, normal: np.ndarray) -> np.ndarray:
    if last == "running_var":
        return 1 + 0.1 * np.abs(normal)
    if last in ("running_mean", "bias"):
        return 0.1 * normal
    if normal.ndim < 2:
        return 1 + 0.1 * normal
    if last in ("pos_embed", "cls_token"):
        return 0.02 * normal
    if last == "query_embed":
        return normal
    return normal * np.float32(np.sqrt(2 / np.prod(normal.shape[1:])))
