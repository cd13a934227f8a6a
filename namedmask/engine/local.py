"""The plain loop, which processes waves, categories and scenes one after the other, without Ray.

The plain loop serves single machines, notebooks, and GPU machines that have torch and no Ray. It is
also the reference for the graphs on a cluster, which must give the same bytes. The next wave is
fetched while the current wave passes the other stages. If `fetch.processes` is not 1, several
processes fetch, one wave each. Modules that a verb does not need are not imported, because torch
alone takes seconds.

Memory: the encoded images of three slices (`Limits.encoded_bytes` each) or, with N fetching
processes, of N + 2 slices here and two in each process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar, cast

from namedmask import schema
from namedmask.engine.processes import fetched_by_many, process_count, slices_by_many
from namedmask.fetch.stage import Fetch
from namedmask.metadata import clean as metadata
from namedmask.run.job import VerbRun
from namedmask.run.machine import cores, use_threads
from namedmask.run.progress import Step
from namedmask.run.stages import Part, batch_size_of
from namedmask.run.waves import FetchedSlice, Wave, WaveSink, Written, fetch_wave, in_batches
from namedmask.storage import Place
from namedmask.storage.read_ahead import prefetch_one

T = TypeVar("T")
R = TypeVar("R")


class PlainLoop:
    """An executor (see run/executor.py) that works without Ray."""

    parts = 1

    def open(self, run: VerbRun, parts: Sequence[Part], later: Sequence[Part] = ()) -> None:
        """Open the parts of a verb, which keeps its stages, then those of later verbs."""
        for part in parts:
            stage = part.open()
            if part.stage:
                run.stages[part.stage] = stage
        for part in later:
            part.open()

    def metadata(self, run: VerbRun) -> Iterator[Wave]:
        """Yield the waves of the metadata; the rows of each wave are read when it is requested."""
        tables = metadata.read_metadata(run.config.metadata)
        for number, table in enumerate(metadata.waves(tables, run.config.run.wave_rows)):
            yield Wave(f"{number:05d}", partial(_identity, table))

    def run(
        self,
        run: VerbRun,
        waves: Iterable[Wave],
        stages: Sequence[str],
        store_name: str,
        step: Step,
    ) -> Generator[Written]:
        """Pass each wave through the stages and commit it; yield its result."""
        first, *others = stages
        if not others and process_count(run.config.fetch) > 1:
            yield from _collected_by_many(run, waves, store_name, step)
            return
        loaded = [run.stage(name) for name in others]
        use_threads(run.config)
        batch_size = batch_size_of(stages, run.config) if others else run.config.run.wave_rows
        fetch = cast(Fetch, run.stage(first))
        with closing(_fetched(run, waves, fetch)) as fetched:
            for header, slices in itertools.groupby(fetched, key=lambda part: part.header):
                with WaveSink(run.ledger.folder, store_name, header) as sink:
                    for part in slices:
                        run.seconds[first] += part.seconds
                        for rows in in_batches(part.table, batch_size):
                            for stage in loaded:
                                with run.clock(stage.name):
                                    rows = stage(rows)
                            counts = schema.counts_by_status(rows["status"].to_pylist())
                            step.advance(rows.num_rows, counts)
                            sink.add(rows)
                    written = sink.commit()
                yield written

    def map(
        self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Return an iterator over the results of `make()` for each item, in order."""
        function = make()
        use_threads(run.config)
        return map(function, items)

    def call(self, run: VerbRun, section: str, make: Callable[[], Callable[[T], R]], item: T) -> R:
        """Return the result of `make()` for one item."""
        return next(iter(self.map(run, section, make, [item])))

    def refine(self, run: VerbRun, clusters: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        """Train the experts one after the other; see experts.refine.refine_archive."""
        from namedmask.experts.refine import refine_archive

        use_threads(run.config)
        return refine_archive(run, clusters)

    def train(self, run: VerbRun, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter, resuming from its last checkpoint, and save it at `CHECKPOINT`."""
        from namedmask.archive.store import Archive
        from namedmask.run.layout import CHECKPOINT, TRAINING
        from namedmask.segmenter.checkpoint import save_checkpoint, starting_segmenter
        from namedmask.train.loop import train

        use_threads(run.config)
        config, folder = run.config, run.ledger.folder
        archive = Archive.open(run.archive)
        model = starting_segmenter(
            config.segmenter, archive.label_names, config.run.seed, config.train.start
        )
        train(
            model, archive.samples(refined=config.experts.enabled), config.train, config.augment,
            seed=config.run.seed, checkpoint=folder / TRAINING,
            checkpoint_every=config.train.checkpoint_every, on_step=on_step,
        )  # fmt: skip
        save_checkpoint(
            folder / CHECKPOINT, model, name=config.segmenter.name, names=archive.label_names,
            step=config.train.iterations,
        )  # fmt: skip
        (folder / TRAINING).unlink(missing_ok=True)


def _identity(item: T) -> T:
    return item


def _fetched(run: VerbRun, waves: Iterable[Wave], fetch: Fetch) -> Generator[FetchedSlice]:
    """Yield the slices of all waves once they are fetched; fetch the next in the background."""
    if process_count(run.config.fetch) > 1:
        yield from slices_by_many(waves, run.config)
        return
    fetch.cores = cores()  # no other process fetches
    yield from prefetch_one(part for wave in waves for part in fetch_wave(wave, fetch))


def _collected_by_many(
    run: VerbRun, waves: Iterable[Wave], store_name: str, step: Step
) -> Iterator[Written]:
    """Yield the result of each wave that the worker processes have fetched and committed."""
    commit = partial(_commit, run.ledger.folder.absolute(), store_name)
    for written, seconds in fetched_by_many(waves, run.config, commit):
        run.seconds["fetch"] += seconds
        step.advance(sum(written.counts.values()), written.counts)
        yield written


def _commit(
    folder: Place, store_name: str, slices: Iterator[FetchedSlice]
) -> tuple[Written, float]:
    """Commit a wave while its slices are fetched; return its result and the fetch's seconds."""
    head = next(slices)
    with WaveSink(folder, store_name, head.header) as sink:
        seconds = 0.0
        for part in itertools.chain([head], slices):
            sink.add(part.table)
            seconds += part.seconds
        return sink.commit(), seconds
