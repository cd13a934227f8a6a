"""The verbs of the road: embed, build, refine, train, evaluate; curate is the first two.

Each takes a config and a place to show progress, works in the folder `run.out`, and returns what it
ended with as plain values. It commits as it goes: killed anywhere and run again, it goes on and
ends with the same rows; run again when finished, it does nothing and says `skipped`.

A verb says what is to be done; an executor does it (executor.py).

The run folder: `embeddings` and `images` (see stores.py), `candidates.parquet` and `funnels.json`
(what became of everything), `archive`, `refined` and `experts`, `segmenter/checkpoint.pt`,
`evaluation.json` (with label maps in `evaluation`), and beside them `run.toml` (the config),
`run.json` (what is finished) and `timings.json` (seconds by stage).

Memory: one vector a candidate, beside what the executor needs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.archive import REFINED, Archive, write_archive
from namedmask.benchmarks import open_benchmark
from namedmask.categories import CategorySet, category_set_of, templates_of
from namedmask.config import Config
from namedmask.embed import TextSide
from namedmask.errors import InputError
from namedmask.evaluate import open_scorer, scene_ranges, sum_up
from namedmask.executor import Executor
from namedmask.indexes import scan_of
from namedmask.jobs import Failures, Job, run_verb
from namedmask.ledger import Commit, write_file, write_json
from namedmask.local import PlainLoop
from namedmask.progress import Progress, Step
from namedmask.retrieve import merge_top_k
from namedmask.rounds import (
    accepted,
    candidate_funnel,
    fill_archives,
    offers_of,
    refuse_empty_archives,
    settle,
    violent,
)
from namedmask.segmenter import CHECKPOINT, load_checkpoint
from namedmask.stores import EMBEDDINGS, IMAGES, EmbeddingStore, ImageStore
from namedmask.waves import Wave, digest_of

PLAIN_LOOP = PlainLoop()


@contextmanager
def executor_of(config: Config, local: bool = False) -> Iterator[Executor]:
    """Yield the plain loop, or an executor on the Ray that the config names."""
    if local:
        yield PLAIN_LOOP
        return
    from namedmask.on_ray import connect

    with connect(config) as executor:
        yield executor


def curate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Embed, then build; return what both ended with."""
    category_set_of(config.categories)  # a wrong name should not show after hours of embedding
    embedded, built = embed(config, progress, executor), build(config, progress, executor)
    skipped = embedded.pop("skipped", False) and built.pop("skipped", False)
    return ({"skipped": True} if skipped else {}) | embedded | built


def embed(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Read the metadata, fetch the images, store a vector each; return rows in and by status.

    Raises:
        InputError: a source cannot be read, or is not what it was when the run began.
        TooManyFailuresError: more rows failed than `run.max_failure_share`.
    """
    return run_verb("embed", config, progress, partial(_embed, executor), EMBEDDINGS)


def build(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Fill the archives from the stored vectors; return candidates by status, images kept.

    Raises:
        InputError: a vector cannot be used, or a category ends without an image.
        TooManyFailuresError: more images failed to come than `run.max_failure_share`.
    """
    return run_verb("build", config, progress, partial(_build, executor))


def refine(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train an expert a category and let it redraw its masks; return how many it redrew."""
    if not config.experts.enabled:
        return {"skipped": True, "reason": "experts.enabled is false"}
    return run_verb("refine", config, progress, executor.refine, REFINED)


def train(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the segmenter on all archives, from its last checkpoint on; return the last loss."""
    return run_verb("train", config, progress, partial(_train, executor))


def evaluate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Measure the segmenter on `evaluate.benchmark`; return its scores, scenes left out.

    Raises:
        ConfigError: no benchmark is named, or it is unknown.
        InputError: the benchmark's files are not as published.
    """
    return run_verb("evaluate", config, progress, partial(_evaluate, executor))


def _embed(executor: Executor, job: Job) -> dict[str, Any]:
    committed = job.ledger.commits(EMBEDDINGS)
    job.ledger.sweep(EMBEDDINGS)
    failures = Failures(job.config.run.max_failure_share)
    with job.progress.step("embed") as step:
        waves = _uncommitted(job, executor.metadata(job), committed, step)
        job.start("embed")
        for written in executor.run(job, waves, ("fetch", "embed"), EMBEDDINGS, step):
            failures.add(written.tried, written.counts)
    return _write_row_funnel(job)


def _uncommitted(
    job: Job, waves: Iterable[Wave], committed: Mapping[str, Commit], step: Step
) -> Iterator[Wave]:
    """Yield the waves still to do, once those that are done are found to be what they were.

    Raises:
        InputError: a wave that is done has other rows now, or is gone.
    """
    left = dict(committed)
    for wave in waves:
        commit = left.pop(wave.unit, None)
        if commit is None:
            yield wave
            continue
        if digest_of(wave) != commit.input_digest:
            raise _changed_metadata(job, wave.unit)
        step.advance(commit.rows, commit.counts)
    if left:
        raise _changed_metadata(job, min(left))


def _changed_metadata(job: Job, unit: str) -> InputError:
    return InputError(
        f"metadata.source gives other rows for wave {unit} than when run folder "
        f"{job.ledger.folder} was begun. Restore the source, or give another run.out."
    )


def _write_row_funnel(job: Job) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for commit in job.ledger.commits(EMBEDDINGS).values():
        counts.update(commit.counts)
    funnel = {"rows_in": counts.total(), "rows_by_status": dict(counts.most_common())}
    write_json(job.ledger.folder / "funnels.json", funnel)
    return funnel


def _build(executor: Executor, job: Job) -> dict[str, Any]:
    config, folder = job.config, job.ledger.folder
    category_set = category_set_of(config.categories)
    vectors = EmbeddingStore(job.ledger)
    with job.clock("retrieve"), job.progress.step("retrieve", len(category_set.names)) as step:
        queries, violence = _text_side(executor, job, category_set)
        scan, parts = scan_of(config.retrieve, vectors, queries, executor.parts)
        found = executor.map(job, "retrieve", scan, parts)
        offers = offers_of(vectors, category_set, *merge_top_k(found, config.retrieve.candidates))
        known = violent(offers, violence, config.retrieve.violence_cosine)
        step.advance(len(category_set.names))
    judge = Judge(executor, job, offers.candidates)
    verdicts = fill_archives(offers, config.retrieve, judge, known)
    with job.clock("archive"):
        candidates = settle(offers, verdicts, config.retrieve)
        funnel = candidate_funnel(candidates, category_set)
        write_file(folder / "candidates.parquet", candidates)
        write_json(folder / "funnels.json", _write_row_funnel(job) | funnel)
        refuse_empty_archives(funnel["by_category"])
        job.start("build")
        tables = map(judge.store.entries, accepted(candidates, category_set))
        archive = write_archive(
            folder / "archive", category_set, tables, config.retrieve.archive_size
        )
    kept = {category.name: category.count for category in archive.categories}
    short = {name: count for name, count in kept.items() if count < config.retrieve.archive_size}
    by_category = funnel.pop("by_category")
    return funnel | {
        "images_kept": sum(kept.values()),
        "archive_fill": min(kept.values()) / config.retrieve.archive_size,
        "short": {name: by_category[name] for name in short},
    }


def _text_side(
    executor: Executor, job: Job, category_set: CategorySet
) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of the queries, (C, D), and of the violence text, (0 or 1, D)."""
    config = job.config
    violence = [config.retrieve.violence_text] if config.retrieve.violence_text else []
    texts = [(category_set.queries, templates_of(config.categories)), (violence, ("{}",))]
    ((queries, violent_ones),) = executor.map(
        job, "embed", partial(TextSide, config.embed), [texts]
    )
    return queries, violent_ones


class Judge:
    """Fetches and checks images, each once in the life of a run folder; a rounds.Look."""

    def __init__(self, executor: Executor, job: Job, candidates: pa.Table) -> None:
        self._executor, self._job = executor, job
        self._urls = dict(
            zip(candidates["sample_id"].to_pylist(), candidates["url"].to_pylist(), strict=True)
        )
        enabled = {"faces": job.config.faces.enabled, "bilateral": job.config.bilateral.enabled}
        stages = ("fetch", "faces", "saliency", "bilateral")
        self._stages = tuple(name for name in stages if enabled.get(name, True))
        self._failures = Failures(job.config.run.max_failure_share)
        if job.ledger.commits(IMAGES):
            job.ledger.finished("images", job.settings("images"))
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
                self.store.remember(written.unit, written.verdicts)
                self._failures.add(written.tried, written.counts)
        return {one: self.store.verdicts[one] for one in sample_ids}

    def _wave(self, sample_ids: list[str]) -> Wave:
        urls = [self._urls[one] for one in sample_ids]
        return Wave(self.store.new_unit(), partial(_untouched, sample_ids, urls))


def _untouched(sample_ids: list[str], urls: list[str]) -> pa.Table:
    columns = {
        "sample_id": sample_ids,
        "url": urls,
        "status": [schema.OK] * len(urls),
        "num_faces": pa.nulls(len(urls), schema.TYPES["num_faces"]),
    }
    return pa.table(columns)


def _train(executor: Executor, job: Job) -> dict[str, Any]:
    archive = Archive.open(job.ledger.folder / "archive")
    steps = job.config.train.iterations
    losses: deque[float] = deque(maxlen=100)
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
    config, folder = job.config, job.ledger.folder
    benchmark = open_benchmark(config.evaluate)
    names = load_checkpoint(folder / CHECKPOINT, config.segmenter)[1]
    make = partial(open_scorer, folder / CHECKPOINT, config)
    parts = []
    job.start("evaluate")
    with job.clock("evaluate"), job.progress.step("evaluate", len(benchmark)) as step:
        for part in executor.map(job, "evaluate", make, scene_ranges(len(benchmark))):
            step.advance(len(part.scenes))
            parts.append(part)
    found = sum_up(parts, names, benchmark, config.evaluate, folder / "evaluation")
    write_json(folder / "evaluation.json", found)
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}
