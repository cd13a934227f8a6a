"""The stages, one row each: the class of a stage, and when it checks an image.

A new stage is one folder with its class, one section of the config, and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from namedmask.config import Config


class Stage(Protocol):
    """A stage as whoever runs it sees it: a table in, the same rows out."""

    name: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with what the stage adds."""
        ...


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class StageRow:
    """A stage by the name of its config section."""

    stage_class: str  # "module:name"
    checks_images: Callable[[Config], bool] = _always
    """Whether an image of this run passes it between its fetch and the archive."""


STAGES = {
    "fetch": StageRow("namedmask.fetch.stage:Fetch"),
    "embed": StageRow(  # is it still the image that was published?
        "namedmask.embed.stage:Embed", lambda config: bool(config.vectors.source)
    ),
    "faces": StageRow("namedmask.faces.stage:Faces", lambda config: config.faces.enabled),
    "saliency": StageRow("namedmask.saliency.stage:Saliency"),
    "bilateral": StageRow(
        "namedmask.bilateral:Bilateral", lambda config: config.bilateral.enabled
    ),
}  # fmt: skip
"""The stages in the order in which an image passes them."""


def load_stage(name: str, config: Config) -> Stage:
    """Return a stage, ready to run here; its module is imported now.

    Raises:
        InputError: its weights, detector or device are not to be had.
    """
    loaded: Stage = stage_class(name)(getattr(config, name))
    return loaded


def stage_class(name: str) -> Any:
    """Return the class of a stage, with its `reads` and `adds`; its module is imported now."""
    module, _, attribute = STAGES[name].stage_class.partition(":")
    return getattr(importlib.import_module(module), attribute)


def checking_stages(config: Config) -> tuple[str, ...]:
    """Return the stages that an image passes between its fetch and the archive, in order."""
    return tuple(name for name, row in STAGES.items() if row.checks_images(config))


def batch_size_of(stages: Sequence[str], config: Config) -> int:
    """Return the batch size of the stages that have one, the largest."""
    return max(getattr(getattr(config, name), "batch_size", 1) for name in stages)
