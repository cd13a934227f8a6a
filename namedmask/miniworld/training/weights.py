"""Where the tiny models' weights lie, and how they are written."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

WEIGHTS = Path(__file__).parent.parent / "weights"


def save_half(model: nn.Module, name: str) -> None:
    """Write the model's state into the weights folder, in half precision: it runs in single."""
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, WEIGHTS / name)
