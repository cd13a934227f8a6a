"""The whole road as a plain loop in this process: for one machine, a notebook, as the reference.

Each verb takes a config and a place to show progress, works in the folder `run.out`, and returns
what it ended with as plain values. It commits as it goes: killed anywhere and run again, it goes on
and ends with the same rows; run again when finished, it does nothing and says `skipped`.

The run folder: `embeddings` and `images` (see stores.py), `candidates.parquet` and `funnels.json`
(what became of everything), `archive`, `refined` and `experts`, `segmenter/checkpoint.pt`,
`evaluation.json` (with label maps in `evaluation`), and beside them `run.toml` (the config),
`run.json` (what is finished) and `timings.json` (seconds by stage).

Memory: two waves of encoded images, and one vector a candidate.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch

from namedmask import metadata, schema
from namedmask.ahead import one_ahead
from namedmask.archive import REFINED, Archive, write_archive
from namedmask.benchmarks import open_benchmark
from namedmask.bilateral import Bilateral
from namedmask.categories import category_set_of, templates_of
from namedmask.config import Config
from namedmask.embed import Embed, text_features
from namedmask.errors import InputError
from namedmask.evaluate import evaluate as measure
from namedmask.faces import Faces
from namedmask.fetch import Fetch
from namedmask.jobs import Failures, Job, run_verb, threads_of
from namedmask.ledger import Commit, digest, row_hashes, write_file, write_json
from namedmask.progress import Progress, Step
from namedmask.refine import refine_archive
from namedmask.rounds import (
    accepted,
    candidate_funnel,
    fill_archives,
    refuse_empty_archives,
    retrieve_offers,
    settle,
    violent,
)
from namedmask.saliency import Saliency
from namedmask.segmenter import build_segmenter, load_checkpoint, save_checkpoint
from namedmask.stores import EMBEDDINGS, IMAGES, EmbeddingStore, ImageStore
from namedmask.train import train as fit

CHECKPOINT = Path("segmenter") / "checkpoint.pt"

SLICE_BATCHES = 8
"""Batches taken through the stages at once: the pace at which progress shows."""


class Stage(Protocol):
    """A stage as the loop sees it: a table in, the same rows out."""

    name: str

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with what the stage adds."""
        ...


def curate(config: Config, progress: Progress) -> dict[str, Any]:
    """Embed, then build; return what both ended with."""
    category_set_of(config.categories)  # a wrong name should not show after hours of embedding
    embedded, built = embed(config, progress), build(config, progress)
    skipped = embedded.pop("skipped", False) and built.pop("skipped", False)
    return ({"skipped": True} if skipped else {}) | embedded | built


def embed(config: Config, progress: Progress) -> dict[str, Any]:
    """Read the metadata, fetch the images, store a vector each; return rows in and by status.

    Raises:
        InputError: a source cannot be read, or is not what it was when the run began.
        TooManyFailuresError: more rows failed than `run.max_failure_share`.
    """
    return _run("embed", config, progress, _embed, EMBEDDINGS)


def build(config: Config, progress: Progress) -> dict[str, Any]:
    """Fill the archives from the stored vectors; return candidates by status, images kept.

    Raises:
        InputError: a vector cannot be used, or a category ends without an image.
        TooManyFailuresError: more images failed to come than `run.max_failure_share`.
    """
    return _run("build", config, progress, _build)


def refine(config: Config, progress: Progress) -> dict[str, Any]:
    """Train an expert a category and let it redraw its masks; return how many it redrew."""
    if not config.experts.enabled:
        return {"skipped": True, "reason": "experts.enabled is false"}
    return _run("refine", config, progress, refine_archive, REFINED)


def train(config: Config, progress: Progress) -> dict[str, Any]:
    """Train the segmenter on all archives, from its last checkpoint on; return the last loss."""
    return _run("train", config, progress, _train)


def evaluate(config: Config, progress: Progress) -> dict[str, Any]:
    """Measure the segmenter on `evaluate.benchmark`; return its scores, scenes left out.

    Raises:
        ConfigError: no benchmark is named, or it is unknown.
        InputError: the benchmark's files are not as published.
    """
    return _run("evaluate", config, progress, _evaluate)


def _run(
    verb: str,
    config: Config,
    progress: Progress,
    work: Callable[[Job], dict[str, Any]],
    store: str = "",
) -> dict[str, Any]:
    torch.set_num_threads(threads_of(config))
    return run_verb(verb, config, progress, work, store)


def _embed(job: Job) -> dict[str, Any]:
    config, store = job.config, EmbeddingStore(job.ledger)
    waves = metadata.waves(metadata.read_metadata(config.metadata), config.run.wave_rows)
    committed = job.ledger.commits(EMBEDDINGS)
    stage = Embed(config.embed)
    job.ledger.sweep(EMBEDDINGS)
    failures = Failures(job.config.run.max_failure_share)
    with job.progress.step("embed") as step:
        for wave in one_ahead(_fetched(job, waves, committed)):
            commit = committed.pop(wave.unit, None)
            if commit:
                failures.add(wave.tried, commit.counts)
                step.advance(commit.rows, commit.counts)
                continue
            table = _through(job, (stage,), wave.table, config.embed.batch_size, step)
            failures.add(wave.tried, schema.counts_by_status(table["status"].to_pylist()))
            job.start("embed")
            store.write(wave.unit, table, wave.input_digest)
    if committed:
        raise _changed_metadata(job, min(committed))
    return _write_row_funnel(job)


@dataclass(frozen=True)
class Wave:
    """Rows that belong together: fetched, or as they were where the wave is done already."""

    unit: str
    table: pa.Table
    tried: int  # rows that were to be fetched
    input_digest: str


def _fetched(
    job: Job, waves: Iterable[pa.Table], committed: Mapping[str, Commit]
) -> Iterator[Wave]:
    """Yield each wave, with its images unless it is committed."""
    fetch = Fetch(job.config.fetch)
    done = dict(committed)
    for number, table in enumerate(waves):
        unit = f"{number:05d}"
        input_digest = digest(row_hashes(table, ("sample_id", "status")))
        tried = schema.alive(table).size
        if unit not in done:
            with job.clock(fetch.name):
                table = fetch(table)
        elif done[unit].input_digest != input_digest:
            raise _changed_metadata(job, unit)
        yield Wave(unit, table, tried, input_digest)


def _changed_metadata(job: Job, unit: str) -> InputError:
    return InputError(
        f"metadata.source gives other rows for wave {unit} than when run folder "
        f"{job.ledger.folder} was begun. Restore the source, or give another run.out."
    )


def _through(
    job: Job, stages: Sequence[Stage], table: pa.Table, batch_size: int, step: Step
) -> pa.Table:
    """Return `table` as the stages leave it, taken through all of them some batches at a time."""
    rows = SLICE_BATCHES * batch_size
    parts = []
    for start in range(0, table.num_rows, rows):
        part = table.slice(start, rows)
        for stage in stages:
            with job.clock(stage.name):
                part = stage(part)
        step.advance(part.num_rows, schema.counts_by_status(part["status"].to_pylist()))
        parts.append(part)
    return pa.concat_tables(parts)


def _write_row_funnel(job: Job) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for commit in job.ledger.commits(EMBEDDINGS).values():
        counts.update(commit.counts)
    funnel = {"rows_in": counts.total(), "rows_by_status": dict(counts.most_common())}
    write_json(job.ledger.folder / "funnels.json", funnel)
    return funnel


def _build(job: Job) -> dict[str, Any]:
    config, folder = job.config, job.ledger.folder
    category_set = category_set_of(config.categories)
    with job.clock("retrieve"), job.progress.step("retrieve", len(category_set.names)) as step:
        embedder = Embed(config.embed).embedder
        templates = templates_of(config.categories)
        queries = text_features(embedder, category_set.queries, templates)
        vectors = EmbeddingStore(job.ledger)
        offers = retrieve_offers(vectors, category_set, queries, config.retrieve.candidates)
        known = {}
        if text := config.retrieve.violence_text:
            known = violent(
                offers, embedder.embed_texts([text])[0], config.retrieve.violence_cosine
            )
        step.advance(len(category_set.names))
    judge = Judge(job, offers.candidates)
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


class Judge:
    """Fetches and checks images, each once in the life of a run folder; a rounds.Look."""

    def __init__(self, job: Job, candidates: pa.Table) -> None:
        config = job.config
        self._job = job
        self._urls = dict(
            zip(candidates["sample_id"].to_pylist(), candidates["url"].to_pylist(), strict=True)
        )
        self._stages: list[Stage] = [Faces(config.faces)] if config.faces.enabled else []
        self._stages.append(Saliency(config.saliency))
        if config.bilateral.enabled:
            self._stages.append(Bilateral(config.bilateral))
        self._failures = Failures(job.config.run.max_failure_share)
        if job.ledger.commits(IMAGES):
            job.ledger.finished("images", job.settings("images"))
        job.ledger.sweep(IMAGES)
        self.store = ImageStore(job.ledger)

    def __call__(self, sample_ids: list[str]) -> Mapping[str, str]:
        """Return the verdict on each image, looking at those that nobody has looked at yet."""
        new = [one for one in sample_ids if one not in self.store.verdicts]
        rows = self._job.config.run.wave_rows
        waves = (self._table(new[start : start + rows]) for start in range(0, len(new), rows))
        with self._job.progress.step("judge", len(new)) as step:
            for wave in one_ahead(_fetched(self._job, waves, {})):
                fetched = wave.table["status"].to_pylist()
                self._failures.add(wave.tried, schema.counts_by_status(fetched))
                batch_size = self._job.config.saliency.batch_size
                table = _through(self._job, self._stages, wave.table, batch_size, step)
                self._job.start("images")
                self.store.write(table)
        return {one: self.store.verdicts[one] for one in sample_ids}

    def _table(self, sample_ids: list[str]) -> pa.Table:
        columns = {
            "sample_id": sample_ids,
            "url": [self._urls[one] for one in sample_ids],
            "status": [schema.OK] * len(sample_ids),
            "num_faces": pa.nulls(len(sample_ids), schema.TYPES["num_faces"]),
        }
        return pa.table(columns)


def _train(job: Job) -> dict[str, Any]:
    config, folder = job.config, job.ledger.folder
    archive = Archive.open(folder / "archive")
    samples = archive.samples(refined=config.experts.enabled)
    model = build_segmenter(config.segmenter, archive.num_labels, config.run.seed)
    losses: deque[float] = deque(maxlen=100)
    state = folder / CHECKPOINT.with_name("training.pt")
    job.start("train")
    with job.clock("train"), job.progress.step("train", config.train.iterations) as step:
        done = 0

        def on_step(now: int, loss: float) -> None:
            nonlocal done
            step.advance(now - done)
            losses.append(loss)
            done = now

        fit(
            model, samples, config.train, config.augment, seed=config.run.seed, checkpoint=state,
            checkpoint_every=config.train.checkpoint_every, on_step=on_step,
        )  # fmt: skip
    steps = config.train.iterations
    save_checkpoint(
        folder / CHECKPOINT, model, name=config.segmenter.name, names=archive.names, step=steps
    )
    state.unlink(missing_ok=True)
    loss = sum(losses) / len(losses) if losses else None
    return {"images": len(samples), "labels": archive.num_labels, "steps": steps, "loss": loss}


def _evaluate(job: Job) -> dict[str, Any]:
    config, folder = job.config.evaluate, job.ledger.folder
    benchmark = open_benchmark(config)
    model, names = load_checkpoint(folder / CHECKPOINT, job.config.segmenter)
    job.start("evaluate")
    with job.clock("evaluate"), job.progress.step("evaluate", len(benchmark)) as step:
        found = measure(
            model, names, benchmark, config, out=folder / "evaluation",
            on_scene=lambda done: step.advance(),
        )  # fmt: skip
    write_json(folder / "evaluation.json", found)
    return {key: value for key, value in found.items() if isinstance(value, int | float | str)}
