"""The stages by name: their classes, how one is loaded, which of them check an image."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from namedmask.config import Config

STAGE_CLASSES = {
    "fetch": "namedmask.fetch.stage:Fetch",
    "embed": "namedmask.embed.stage:Embed",
    "faces": "namedmask.faces.stage:Faces",
    "saliency": "namedmask.saliency.stage:Saliency",
    "bilateral": "namedmask.bilateral:Bilateral",
}
"""The class of each stage, by the name of the stage and of its config section."""


def load_stage(name: str, config: Config) -> Stage:
    """Return a stage, ready to run here; its module is imported now.

    Raises:
        InputError: its weights, detector or device are not to be had.
    """
    loaded: Stage = stage_class(name)(getattr(config, name))
    return loaded


def stage_class(name: str) -> Any:
    """Return the class of a stage, with its `reads` and `adds`; its module is imported now."""
    module, _, attribute = STAGE_CLASSES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def judging_stages(config: Config) -> tuple[str, ...]:
    """Return the stages that an image passes between its fetch and the archive, in order."""
    enabled = {
        "embed": bool(config.vectors.source),  # is it still the image that was published?
        "faces": config.faces.enabled,
        "bilateral": config.bilateral.enabled,
    }
    stages = ("fetch", "embed", "faces", "saliency", "bilateral")
    return tuple(name for name in stages if enabled.get(name, True))


def batch_size_of(stages: Sequence[str], config: Config) -> int:
    """Return the batch size of the stages that have one, the largest."""
    return max(getattr(getattr(config, name), "batch_size", 1) for name in stages)


class Stage(Protocol):
    """A stage as whoever runs it sees it: a table in, the same rows out."""

    name: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with what the stage adds."""
        ...
