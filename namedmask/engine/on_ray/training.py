"""The segmenter's training on Ray, by processes that share each batch.

Ray Train runs `train.processes` processes with the loop of train/loop.py. Each process has a stream
of Ray Data of its own with its share of every batch. Actors on any machine with free CPUs make the
samples. The content of a batch depends only on the seed and the step. A single process therefore
ends with the same bits as the plain loop, and a process that dies is replaced and resumes from the
last checkpoint.

The processes read the archive and write the checkpoint in the run folder itself. On a cluster, the
run folder must be on storage that all machines can access.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
from ray.exceptions import RayTaskError
from ray.train.torch import TorchTrainer, get_device
from torch import Tensor

from namedmask.archive.samples import ArchiveSamples
from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.engine.on_ray.session import refuse_to_stall, with_absolute_paths
from namedmask.errors import NamedMaskError
from namedmask.run import layout
from namedmask.run.layout import CHECKPOINT, TRAINING
from namedmask.run.machine import threads_of
from namedmask.segmenter.checkpoint import save_checkpoint, starting_segmenter
from namedmask.storage import Place
from namedmask.storage.place import remove_tree
from namedmask.train.augment import draft_batch, make_batch
from namedmask.train.group import Group
from namedmask.train.loop import Feed, finished, train_from

STEPS_PER_TASK = 4
"""Number of steps per task of an actor, which makes a process's shares of their batches."""

TASKS_IN_FLIGHT = 2
"""Number of tasks that an actor has at the same time.

The 8 batches of these tasks take 0.26 GB of the object store, with 16 samples of 384 × 384 pixels.
"""

POLL_S = 0.2
"""Seconds between two requests of the driver for the reports of the training processes."""


def train_on_ray(
    config: Config,
    folder: Place,
    on_step: Callable[[int, float], None],
    archive_folder: Place | None = None,
) -> None:
    """Train the segmenter of a run folder on Ray, and save it at `CHECKPOINT` in that folder.

    Args:
        config: config of the run.
        folder: the run folder.
        on_step: called as `on_step(done, loss)` once per step, in this thread; an exception that it
            raises stops the training.
        archive_folder: folder of the archive to train on; None: the archive in `folder`.

    Raises:
        ClusterTooSmallError: the training needs more than the cluster has, so it would wait
            forever.
        NamedMaskError: more processes died than `train.max_failures` allows.
        InputError, ConfigError, CheckpointError, NamedMaskError: as `train.loop.train`.
    """
    config, folder = with_absolute_paths(config), folder.resolve()
    source = (archive_folder or folder / layout.ARCHIVE).resolve()
    archive = Archive.open(source)
    archive.samples(refined=config.experts.enabled)  # raises now if files are missing
    refuse_to_stall(
        "the training", _resources(config), "Lower train.processes or train.sample_processes"
    )
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(TrainingReports)
    reports = actor.options(num_cpus=0, label_selector={"ray.io/node-id": here}).remote()
    scratch = folder / layout.RAY_TRAIN
    remove_tree(scratch)  # left by a run that was killed
    try:
        _fit(_trainer(config, folder, source, scratch, reports), reports, on_step)
    finally:
        remove_tree(scratch)
    (folder / TRAINING).unlink(missing_ok=True)


def _trainer(
    config: Config, folder: Place, source: Place, scratch: Place, reports: Any
) -> TorchTrainer:
    task = {"config": config, "folder": folder, "source": source, "reports": reports}
    return TorchTrainer(
        _work,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.train.processes, use_gpu=config.train.device == "cuda"
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # typed as the one before V2
            name="train",
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _fit(trainer: TorchTrainer, reports: Any, on_step: Callable[[int, float], None]) -> None:
    """Run the training to its end, and call `on_step` for each finished step.

    `fit` runs in a second thread, because in the main thread it would replace the handler of Ctrl-C
    and end the program with exit code 0.
    """
    with ThreadPoolExecutor(1, "namedmask-train") as thread:
        fitting = thread.submit(trainer.fit)
        try:
            highest = 0
            while not _ended(fitting):
                highest = _pass_on(reports, highest, on_step)
            _pass_on(reports, highest, on_step)
        except BaseException:
            ray.get(reports.end.remote(NamedMaskError("the driver stopped the training")))
            raise
    error = ray.get(reports.error.remote())
    if error is not None:
        raise error
    try:
        fitting.result()
    except ray.train.TrainingFailedError as failure:
        raise NamedMaskError(
            f"the training on Ray failed: {failure}\nIts last checkpoint is kept. Run the same "
            "command again to resume from it; raise train.max_failures to replace more processes "
            "that die."
        ) from failure


def _ended(fitting: Future[Any]) -> bool:
    return bool(wait([fitting], POLL_S).done)


def _pass_on(reports: Any, highest: int, on_step: Callable[[int, float], None]) -> int:
    """Call `on_step` for each reported step above `highest`; return the highest reported step.

    Steps are repeated, and reported again, after a process has died.
    """
    for done, loss in ray.get(reports.take.remote()):
        if done > highest:
            on_step(done, loss)
            highest = done
    return highest


class TrainingReports:
    """An actor that collects the reports of the training processes and can stop them."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._error: NamedMaskError | None = None

    def add(self, done: int, loss: float) -> bool:
        """Add a finished step and its loss; return whether the training is to go on."""
        self._steps.append((done, loss))
        return self._error is None

    def take(self) -> list[tuple[int, float]]:
        """Return the steps that were added since the last call, as (step, loss)."""
        steps, self._steps = self._steps, []
        return steps

    def end(self, error: NamedMaskError) -> None:
        """Stop the training because of an error; only the first error is kept."""
        self._error = self._error or error

    def error(self) -> NamedMaskError | None:
        """Return the error that stops the training; None while the training is to go on."""
        return self._error


class Ended(Exception):
    """The driver has stopped the training."""


def _work(task: dict[str, Any]) -> None:
    """Train as one process of the group.

    Ray Train replaces a process that raises any error. A NamedMaskError would occur again, so it is
    added to the reports, where the replacement finds it and returns. In a group of several
    processes it must be raised as well, because the other processes wait for this process.
    """
    reports = task["reports"]
    if ray.get(reports.error.remote()) is not None:
        return
    try:
        _train(task["config"], task["folder"], task["source"], reports)
    except NamedMaskError as error:
        # an error from another process is a RayTaskError and a NamedMaskError at the same time
        cause = error.cause if isinstance(error, RayTaskError) else error
        ray.get(reports.end.remote(cause))
        if ray.train.get_context().get_world_size() > 1:
            raise
    except Ended:
        if ray.train.get_context().get_world_size() > 1:
            raise


def _train(config: Config, folder: Place, source: Place, reports: Any) -> None:
    torch.set_num_threads(threads_of(config))
    if config.train.device == "cuda":
        torch.cuda.set_device(get_device())
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size(), config.train.sync_batch_norm)
    archive = Archive.open(source)
    count = sum(category.count for category in archive.categories)

    def on_step(done: int, loss: float) -> None:
        if group.rank == 0 and not ray.get(reports.add.remote(done, loss)):
            raise Ended

    model = train_from(
        starting_segmenter(
            config.segmenter, archive.label_names, config.run.seed, config.train.start
        ),
        Feed(count, partial(_batches, config, source, group)),
        config.train, config.augment, seed=config.run.seed, group=group,
        checkpoint=folder / TRAINING, checkpoint_every=config.train.checkpoint_every,
        on_step=on_step,
    )  # fmt: skip
    if group.rank == 0:
        save_checkpoint(
            folder / CHECKPOINT, model, name=config.segmenter.name, names=archive.label_names,
            step=config.train.iterations,
        )  # fmt: skip


def _batches(
    config: Config, source: Place, group: Group, start: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a process's share of each batch, as `train.loop.Batches` does, from step `start` on."""
    steps = range(start, config.train.iterations)
    if not steps:
        return
    slots = group.slots(config.train.batch_size)
    _set_up_stream(group)
    # the reading tasks of `ray.data.range` would need a CPU in addition to those of the actors
    tasks = ray.data.from_items(list(steps), override_num_blocks=-(-len(steps) // STEPS_PER_TASK))
    shares = tasks.map_batches(
        Shares,
        fn_constructor_args=(config, source, slots),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=_sample_actors(config), max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
        ),
        num_cpus=1,
    )
    if config.augment.on_device:
        drafts = (pickle.loads(row["draft"]) for row in shares.iter_rows())
        yield from finished(drafts, config.train.device)
        return
    for share in shares.iter_torch_batches(batch_size=len(slots), prefetch_batches=2, device="cpu"):
        yield share["images"], share["labels"].long()


class Shares:
    """An actor that makes one process's share of the batch of a step."""

    def __init__(self, config: Config, source: Place, slots: range) -> None:
        torch.set_num_threads(1)
        self._config, self._source, self._slots = config, source, slots
        self._samples: ArchiveSamples | None = None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `images` (B, 3, S, S) float32 and `labels` (B, S, S) uint16 of the step in `rows`.

        With `augment.on_device`, return one pickled `draft` of the step's batch instead.
        """
        config = self._config
        if self._samples is None:
            # not in the constructor, because its errors reach the driver only as text
            archive = Archive.open(self._source)
            self._samples = archive.samples(refined=config.experts.enabled)
        step = int(rows["item"][0])
        arguments = self._samples, self._slots, config.augment, config.run.seed, step
        if config.augment.on_device:
            return {"draft": np.array([pickle.dumps(draft_batch(*arguments))], object)}
        images, labels = make_batch(*arguments)
        return {"images": images.numpy(), "labels": labels.numpy().astype(np.uint16)}


def _set_up_stream(group: Group) -> None:
    context = ray.data.DataContext.get_current()
    # each process has a stream, and by default each stream may fill half of the object store
    context.override_object_store_memory_limit_fraction = 0.5 / group.size
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _sample_actors(config: Config) -> int:
    """Return the number of actors that make the samples of one process."""
    return max(1, config.train.sample_processes)


def _resources(config: Config) -> dict[str, float]:
    """Return the resources of the training processes and of the actors that make their samples."""
    processes = config.train.processes
    return {
        "CPU": processes * (1 + _sample_actors(config)),
        "GPU": processes * config.train.reserved_gpus,
    }
