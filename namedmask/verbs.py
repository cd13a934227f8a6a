"""The verbs of the road after embed (see collect.py): build, refine, train, evaluate; curate.

Each takes a config and a place to show progress, works in the folder `run.out`, and returns what it
ended with as plain values. It commits as it goes: killed anywhere and run again, it goes on and
ends with the same rows; run again when finished, it does nothing and says `skipped`.

A verb says what is to be done; an executor does it (executor.py).

The run folder: `embeddings` and `images` (see stores.py), `offers` (what each category may choose
from), `labels.json` (label ids), `proof.json` (see proof.py), `candidates.parquet` and
`funnels.json` (what became of everything), `archive`, `refined` and `experts`,
`segmenter/checkpoint.pt`, `evaluation.json` (with label maps in `evaluation`), and beside them
`run.toml` (the config), `run.json` (what is finished) and `timings.json` (seconds by stage).

Memory: some numbers a candidate, the vectors of a group of categories (offers.GROUP), and what the
executor needs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.archive import REFINED, Accepted, Archive, write_archive
from namedmask.benchmarks import open_benchmark
from namedmask.categories import category_set_of, face_warning
from namedmask.collect import PLAIN_LOOP, embed, row_funnel
from namedmask.config import Config
from namedmask.embed import AskSide, Wording
from namedmask.evaluate import Part, open_scorer, scene_ranges, sum_up
from namedmask.executor import Executor
from namedmask.heads import VIOLENT, load_tests
from namedmask.indexes import scan_of
from namedmask.jobs import Failures, Job, judging_stages, run_verb
from namedmask.labels import Label, assign_labels, read_labels, write_labels
from namedmask.ledger import digest, row_hashes, write_file, write_json
from namedmask.offers import (
    OFFERS,
    Ask,
    Offer,
    VectorStore,
    asks_of,
    expected_of,
    is_close,
    open_vectors,
    read_offer,
    write_offers,
)
from namedmask.progress import Progress
from namedmask.proof import prove_model
from namedmask.published import PublishedStore
from namedmask.refine import find_clusters
from namedmask.retrieve import merge_top_k
from namedmask.rounds import candidate_funnel, fill_archives, refuse_empty_archives, settle
from namedmask.segmenter import CHECKPOINT, TRAINING, load_checkpoint
from namedmask.storage import Place
from namedmask.stores import EMBEDDINGS, IMAGES, ImageStore
from namedmask.waves import Wave

_log = logging.getLogger(__name__)


def curate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Embed, then build; return what both ended with. With published vectors, build alone."""
    category_set_of(config.categories)  # a wrong name should not show after hours of embedding
    if config.vectors.source:
        return build(config, progress, executor)
    embedded, built = embed(config, progress, executor), build(config, progress, executor)
    skipped = embedded.pop("skipped", False) and built.pop("skipped", False)
    return ({"skipped": True} if skipped else {}) | embedded | built


def build(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Fill the archives from the stored vectors; return candidates by status, images kept.

    Raises:
        InputError: a vector cannot be used, or a category ends without an image.
        TooManyFailuresError: more images failed to come than `run.max_failure_share`.
    """
    return run_verb("build", config, progress, partial(_build, executor))


def refine(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the experts and let them redraw their masks; return how many they redrew."""
    if not config.experts.enabled:
        return {"skipped": True, "reason": "experts.enabled is false"}
    return run_verb("refine", config, progress, partial(_refine, executor), REFINED)


def train(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the segmenter on all archives, from its last checkpoint on; return the last loss."""
    return run_verb("train", config, progress, partial(trained, executor))


def evaluate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Measure the segmenter on `evaluate.benchmark`; return its scores, scenes left out.

    Raises:
        ConfigError: no benchmark is named, or it is unknown.
        InputError: the benchmark's files are not as published.
    """
    return run_verb("evaluate", config, progress, partial(_evaluate, executor))


def _build(executor: Executor, job: Job) -> dict[str, Any]:
    config, folder = job.config, job.ledger.folder
    if warning := face_warning(config.categories, config.faces.enabled):
        _log.warning(warning)
    known = read_labels(folder)
    labels = assign_labels(known, category_set_of(config.categories))
    vectors = open_vectors(config, job.ledger)
    asks = asks_of(labels, config, vectors.digest())
    _look_for(executor, job, vectors, asks)
    offers = [read_offer(folder, ask) for ask in asks]
    if config.vectors.source:
        prove_model(executor, job, asks, offers)
    judge = Judge(executor, job, asks, offers)
    hashes = judge.store.hashes
    verdicts = fill_archives(offers, config.retrieve, judge, hashes)
    job.start("build")
    with job.clock("archive"):
        settled = {
            offer.label: settle(offer, verdicts, config.retrieve, hashes) for offer in offers
        }
        funnel = candidate_funnel({label.name: table for label, table in settled.items()})
        write_file(folder / "candidates.parquet", pa.concat_tables(settled.values()))
        write_json(folder / "funnels.json", _row_funnel(job, vectors) | funnel)
        refuse_empty_archives(funnel["by_category"])
        write_labels(folder, known, labels)
        chosen = (judge.accepted(label, table) for label, table in settled.items())
        archive = write_archive(folder / "archive", chosen, config.retrieve.archive_size)
    kept = {category.name: category.count for category in archive.categories}
    short = {name: count for name, count in kept.items() if count < config.retrieve.archive_size}
    by_category = funnel.pop("by_category")
    return funnel | {
        "images_kept": sum(kept.values()),
        "archive_fill": min(kept.values()) / config.retrieve.archive_size,
        "short": {name: by_category[name] for name in short},
    }


def _row_funnel(job: Job, vectors: VectorStore) -> dict[str, Any]:
    if isinstance(vectors, PublishedStore):
        return {"vectors_in": vectors.count}
    return row_funnel(job, EMBEDDINGS)


def _look_for(executor: Executor, job: Job, vectors: VectorStore, asks: Sequence[Ask]) -> None:
    """Commit the offers of those categories that were not asked for before in the same way."""
    config, folder = job.config, job.ledger.folder
    retrieve = config.retrieve
    there = job.ledger.commits(OFFERS)
    job.ledger.sweep(OFFERS)
    new = list({ask.unit: ask for ask in asks if ask.unit not in there}.values())
    with job.clock("retrieve"), job.progress.step("retrieve", len(asks)) as step:
        step.advance(len(asks) - len(new))
        if not new:
            return
        text = [retrieve.violence_text] if retrieve.violence_text else []
        wordings = [*(ask.wording for ask in new), Wording(text, ("{}",))]
        sides = executor.map(job, "embed", partial(AskSide, config.embed), [wordings])
        *found, violence = next(iter(sides))
        asked = [(ask, *ask.vectors(one)) for ask, one in zip(new, found, strict=True)]
        queries = np.stack([query for _, query, _ in asked])
        if isinstance(vectors, PublishedStore):
            vectors.require_width(queries.shape[1], config.embed.model)
        tests = load_tests(retrieve, queries.shape[1])
        tests.append((VIOLENT, partial(is_close, violence, retrieve.violence_cosine)))
        scan, parts = scan_of(retrieve, vectors, queries, executor.parts)
        best = merge_top_k(executor.map(job, "retrieve", scan, parts), retrieve.candidates)
        for _ in write_offers(folder, vectors, asked, best, retrieve, tests):
            step.advance()


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
        self._stages = judging_stages(job.config)
        self._failures = Failures(job.config.run.max_failure_share)
        if job.ledger.commits(IMAGES):
            job.finished("images")  # refuses other settings
        job.ledger.sweep(IMAGES)
        self.store = ImageStore(job.ledger)

    def __call__(self, sample_ids: list[str]) -> Mapping[str, str]:
        """Return the verdict on each image, looking at those that nobody has looked at yet."""
        new = [one for one in sample_ids if one not in self.store.verdicts]
        rows = self._job.config.run.wave_rows
        waves = [self._wave(new[start : start + rows]) for start in range(0, len(new), rows)]
        self._job.start("images")
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


def _refine(executor: Executor, job: Job) -> dict[str, Any]:
    return executor.refine(job, find_clusters(executor, job))


def trained(executor: Executor, job: Job) -> dict[str, Any]:
    """Return what the training of a run ended with, its segmenter at `CHECKPOINT`."""
    archive = Archive.open(job.archive)
    steps = job.config.train.iterations
    losses: deque[float] = deque(maxlen=100)
    if not job.is_begun("train"):  # what is left of another training is none of this
        (job.ledger.folder / TRAINING).unlink(missing_ok=True)
        job.ledger.unfinish("evaluate")
    job.start("train")
    with job.clock("train"), job.progress.step("train", steps) as step:
        done = 0

        def on_step(now: int, loss: float) -> None:
            nonlocal done
            step.advance(now - done)
            losses.append(loss)
            done = now

        executor.train(job, on_step)
    images = sum(category.count for category in archive.categories)
    loss = sum(losses) / len(losses) if losses else None
    return {"images": images, "labels": archive.num_labels, "steps": steps, "loss": loss}


def _evaluate(executor: Executor, job: Job) -> dict[str, Any]:
    folder = job.ledger.folder
    found = judged(executor, job, folder / "evaluation")
    write_json(folder / "evaluation.json", found)
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}


def judged(executor: Executor, job: Job, out: Place | None) -> dict[str, Any]:
    """Return the scores of a run's segmenter on its benchmark; see evaluate.evaluate."""
    config, checkpoint = job.config, job.ledger.folder / CHECKPOINT
    benchmark = open_benchmark(config.evaluate)
    names = load_checkpoint(checkpoint, config.segmenter)[1]
    make = partial(open_scorer, checkpoint, config)
    job.start("evaluate")
    with job.clock("evaluate"), job.progress.step("evaluate", len(benchmark)) as step:

        def parts() -> Iterator[Part]:
            for part in executor.map(job, "evaluate", make, scene_ranges(len(benchmark))):
                step.advance(len(part.scenes))
                yield part

        return sum_up(parts(), names, benchmark, config.evaluate, out)
