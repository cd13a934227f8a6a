"""Images fetched and checked before they enter an archive, each once per run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.archive.store import Accepted
from namedmask.retrieve.candidates import (
    Offer,
    expected_of,
)
from namedmask.retrieve.queries import Ask
from namedmask.run.executor import Executor
from namedmask.run.job import Failures, Job
from namedmask.run.label_ids import Label
from namedmask.run.layout import IMAGES
from namedmask.run.stages import checking_stages
from namedmask.run.stores import ImageStore
from namedmask.run.verb_table import CHECKED_IMAGES
from namedmask.run.waves import Wave
from namedmask.storage import Place
from namedmask.storage.files import digest, row_hashes


class Judge:
    """Fetches and checks images, each once in the life of a run folder; a rounds.Look."""

    def __init__(
        self, executor: Executor, job: Job, asks: Sequence[Ask], offers: Sequence[Offer]
    ) -> None:
        self._executor, self._job = executor, job
        self._urls: dict[str, str] = {}
        self._offered: dict[str, str] = {}  # sample id → a unit of offers that has it
        for ask, offer in zip(asks, offers, strict=True):
            self._urls.update(zip(offer.sample_ids, offer.urls, strict=True))
            self._offered.update(dict.fromkeys(offer.sample_ids, ask.unit))
        self._stages = checking_stages(job.config)
        self._failures = Failures(job.config.run.max_failure_share)
        if job.ledger.commits(IMAGES):
            job.finished(CHECKED_IMAGES.name)  # refuses other settings
        job.ledger.sweep(IMAGES)
        self.store = ImageStore(job.ledger)

    def __call__(self, sample_ids: list[str]) -> Mapping[str, str]:
        """Return the verdict on each image, looking at those that nobody has looked at yet."""
        new = [one for one in sample_ids if one not in self.store.verdicts]
        rows = self._job.config.run.wave_rows
        waves = [self._wave(new[start : start + rows]) for start in range(0, len(new), rows)]
        self._job.start(CHECKED_IMAGES.name)
        with self._job.progress.step("judge", len(new)) as step:
            for written in self._executor.run(self._job, waves, self._stages, IMAGES, step):
                self.store.remember(written.unit, written.verdicts, written.hashes)
                self._failures.add(written.tried, written.counts)
        return {one: self.store.verdicts[one] for one in sample_ids}

    def accepted(self, label: Label, candidates: pa.Table) -> Accepted:
        """Return what makes up the archive of a category, of its settled candidates."""
        good = candidates.filter(pc.equal(candidates["status"], schema.OK))
        digested = digest(row_hashes(good, good.column_names))
        return Accepted(label, digested, partial(self.store.entries, good))

    def _wave(self, sample_ids: list[str]) -> Wave:
        urls = [self._urls[one] for one in sample_ids]
        rows, config = partial(_untouched, sample_ids, urls), self._job.config.vectors
        if config.source:
            units = [self._offered[one] for one in sample_ids]
            folder = self._job.ledger.folder.absolute()
            rows = partial(_with_expected, rows, folder, units, config.unchanged_cosine)
        return Wave(self.store.new_unit(), rows)


def _untouched(sample_ids: list[str], urls: list[str]) -> pa.Table:
    columns = {
        "sample_id": sample_ids,
        "url": urls,
        "status": [schema.OK] * len(urls),
        "num_faces": pa.nulls(len(urls), schema.TYPES["num_faces"]),
    }
    return pa.table(columns)


def _with_expected(
    read: Callable[[], pa.Table], folder: Place, units: list[str], cosine: float
) -> pa.Table:
    """Return the rows of a wave with the vector that was published of each, and the least cosine.

    `units` are the offers that have them, row by row.
    """
    table = read()
    published = {unit: expected_of(folder, unit) for unit in dict.fromkeys(units)}
    pairs = zip(units, table["sample_id"].to_pylist(), strict=True)
    vectors = [published[unit][one] for unit, one in pairs]
    table = table.append_column("expected", pa.array(vectors, schema.TYPES["expected"]))
    least = pa.array([cosine] * len(units), schema.TYPES["expected_cosine"])
    return table.append_column("expected_cosine", least)
