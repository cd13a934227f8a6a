"""The plain loop: every wave, category and scene one after the other, in this process.

For one machine, for a notebook, for a GPU machine that has only torch; and the reference that the
graphs on a cluster are held to. The next wave is fetched while the one before it is in use. What a
verb does not need is not imported: torch takes seconds.

Memory: two waves of encoded images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from namedmask import metadata, schema
from namedmask.ahead import one_ahead
from namedmask.jobs import Job, batch_size_of, load_stage, use_threads
from namedmask.progress import Step
from namedmask.waves import Stage, Wave, Written, input_digest, slices, write

T = TypeVar("T")
R = TypeVar("R")


class PlainLoop:
    """An executor (see verbs.py) without any other process."""

    parts = 1

    def metadata(self, job: Job) -> Iterator[Wave]:
        """Yield the waves of the metadata, each read when it is its turn."""
        tables = metadata.read_metadata(job.config.metadata)
        for number, table in enumerate(metadata.waves(tables, job.config.run.wave_rows)):
            yield Wave(f"{number:05d}", partial(_itself, table))

    def run(
        self, job: Job, waves: Iterable[Wave], stages: Sequence[str], store: str, step: Step
    ) -> Iterator[Written]:
        """Yield what became of each wave once it has passed the stages and is committed."""
        fetch, *others = (load_stage(name, job.config) for name in stages)
        use_threads(job.config)
        batch_size = batch_size_of(stages, job.config)
        for wave, digested, tried, table in one_ahead(_fetched(job, waves, fetch)):
            parts = []
            for part in slices(table, batch_size):
                for stage in others:
                    with job.clock(stage.name):
                        part = stage(part)
                step.advance(part.num_rows, schema.counts_by_status(part["status"].to_pylist()))
                parts.append(part)
            whole = pa.concat_tables(parts)
            yield write(job.ledger.folder, store, wave.unit, whole, tried, digested, wave.again)

    def map(
        self, job: Job, section: str, make: Callable[[], Callable[[T], R]], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield what the function that `make` returns makes of each item, in order."""
        function = make()
        use_threads(job.config)
        return map(function, items)

    def refine(self, job: Job, clusters: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
        """Train the experts one after the other; see refine.refine_archive."""
        from namedmask.refine import refine_archive

        use_threads(job.config)
        return refine_archive(job, clusters)

    def train(self, job: Job, on_step: Callable[[int, float], None]) -> None:
        """Train the segmenter, from its last checkpoint on, and leave it at `CHECKPOINT`."""
        from namedmask.archive import Archive
        from namedmask.segmenter import CHECKPOINT, TRAINING, save_checkpoint, starting_segmenter
        from namedmask.train import train

        use_threads(job.config)
        config, folder = job.config, job.ledger.folder
        archive = Archive.open(job.archive)
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


def _itself(table: pa.Table) -> pa.Table:
    return table


def _fetched(
    job: Job, waves: Iterable[Wave], fetch: Stage
) -> Iterator[tuple[Wave, str, int, pa.Table]]:
    """Yield each wave with the digest of its rows, how many are tried, and the rows fetched."""
    for wave in waves:
        table = wave.read()
        with job.clock(fetch.name):
            fetched = fetch(table)
        yield wave, input_digest(table), schema.alive(table).size, fetched
