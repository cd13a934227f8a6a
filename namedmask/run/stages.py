"""The table of stages, one row per stage: its class, and whether it checks the images of a run.

A new stage needs one folder with its class, one section of the config, and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from namedmask.config import Config


class Stage(Protocol):
    """A callable that takes a table and returns the same rows with more columns."""

    name: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with the columns that the stage adds; `table` itself does not change."""
        ...


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class StageRow:
    """One row of the table of stages; its key is the name of the stage's config section."""

    stage_class: str  # "module:name"
    checks_images: Callable[[Config], bool] = _always
    """Whether images of this run pass the stage on their way into an archive."""


STAGES = {
    "fetch": StageRow("namedmask.fetch.stage:Fetch"),
    "embed": StageRow(  # checks that the image is still the one that was published
        "namedmask.embed.stage:Embed", lambda config: bool(config.vectors.source)
    ),
    "faces": StageRow("namedmask.faces.stage:Faces", lambda config: config.faces.enabled),
    "saliency": StageRow("namedmask.saliency.stage:Saliency"),
    "bilateral": StageRow(
        "namedmask.bilateral:Bilateral", lambda config: config.bilateral.enabled
    ),
}  # fmt: skip
"""The stages by name, in the order in which an image passes them."""


def load_stage(name: str, config: Config) -> Stage:
    """Return a stage, ready to run in this process; its module is imported by this call.

    Raises:
        InputError: its weights, detector or device are not available.
    """
    loaded: Stage = stage_class(name)(getattr(config, name))
    return loaded


def stage_class(name: str) -> Any:
    """Return the class of a stage, with its `reads` and `adds`, importing its module."""
    module, _, attribute = STAGES[name].stage_class.partition(":")
    return getattr(importlib.import_module(module), attribute)


def checking_stages(config: Config) -> tuple[str, ...]:
    """Return the names of the stages that an image passes from fetch to archive, in order."""
    return tuple(name for name, row in STAGES.items() if row.checks_images(config))


def batch_size_of(stages: Sequence[str], config: Config) -> int:
    """Return the largest batch size of these stages; 1 if none of them has one."""
    return max(getattr(getattr(config, name), "batch_size", 1) for name in stages)
