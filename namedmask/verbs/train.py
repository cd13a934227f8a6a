"""The verb `train`, which trains the segmenter on all archives."""

from __future__ import annotations

from collections import deque
from typing import Any

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun, verb_run
from namedmask.run.layout import TRAINING
from namedmask.run.progress import Progress
from namedmask.verbs.preflight import open_parts


def train(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the segmenter on all archives; return the result of `train_segmenter`.

    The training resumes from its last checkpoint, if it has one.
    """
    with verb_run("train", config, progress) as run:
        if run.has_work:
            open_parts(executor, run, "train")
            run.result = train_segmenter(executor, run)
    return run.result


def train_segmenter(executor: Executor, run: VerbRun) -> dict[str, Any]:
    """Train the segmenter of a run and save it as `layout.CHECKPOINT` in the run folder.

    Return the numbers of `images`, `labels` and `steps`, and the `loss`. The loss is the mean over
    the last 100 steps of this call; it is None if no step was left to train.

    Raises:
        InputError, ConfigError, CheckpointError, NamedMaskError: as `train.loop.train`.
        ClusterTooSmallError: on Ray, the training needs more than the cluster has.
    """
    archive = Archive.open(run.archive)
    steps = run.config.train.iterations
    losses: deque[float] = deque(maxlen=100)
    if not run.is_begun("train"):  # discard the state of a training with other settings or data
        (run.ledger.folder / TRAINING).unlink(missing_ok=True)
        run.ledger.unfinish("evaluate")
    run.start("train")
    with run.clock("train"), run.progress.step("train", steps) as step:
        done = 0

        def on_step(now: int, loss: float) -> None:
            nonlocal done
            step.advance(now - done)
            losses.append(loss)
            done = now

        executor.train(run, on_step)
    images = sum(category.count for category in archive.categories)
    loss = sum(losses) / len(losses) if losses else None
    return {"images": images, "labels": archive.num_labels, "steps": steps, "loss": loss}
