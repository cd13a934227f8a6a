"""The verbs `build` and `curate`, which fill each category's archive from the stored vectors.

Like every verb, they take a config, a `Progress` and an `Executor`, work in the folder `run.out`,
and return their result as plain values. They commit finished work. A verb that was killed resumes
when it is run again, and ends with the same rows. A finished verb that is run again does nothing
and returns `skipped`. A verb lists its steps, and the executor carries them out. run/layout.py
lists the files of the run folder.

Memory: a few numbers per candidate, the candidates' vectors of one group of categories
(candidates.GROUP), and the memory of the executor.
"""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa

from namedmask.archive.checks import ImageChecks
from namedmask.archive.fill import candidate_funnel, fill_archives, refuse_empty_archives, settle
from namedmask.archive.store import write_archive
from namedmask.categories import category_set_of, face_warning
from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.retrieve.candidates import find_candidates
from namedmask.retrieve.model_check import check_model
from namedmask.retrieve.published import PublishedStore
from namedmask.retrieve.queries import queries_of
from namedmask.retrieve.vectors import VectorStore, open_vectors
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun, verb_run
from namedmask.run.label_ids import assign_labels, read_labels, write_labels
from namedmask.run.layout import EMBEDDINGS
from namedmask.run.progress import Progress
from namedmask.storage.files import write_file, write_json
from namedmask.verbs.collect import embed, row_funnel
from namedmask.verbs.preflight import open_parts

_log = logging.getLogger(__name__)


def curate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Run `embed`, unless the vectors are published, then `build`; return both results merged."""
    category_set_of(config.categories)  # fail on a wrong name now, not after hours of embedding
    if config.vectors.source:
        return build(config, progress, executor)
    embedded = embed(config, progress, executor, then=("build",))
    built = build(config, progress, executor)
    skipped = embedded.pop("skipped", False) and built.pop("skipped", False)
    return ({"skipped": True} if skipped else {}) | embedded | built


def build(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Fill the archives from the stored vectors; return counts of candidates and images kept.

    `archive_fill` is the share of its wanted images that the smallest archive has. `short` has, per
    category whose archive is not full, the counts of its candidates by status.

    Raises:
        InputError: a vector cannot be used, or a category ends without an image.
        TooManyFailuresError: a larger share of images failed than `run.max_failure_share` allows.
    """
    with verb_run("build", config, progress) as run:
        if run.has_work:
            open_parts(executor, run, "build")
            run.result = _build(executor, run)
    return run.result


def _build(executor: Executor, run: VerbRun) -> dict[str, Any]:
    config, folder = run.config, run.ledger.folder
    if warning := face_warning(config.categories, config.faces.enabled):
        _log.warning(warning)
    known = read_labels(folder)
    labels = assign_labels(known, category_set_of(config.categories))
    vectors = open_vectors(config, run.ledger)
    queries = queries_of(labels, config, vectors.digest())
    lists = find_candidates(executor, run, vectors, queries)
    if config.vectors.source:
        check_model(executor, run, lists)
    checks = ImageChecks(executor, run, lists)
    hashes = checks.store.hashes
    checked = fill_archives(lists, config.retrieve, checks, hashes)
    run.start("build")
    with run.clock("archive"):
        settled = {
            candidates.label: settle(candidates, checked, config.retrieve, hashes)
            for candidates in lists
        }
        funnel = candidate_funnel({label.name: table for label, table in settled.items()})
        write_file(folder / layout.CANDIDATES, pa.concat_tables(settled.values()))
        write_json(folder / layout.FUNNELS, _row_funnel(run, vectors) | funnel)
        refuse_empty_archives(funnel["by_category"])
        write_labels(folder, known, labels)
        chosen = (checks.accepted(label, table) for label, table in settled.items())
        archive = write_archive(folder / layout.ARCHIVE, chosen, config.retrieve.archive_size)
    kept = {category.name: category.count for category in archive.categories}
    short = {name: count for name, count in kept.items() if count < config.retrieve.archive_size}
    by_category = funnel.pop("by_category")
    return funnel | {
        "images_kept": sum(kept.values()),
        "archive_fill": min(kept.values()) / config.retrieve.archive_size,
        "short": {name: by_category[name] for name in short},
    }


def _row_funnel(run: VerbRun, vectors: VectorStore) -> dict[str, Any]:
    if isinstance(vectors, PublishedStore):
        return {"vectors_in": vectors.count}
    return row_funnel(run, EMBEDDINGS)
