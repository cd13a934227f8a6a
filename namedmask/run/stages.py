"""The table of stages: the class of each stage, and the runs whose archive images it checks.

A new stage needs one folder with its class, one section in the config, and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from namedmask.config import Config, PoolSection
from namedmask.images.limits import Limits
from namedmask.run.machine import cores, limits_of


class Stage(Protocol):
    """A callable that takes a table and returns the same rows with more columns."""

    name: str
    limits: Limits

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with the columns that the stage adds; `table` itself does not change."""
        ...


class Fetcher(Stage, Protocol):
    """A stage that also gives back its rows in slices, each as soon as it is fetched."""

    def slices(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield all rows of `table`, in order, with the columns that the stage adds."""
        ...


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True)
class StageRow:
    """One row of the table of stages; its key is the name of the stage's config section."""

    stage_class: str  # "module:name"
    checks_images: Callable[[Config], bool] = _always
    """Whether the images of a run with this config pass the stage before they enter an archive."""


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
"""All stages by name, in the order in which an image passes them."""


def processes_here(config: Config) -> int:
    """Return the largest number of processes of a graph that can be on this machine at once."""
    graphs = (("fetch", "embed"), checking_stages(config))
    return 1 + max(sum(_processes_of(getattr(config, name)) for name in graph) for graph in graphs)


def _processes_of(pool: PoolSection) -> int:
    return min(pool.actors[1], max(1, int(cores() / (pool.num_cpus or 1))))


def load_stage(name: str, config: Config, processes: int = 1) -> Any:
    """Return a stage that is ready to run in this process; import its module.

    `processes` is the number of processes that share the memory of this machine.

    Raises:
        ConfigError: its model or detector is unknown, or a setting is wrong.
        CheckpointError: its weights cannot be loaded.
        InputError: its device is missing.
    """
    loaded = stage_class(name)(getattr(config, name))
    loaded.limits = limits_of(config, processes)
    return loaded


def stage_class(name: str) -> Any:
    """Return the class of a stage; import its module.

    The attributes `reads` and `adds` of the class name the columns that the stage reads and adds.
    """
    module, _, attribute = STAGES[name].stage_class.partition(":")
    return getattr(importlib.import_module(module), attribute)


def checking_stages(config: Config) -> tuple[str, ...]:
    """Return the names of the stages that an image passes before it enters an archive, in order."""
    return tuple(name for name, row in STAGES.items() if row.checks_images(config))


def batch_size_of(stages: Sequence[str], config: Config) -> int:
    """Return the largest batch size of these stages; 1 if no stage has a batch size."""
    return max(getattr(getattr(config, name), "batch_size", 1) for name in stages)
