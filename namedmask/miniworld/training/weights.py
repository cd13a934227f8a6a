"""Write the tiny models' weights into the folder that ships with the package."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Folder of the shipped weights."""


def save_half(model: nn.Module, name: str) -> None:
    """Write the model's state into the weights folder in half precision.

    Half precision halves the files; the models run in single precision.
    """
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, WEIGHTS / name)
