"""The verb `evaluate`, which scores the segmenter of a run or of a checkpoint on a benchmark."""

from __future__ import annotations

from functools import partial
from typing import Any

from namedmask.categories import configured_names
from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.scorer import Scorer, open_scorer, predictor_of, score_benchmark
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun, verb_run
from namedmask.run.layout import CHECKPOINT
from namedmask.run.progress import Progress
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.storage import Place
from namedmask.storage.files import write_json
from namedmask.verbs.preflight import open_parts


def evaluate_checkpoint(checkpoint: Place, config: Config, progress: Progress) -> dict[str, Any]:
    """Return the scores of a checkpoint on `evaluate.benchmark`, as plain values.

    The keys are those of `score_benchmark` except `scenes`. A checkpoint without label names gets
    the names of the `categories` section, or else those of the benchmark.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConfigError: the benchmark is not configured or unknown.
        InputError: the benchmark's files are not as published, or the segmenter lacks a label of
            the benchmark.
    """
    benchmark = open_benchmark(config.evaluate)
    names_of_bare = configured_names(config.categories) or benchmark.names
    model, names = load_checkpoint(checkpoint, config.segmenter, names_of_bare)
    scorer = Scorer(predictor_of(model, config.evaluate), names, benchmark, config.evaluate)
    with progress.step("evaluate", len(benchmark)) as step:
        scores = score_benchmark(
            partial(map, scorer), names, benchmark, config.evaluate, on_scenes=step.advance
        )
    return {key: value for key, value in scores.items() if key != "scenes"}


def evaluate(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Score the run's segmenter on `evaluate.benchmark`; return the single numbers and texts.

    All scores, including those per label and per scene, are written to `evaluation.json` in the run
    folder.

    Raises:
        ConfigError: the benchmark is not configured or unknown.
        InputError: the benchmark's files are not as published, or the segmenter lacks a label of
            the benchmark.
    """
    with verb_run("evaluate", config, progress) as run:
        if run.has_work:
            open_parts(executor, run, "evaluate")
            run.result = _evaluate(executor, run)
    return run.result


def _evaluate(executor: Executor, run: VerbRun) -> dict[str, Any]:
    folder = run.ledger.folder
    scores = score(executor, run, folder / layout.LABEL_MAPS)
    write_json(folder / layout.EVALUATION, scores)
    return {key: value for key, value in scores.items() if isinstance(value, int | float | str)}


def score(executor: Executor, run: VerbRun, out: Place | None) -> dict[str, Any]:
    """Return the scores of a run's segmenter on its benchmark; see `score_benchmark`.

    The predicted label maps of the best and the worst scenes are written to the folder `out`, if it
    is not None.
    """
    config, checkpoint = run.config, run.ledger.folder / CHECKPOINT
    benchmark = open_benchmark(config.evaluate)
    names = load_checkpoint(checkpoint, config.segmenter)[1]
    make = partial(open_scorer, checkpoint, config)
    run.start("evaluate")
    with run.clock("evaluate"), run.progress.step("evaluate", len(benchmark)) as step:
        return score_benchmark(
            partial(executor.map, run, "evaluate", make), names, benchmark, config.evaluate,
            out=out, on_scenes=step.advance,
        )  # fmt: skip
