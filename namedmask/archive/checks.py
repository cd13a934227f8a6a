"""Fetches and checks the candidates' images, each image once per run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.archive.checked_images import ImageStore
from namedmask.archive.store import Accepted
from namedmask.retrieve.candidates import CandidateList, published_vectors_of
from namedmask.run.executor import Executor
from namedmask.run.job import Failures, VerbRun
from namedmask.run.label_ids import Label
from namedmask.run.layout import IMAGES
from namedmask.run.stages import checking_stages
from namedmask.run.verb_table import CHECKED_IMAGES
from namedmask.run.waves import Wave
from namedmask.storage import Place
from namedmask.storage.files import digest, row_hashes


class ImageChecks:
    """A callable that fetches and checks images, each image once per run folder.

    `fill_archives` takes an instance as its `check`.

    Raises:
        ConfigError: the run folder holds images that were checked with other settings.
    """

    def __init__(self, executor: Executor, run: VerbRun, lists: Sequence[CandidateList]) -> None:
        self._executor, self._run = executor, run
        self._urls: dict[str, str] = {}
        self._listed: dict[str, str] = {}  # sample id → unit of a candidate list with this image
        for candidates in lists:
            self._urls.update(zip(candidates.sample_ids, candidates.urls, strict=True))
            self._listed.update(dict.fromkeys(candidates.sample_ids, candidates.unit))
        self._stages = checking_stages(run.config)
        self._failures = Failures(run.config.run.max_failure_share)
        if run.ledger.commits(IMAGES):
            run.finished(CHECKED_IMAGES.name)  # raises if the settings have changed
        run.ledger.sweep(IMAGES)
        self.store = ImageStore(run.ledger)

    def __call__(self, sample_ids: list[str]) -> Mapping[str, str]:
        """Return the status of each image, by sample id; images without a status are checked now.

        Raises:
            TooManyFailuresError: the share of failed images exceeds `run.max_failure_share`.
        """
        new = [sample_id for sample_id in sample_ids if sample_id not in self.store.statuses]
        rows = self._run.config.run.wave_rows
        waves = [self._wave(new[start : start + rows]) for start in range(0, len(new), rows)]
        self._run.start(CHECKED_IMAGES.name)
        with self._run.progress.step("check", len(new)) as step:
            results = self._executor.run(self._run, waves, self._stages, IMAGES, step)
            with closing(results):
                for written in results:
                    self.store.add_unit(written.unit, written.statuses, written.hashes)
                    self._failures.add(written.tried, written.counts)
        return {sample_id: self.store.statuses[sample_id] for sample_id in sample_ids}

    def accepted(self, label: Label, candidates: pa.Table) -> Accepted:
        """Return the archive of a category.

        `candidates` are its candidates with their final statuses (schema.CANDIDATES); those with
        status `ok` enter the archive.
        """
        good = candidates.filter(pc.equal(candidates["status"], schema.OK))
        digested = digest(row_hashes(good, good.column_names))
        return Accepted(label, digested, partial(self.store.entries, good))

    def _wave(self, sample_ids: list[str]) -> Wave:
        urls = [self._urls[sample_id] for sample_id in sample_ids]
        rows, config = partial(_rows_of, sample_ids, urls), self._run.config.vectors
        if config.source:
            units = [self._listed[sample_id] for sample_id in sample_ids]
            folder = self._run.ledger.folder.absolute()
            rows = partial(_with_expected, rows, folder, units, config.unchanged_cosine)
        return Wave(self.store.new_unit(), rows)


def _rows_of(sample_ids: list[str], urls: list[str]) -> pa.Table:
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
    """Return the rows of a wave with their published vectors and the smallest allowed cosine.

    `units` names, per row, a candidate list that holds the row's published vector.
    """
    table = read()
    published = {unit: published_vectors_of(folder, unit) for unit in dict.fromkeys(units)}
    pairs = zip(units, table["sample_id"].to_pylist(), strict=True)
    vectors = [published[unit][sample_id] for unit, sample_id in pairs]
    table = table.append_column("expected", pa.array(vectors, schema.TYPES["expected"]))
    cosines = pa.array([cosine] * len(units), schema.TYPES["expected_cosine"])
    return table.append_column("expected_cosine", cosines)
