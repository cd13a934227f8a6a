"""The interface of an executor, which does the work of a verb.

A verb decides which work is done and in which order. An executor decides in which processes the
work is done: `engine.local` does it in this process, `engine.on_ray` on a cluster. The run folder
holds the same bytes in the end, whichever executor did the work.
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
    """Does the work of a verb."""

    parts: int
    """Number of parts to split a long list into for `map`; 1 where a single process does all."""

    def metadata(self, run: VerbRun) -> Iterable[Wave]:
        """Return the waves of the metadata; each wave has the same rows with every executor."""
        ...

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Iterator[Written]:
        """Yield the result of each wave, in any order, once the wave is committed to a store.

        Every wave passes `stages` in order; `step` advances as rows have passed.
        """
        ...

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield the result of a function for each item, in the order of the items.

        `make` returns that function. It is called once in each process that has the resources of
        the config's section `section`. `make`, the items and the results must pickle.
        """
        ...

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return the result that `map` would yield for a single item."""
        ...

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Train the experts and redraw the masks; see experts.refine.refine_archive."""
        ...

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter and save it at `layout.CHECKPOINT` in the run folder.

        `on_step(done, loss)` is called after each step, in this process.
        """
        ...
