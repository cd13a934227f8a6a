"""The verb `evaluate`: a segmenter's scores on a benchmark, of a run or of a bare checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from namedmask.categories import names_told
from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.scorer import Part, Scorer, open_scorer, predictor_of, scene_ranges, sum_up
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import Job, run_verb
from namedmask.run.layout import CHECKPOINT
from namedmask.run.progress import Progress
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.storage import Place
from namedmask.storage.files import write_json


def evaluate_checkpoint(checkpoint: Place, config: Config, progress: Progress) -> dict[str, Any]:
    """Return the scores of a segmenter that has no run, without its scenes; see `evaluate`.

    Labels of bare weights are those of the `categories` section, else the benchmark's.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: no benchmark is named, or it is unknown.
        InputError: as `evaluate`, or the benchmark's files are not as published.
    """
    benchmark = open_benchmark(config.evaluate)
    told = names_told(config.categories) or benchmark.names
    model, names = load_checkpoint(checkpoint, config.segmenter, told)
    scorer = Scorer(predictor_of(model, config.evaluate), names, benchmark, config.evaluate)
    with progress.step("evaluate", len(benchmark)) as step:

        def parts() -> Iterator[Part]:
            for scenes in scene_ranges(len(benchmark)):
                yield scorer(scenes)
                step.advance(len(scenes))

        found = sum_up(parts(), names, benchmark, config.evaluate, None)
    return {key: value for key, value in found.items() if key != "scenes"}


def evaluate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Measure the segmenter on `evaluate.benchmark`; return its scores, scenes left out.

    Raises:
        ConfigError: no benchmark is named, or it is unknown.
        InputError: the benchmark's files are not as published.
    """
    return run_verb("evaluate", config, progress, partial(_evaluate, executor))


def _evaluate(executor: Executor, job: Job) -> dict[str, Any]:
    folder = job.ledger.folder
    found = judged(executor, job, folder / layout.LABEL_MAPS)
    write_json(folder / layout.EVALUATION, found)
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
