"""The verbs, one row each: what the command line, `submit`, `ray_jobs`, `plan`, the report and the
ledger know of them.

A new verb is one file in `namedmask/verbs/` and one row here. Its function takes the config, a
`Progress` and an `Executor`, and returns what it ended with as plain values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from namedmask.config import Config
from namedmask.run.layout import EMBEDDINGS, FETCHED, IMAGES

_FILTERS = (
    "metadata.max_punsafe", "metadata.unknown_punsafe", "metadata.min_similarity",
    "metadata.max_similarity", "metadata.max_pwatermark", "metadata.min_side",
    "metadata.max_aspect",
)  # fmt: skip


class VerbFunction(Protocol):
    """What a row's `function` names."""

    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Do the work; `arguments` are the config, the progress and the executor."""
        ...


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Work:
    """A piece of work that a run folder remembers, and when what it wrote is still of use.

    Equal settings, equal output: finished work with the same settings is not done again, and the
    same work with other settings is refused.
    """

    name: str
    settings: tuple[str, ...] = ()
    """Sections and keys that shape its output, beside those of the work that it needs."""
    published_settings: tuple[str, ...] = ()
    """More such keys where the vectors are published, and no verb embed comes before."""
    store_name: str = ""
    """Store without which nothing has been written yet, so that no setting holds."""
    follows_categories: bool = False
    """There is work again when the categories change, or how images are checked."""
    reuse_when_categories_change: bool = False
    """What was written for the old categories is used for the new ones, so its settings hold."""
    settings_hold_only_when_finished: bool = False
    """Its units are named by all that they follow from, so unfinished work binds nothing."""


@dataclass(frozen=True, kw_only=True)
class Verb(Work):
    """A verb of the command line."""

    help: str
    function: str  # "module:name"
    needs: str = ""  # the verb that must be finished before
    parts: tuple[str, ...] = ()  # verbs that it consists of
    is_on_road: bool = False  # one of those that `submit` runs when none is named
    retries_rows: bool = False  # takes `--retry`
    has_own_command: bool = False  # its command has options of its own, in `cli`
    applies: Callable[[Config], bool] = _always  # whether this run has such a step at all

    def load(self) -> VerbFunction:
        """Return the verb's function; its module is imported now, which may take seconds."""
        module, _, name = self.function.partition(":")
        function: VerbFunction = getattr(importlib.import_module(module), name)
        return function


_VERBS = (
    Verb(
        name="fetch",
        help="Read the metadata, fetch the images, and store them; the other verbs do without.",
        function="namedmask.verbs.collect:fetch",
        settings=("metadata", "fetch", "run.wave_rows"),
        store_name=FETCHED,
        retries_rows=True,
    ),
    Verb(
        name="embed",
        help="Read the metadata, fetch the images, and store one vector for each.",
        function="namedmask.verbs.collect:embed",
        settings=("metadata", "fetch", "embed", "run.wave_rows"),
        store_name=EMBEDDINGS,
        reuse_when_categories_change=True,
        retries_rows=True,
        applies=lambda config: not config.vectors.source,
    ),
    Verb(
        name="curate",
        help="Make the archives from metadata: embed, then build.",
        function="namedmask.verbs.build:curate",
        parts=("embed", "build"),
        is_on_road=True,
    ),
    Verb(
        name="build",
        help="Fill each category's archive from the stored vectors: retrieve, check, mask.",
        function="namedmask.verbs.build:build",
        needs="embed",
        settings=("categories.templates", "retrieve"),
        published_settings=("vectors.source", "vectors.unchanged_cosine", "embed", *_FILTERS),
        follows_categories=True,
        reuse_when_categories_change=True,
        settings_hold_only_when_finished=True,
    ),
    Verb(
        name="refine",
        help="Train one expert per category, or per cluster, and let it redraw their masks.",
        function="namedmask.verbs.refine:refine",
        needs="build",
        settings=("experts", "augment", "segmenter", "run.seed"),
        follows_categories=True,
        reuse_when_categories_change=True,
        is_on_road=True,
        applies=lambda config: config.experts.enabled,
    ),
    Verb(
        name="train",
        help="Train the segmenter on all archives; goes on from the last checkpoint.",
        function="namedmask.verbs.train:train",
        needs="refine",
        settings=("train", "augment", "segmenter", "experts.enabled", "run.seed"),
        follows_categories=True,
        is_on_road=True,
    ),
    Verb(
        name="evaluate",
        help="Measure the segmenter on the benchmark.",
        function="namedmask.verbs.evaluate:evaluate",
        needs="train",
        settings=("evaluate",),
        follows_categories=True,
        is_on_road=True,
        has_own_command=True,
        applies=lambda config: bool(config.evaluate.benchmark),
    ),
)

VERBS = {verb.name: verb for verb in _VERBS}
"""All verbs by name, in the order in which they are listed to people."""

CHECKED_IMAGES = Work(
    name="images",
    settings=("fetch", "faces", "saliency", "bilateral"),
    published_settings=("vectors.source", "vectors.unchanged_cosine", "embed"),
    store_name=IMAGES,
    reuse_when_categories_change=True,
)
"""The checked images of a run: part of build, remembered apart, so that a failed build may leave
them to the next one."""

WORK: dict[str, Work] = {**VERBS, CHECKED_IMAGES.name: CHECKED_IMAGES}
"""All that a run folder remembers, by the name in its record."""


def steps_of_road() -> list[Verb]:
    """Return the verbs that write to a run folder from metadata to scores, in order."""
    road = [verb for verb in VERBS.values() if verb.is_on_road]
    return [VERBS[name] for verb in road for name in (verb.parts or (verb.name,))]


def road_of(config: Config) -> list[str]:
    """Return the names of the verbs of a whole run, in order; those that do not apply left out."""
    return [verb.name for verb in VERBS.values() if verb.is_on_road and verb.applies(config)]


def verbs_before(name: str, config: Config) -> tuple[str, ...]:
    """Return the verbs that must be finished before a verb may begin, in order."""
    needed = [verb.name for verb in _needed(VERBS[name]) if verb.applies(config)]
    return tuple(reversed(needed))


def _needed(verb: Verb) -> Iterator[Verb]:
    while verb.needs:
        verb = VERBS[verb.needs]
        yield verb
