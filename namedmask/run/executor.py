"""Who does the work of a verb: the plain loop in this process, or graphs on a cluster.

A verb says what is to be done in which order, and never how; an executor does it, and never asks
what for. Whichever it is, a run ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from namedmask.run.job import VerbRun
from namedmask.run.progress import Step
from namedmask.run.waves import Wave, Written

T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Whoever does the work of a verb."""

    parts: int
    """Parts a long list is worth being cut into: more than there are hands."""

    def metadata(self, run: VerbRun) -> Iterable[Wave]:
        """Return the waves of the metadata, the same rows in each wherever they are read."""
        ...

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Iterator[Written]:
        """Yield what became of each wave, in any order, once it is committed to a store."""
        ...

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the items in order as the function returned by `make` maps them.

        `make` is called wherever the resources of the config's `section` are; all of it pickles.
        """
        ...

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return what `map` would yield for one item."""
        ...

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts and redraw the masks; see refine.refine_archive."""
        ...

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter and leave it at `segmenter.CHECKPOINT`."""
        ...
