"""The interface of an executor, which does the work of a verb.

A verb decides which work is done, and in which order. An executor decides in which processes the
work is done: in this process (`engine.local`), or on a cluster (`engine.on_ray`). The run folder
ends with the same bytes, whichever executor did the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from namedmask.run.job import VerbRun
from namedmask.run.progress import Step
from namedmask.run.stages import Part
from namedmask.run.waves import Wave, Written

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Does the work of a verb."""

    parts: int
    """Number of parts into which a long list is split for `map`; 1 if one process does all work."""

    def open(self, run: VerbRun, parts: Sequence[Part], later: Sequence[Part] = ()) -> None:
        """Open the parts of a verb, and those of `later` verbs, before the verb's first row.

        They are opened in processes with the resources of their sections.

        Raises:
            NamedMaskError: the first part that cannot be opened; every executor raises the same.
        """
        ...

    def metadata(self, run: VerbRun) -> Iterable[Wave]:
        """Return the waves of the metadata; every executor gives the same waves and rows."""
        ...

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Generator[Written]:
        """Pass each wave through `stages` and commit it to a store; yield its result, in any order.

        `step` advances by the rows that have passed the stages.
        """
        ...

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the result of a function for each item, in the order of the items.

        `make` returns that function. It is called once in each process; the processes have the
        resources of the config section `section`. `make`, the items and the results must pickle.
        """
        ...

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return the result of `map` for a single item."""
        ...

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts and redraw the masks; return as experts.refine.refine_archive.

        `clusters` lists the category names of each expert; if empty, each category has an expert.
        """
        ...

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter and save it at `layout.CHECKPOINT` in the run folder.

        `on_step(done, loss)` is called after each step, in this process.
        """
        ...
