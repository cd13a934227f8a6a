"""The table of verbs, one row per verb.

The command line, `submit`, `ray_jobs`, `plan`, the report and the ledger read this table. A new
verb needs one file in `namedmask/verbs/` and one row here. Its function takes a config, a
`Progress` and an `Executor`, and returns its result as plain values.

The *road* of a run consists of the verbs that lead from metadata to scores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from namedmask.config import Config
from namedmask.run.layout import EMBEDDINGS, EXPERTS, FETCHED, IMAGES, REFINED, TRAINING

_FILTERS = (
    "metadata.max_punsafe", "metadata.unknown_punsafe", "metadata.min_similarity",
    "metadata.max_similarity", "metadata.max_pwatermark", "metadata.min_side",
    "metadata.max_aspect",
)  # fmt: skip


class VerbFunction(Protocol):
    """The function of a verb, as `Verb.load` returns it."""

    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Do the work of the verb; return its result as plain values.

        `arguments` are the config, the progress and the executor.
        """
        ...


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work that a run folder records, with the rules by which its output stays valid.

    Equal settings give equal output. Finished work is therefore not repeated with the same
    settings, and is refused with other settings.
    """

    name: str
    settings: tuple[str, ...] = ()
    """Sections and keys that shape the output, without those of the verbs that it needs."""
    published_settings: tuple[str, ...] = ()
    """Further sections and keys that shape the output if the vectors are published."""
    store_name: str = ""
    """Store of the output; the settings become binding with its first committed unit."""
    unfinished: tuple[str, ...] = ()
    """Stores and files of unfinished output; the settings become binding once one has content."""
    counted_store: str = ""
    """Store whose units are counted at the end; if their number changes, the work is unfinished."""
    follows_categories: bool = False
    """Whether a change of the categories or of the image checks makes the work unfinished."""
    reuse_when_categories_change: bool = False
    """Whether the work reuses output after such a change, so that the settings stay binding."""
    settings_hold_only_when_finished: bool = False
    """Whether settings bind only finished work, because a unit's name identifies its input."""


@dataclass(frozen=True, kw_only=True)
class Verb(Work):
    """A verb of the command line."""

    help: str
    function: str  # "module:name"
    opens: tuple[str, ...] = ()  # parts to open before the first row, see verbs/preflight.py
    needs: str = ""  # the verb that must be finished before this verb begins
    parts: tuple[str, ...] = ()  # the verbs that this verb runs
    is_on_road: bool = False  # whether `submit` and `demo` run the verb
    retries_rows: bool = False  # whether the verb takes `--retry`
    has_own_command: bool = False  # whether `cli` defines its command, with further options
    applies: Callable[[Config], bool] = _always  # whether a run with this config needs the verb

    def load(self) -> VerbFunction:
        """Return the verb's function; importing its module may take seconds."""
        module, _, name = self.function.partition(":")
        function: VerbFunction = getattr(importlib.import_module(module), name)
        return function


_VERBS = (
    Verb(
        name="fetch",
        help="Read the metadata, fetch the images, and store them; no other verb needs them.",
        function="namedmask.verbs.collect:fetch",
        settings=("metadata", "fetch", "run.wave_rows"),
        opens=("fetching",),
        store_name=FETCHED,
        counted_store=FETCHED,
        retries_rows=True,
    ),
    Verb(
        name="embed",
        help="Read the metadata, fetch the images, and store one vector per image.",
        function="namedmask.verbs.collect:embed",
        settings=("metadata", "fetch", "embed", "run.wave_rows"),
        opens=("fetching", "embedding"),
        store_name=EMBEDDINGS,
        counted_store=EMBEDDINGS,
        reuse_when_categories_change=True,
        retries_rows=True,
        applies=lambda config: not config.vectors.source,
    ),
    Verb(
        name="curate",
        help="Make the archives from metadata: run embed, then build.",
        function="namedmask.verbs.build:curate",
        parts=("embed", "build"),
        is_on_road=True,
    ),
    Verb(
        name="build",
        help="Fill each category's archive from the stored vectors: retrieve, check, mask.",
        function="namedmask.verbs.build:build",
        opens=("fetching", "queries", "checks"),
        needs="embed",
        settings=("categories.templates", "retrieve"),
        published_settings=("vectors.source", "vectors.unchanged_cosine", "embed", *_FILTERS),
        follows_categories=True,
        reuse_when_categories_change=True,
        settings_hold_only_when_finished=True,
    ),
    Verb(
        name="refine",
        help="Train one expert per category or per cluster, and redraw the masks with the experts.",
        function="namedmask.verbs.refine:refine",
        opens=("experts",),
        needs="build",
        settings=("experts", "augment", "segmenter", "run.seed"),
        unfinished=(REFINED, EXPERTS),
        counted_store=REFINED,
        follows_categories=True,
        reuse_when_categories_change=True,
        is_on_road=True,
        applies=lambda config: config.experts.enabled,
    ),
    Verb(
        name="train",
        help="Train the segmenter on all archives, resuming from the last checkpoint.",
        function="namedmask.verbs.train:train",
        opens=("training",),
        needs="refine",
        settings=("train", "augment", "segmenter", "experts.enabled", "run.seed"),
        unfinished=(str(TRAINING),),
        follows_categories=True,
        is_on_road=True,
    ),
    Verb(
        name="evaluate",
        help="Measure the segmenter on the benchmark.",
        function="namedmask.verbs.evaluate:evaluate",
        opens=("scoring",),
        needs="train",
        settings=("evaluate",),
        follows_categories=True,
        settings_hold_only_when_finished=True,
        is_on_road=True,
        has_own_command=True,
        applies=lambda config: bool(config.evaluate.benchmark),
    ),
)

VERBS = {verb.name: verb for verb in _VERBS}
"""All verbs by name, in the order in which the command line lists them."""

CHECKED_IMAGES = Work(
    name="images",
    settings=("fetch", "faces", "saliency", "bilateral"),
    published_settings=("vectors.source", "vectors.unchanged_cosine", "embed"),
    store_name=IMAGES,
    reuse_when_categories_change=True,
)
"""The checked images of a run. They are part of `build`, but are recorded separately, so that the
next build can use the images of a build that failed."""

WORK: dict[str, Work] = {**VERBS, CHECKED_IMAGES.name: CHECKED_IMAGES}
"""All work that a run folder records, by its name in `run.json`."""


def steps_of_road() -> list[Verb]:
    """Return the verbs of the road in order, with their parts in place of composite verbs."""
    road = [verb for verb in VERBS.values() if verb.is_on_road]
    return [VERBS[name] for verb in road for name in (verb.parts or (verb.name,))]


def road_of(config: Config) -> list[str]:
    """Return the names of the verbs on the road that apply to a config, in order."""
    return [verb.name for verb in VERBS.values() if verb.is_on_road and verb.applies(config)]


def verbs_before(name: str, config: Config) -> tuple[str, ...]:
    """Return the names of the verbs that must be finished before a verb begins, in order."""
    needed = [verb.name for verb in _needed(VERBS[name]) if verb.applies(config)]
    return tuple(reversed(needed))


def _needed(verb: Verb) -> Iterator[Verb]:
    while verb.needs:
        verb = VERBS[verb.needs]
        yield verb
