"""The table of stages: the class of each stage, and the runs whose archive images it checks.

A new stage needs one folder with its class, one section in the config, and one row here.

Stages are *parts* of a verb, like all models, plug-ins, devices and files that are opened before
its first row. A part that cannot be opened is a failure of the run, never of its rows. The module
verbs/preflight.py lists the parts of each verb, and an executor opens them in processes of the kind
that use them.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from namedmask.config import Config, PoolSection
from namedmask.errors import InputError, NamedMaskError
from namedmask.images.limits import Limits
from namedmask.run.failures import sentence_of
from namedmask.run.machine import budget_bytes, cores, limits_of

T = TypeVar("T")


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


WORKING_BYTES_PER_PIXEL = 32
"""Bytes per pixel that a stage needs at most for one image: the image, its maps and its mask."""

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


def memory_plan(config: Config, processes: int) -> dict[str, Any]:
    """Return how `processes` processes of the run share the memory of this machine.

    `slice_mb` and `decoded_mb` are the limits on the encoded images of a slice and on the decoded
    images in work, and `largest_image_mb` is what a stage needs for an image of `fetch.max_pixels`,
    all per process in MB (2**20 bytes).
    """
    limits = limits_of(config, processes)
    return {
        "memory_gb": round(budget_bytes(config) / 2**30, 1),
        "processes": processes,
        "slice_mb": limits.encoded_bytes >> 20,
        "decoded_mb": limits.decoded_bytes >> 20,
        "largest_image_mb": limits.max_pixels * WORKING_BYTES_PER_PIXEL >> 20,
    }


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


NAMING = ("model", "detector", "name", "weights", "backbone_weights", "device")
"""Keys of a section that name what its stage opens."""


@dataclass(frozen=True)
class Part:
    """A part of a verb; it pickles if `make` pickles."""

    section: str
    """Config section with the resources of the process that uses the part; "": this process."""
    subject: str
    """The part in the user's words, as the subject of a message."""
    make: Callable[[], Any]
    """Opens the part and returns it."""
    stage: str = ""
    """Name of the stage that `make` returns; "" if the part is only checked."""

    def open(self) -> Any:
        """Return the opened part.

        Raises:
            NamedMaskError: as `opened`.
        """
        return opened(self.make, self.subject)


def opened(make: Callable[[], T], subject: str) -> T:
    """Return the result of `make`, with any error of it as an error of the run.

    Raises:
        NamedMaskError: `make` raised this error.
        InputError: `make` raised another error; the traceback is in `details`.
    """
    try:
        return make()
    except NamedMaskError:
        raise
    except Exception as error:  # plug-ins and libraries may raise anything
        problem = InputError(
            f"{subject} cannot be opened: {sentence_of(error)} Correct these settings, or install "
            "what they need."
        )
        problem.details = "".join(traceback.format_exception(error))
        raise problem from error


def stage_part(name: str, config: Config, processes: int = 1) -> Part:
    """Return the part that is a stage, ready to run; `processes` is as for `load_stage`."""
    make = partial(load_stage, name, config, processes)
    return Part(name, subject_of(name, config), make, name)


def open_stage(name: str, config: Config, processes: int = 1) -> Any:
    """Return a stage that is ready to run in this process, as `load_stage`.

    Raises:
        NamedMaskError: as `opened`.
    """
    return stage_part(name, config, processes).open()


def subject_of(section: str, config: Config) -> str:
    """Return the keys of a section that name its model, such as `embed (model 'miniworld')`."""
    keys = getattr(config, section)
    named = [f"{key} '{value}'" for key in NAMING if (value := getattr(keys, key, ""))]
    return f"{section} ({', '.join(named)})" if named else section
