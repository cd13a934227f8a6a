"""The segmenter's training on Ray: processes that share each step, each fed by a stream of batches.

Ray Train keeps `train.processes` processes that run the loop of train.py; a Ray Data stream of
its own feeds each of them its share of every batch, made by actors wherever there are CPUs. What
lies in a batch depends on the seed and the step alone, so one process ends with the plain loop's
bits, and whoever is lost is replaced and goes on from the last checkpoint.

The processes read the archive and write the checkpoint in the run folder itself: on several
machines it must be storage that all of them see.
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
TASKS_IN_FLIGHT = 2
"""Batches asked of an actor at once, and how many such tasks wait at it.

8 batches of 16 × 384 × 384 are 0.26 GB of the object store.
"""

POLL_S = 0.2
"""Between two looks of the driver at what the processes have done."""


def train_on_ray(
    config: Config,
    folder: Place,
    on_step: Callable[[int, float], None],
    archive_folder: Place | None = None,
) -> None:
    """Train the segmenter in the run folder `folder` on Ray, and leave it at `CHECKPOINT`.

    `archive_folder` is where its archive lies, if not in `folder`. `on_step(done, loss)` follows
    each step, in this thread, never twice for the same; an exception of it stops the training.

    Raises:
        ClusterTooSmallError: Ray would wait for more than it has for ever.
        NamedMaskError: more processes were lost than `train.max_failures`; or as `train`.
    """
    config, folder = with_absolute_paths(config), folder.resolve()
    source = (archive_folder or folder / layout.ARCHIVE).resolve()
    archive = Archive.open(source)
    archive.samples(refined=config.experts.enabled)  # what is missing should show before it starts
    refuse_to_stall(
        "the training", _resources(config), "Lower train.processes or train.sample_processes"
    )
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(TrainingReports)
    inbox = actor.options(num_cpus=0, label_selector={"ray.io/node-id": here}).remote()
    scratch = folder / layout.RAY_TRAIN
    remove_tree(scratch)  # of a run that was killed
    try:
        _fit(_trainer(config, folder, source, scratch, inbox), inbox, on_step)
    finally:
        remove_tree(scratch)
    (folder / TRAINING).unlink(missing_ok=True)


def _trainer(
    config: Config, folder: Place, source: Place, scratch: Place, inbox: Any
) -> TorchTrainer:
    task = {"config": config, "folder": folder, "source": source, "inbox": inbox}
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


def _fit(trainer: TorchTrainer, inbox: Any, on_step: Callable[[int, float], None]) -> None:
    """Run the training to its end and hand on its steps as they are done.

    `fit` runs in a thread: in the main one it would take Ctrl-C for good, and end with exit code 0.
    """
    with ThreadPoolExecutor(1, "namedmask-train") as thread:
        fitting = thread.submit(trainer.fit)
        try:
            highest = 0
            while not _ended(fitting):
                highest = _hand_on(inbox, highest, on_step)
            _hand_on(inbox, highest, on_step)
        except BaseException:
            ray.get(inbox.end.remote(NamedMaskError("stopped from outside")))
            raise
    error = ray.get(inbox.error.remote())
    if error is not None:
        raise error
    try:
        fitting.result()
    except ray.train.TrainingFailedError as failure:
        raise NamedMaskError(
            f"the training on Ray ended: {failure}\nIts last checkpoint is kept: the same command "
            "goes on from there. Raise train.max_failures to replace more lost processes."
        ) from failure


def _ended(fitting: Future[Any]) -> bool:
    return bool(wait([fitting], POLL_S).done)


def _hand_on(inbox: Any, highest: int, on_step: Callable[[int, float], None]) -> int:
    """Return the highest step that `on_step` has heard of; after a loss some are done again."""
    for done, loss in ray.get(inbox.take.remote()):
        if done > highest:
            on_step(done, loss)
            highest = done
    return highest


class TrainingReports:
    """An actor: what the processes have to say to the driver, and whether they should go on."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._error: NamedMaskError | None = None

    def add(self, done: int, loss: float) -> bool:
        """Take note of a step; return whether to go on."""
        self._steps.append((done, loss))
        return self._error is None

    def take(self) -> list[tuple[int, float]]:
        """Return the steps noted since the last time."""
        steps, self._steps = self._steps, []
        return steps

    def end(self, error: NamedMaskError) -> None:
        """Say that there is no use in going on."""
        self._error = self._error or error

    def error(self) -> NamedMaskError | None:
        """Return why there is no use in going on, None if there is."""
        return self._error


class Ended(Exception):
    """The driver wants no more steps."""


def _work(task: dict[str, Any]) -> None:
    """Train as one process of the group.

    Ray Train replaces a process that raises, whatever it raised. So what would fail again is told
    to the inbox, and those that come after find it there and leave. In a group it must be raised
    all the same: the others wait for this one.
    """
    inbox = task["inbox"]
    if ray.get(inbox.error.remote()) is not None:
        return
    try:
        _train(task["config"], task["folder"], task["source"], inbox)
    except NamedMaskError as error:
        # one that crossed processes is wrapped, and is both an error of Ray and one of ours
        cause = error.cause if isinstance(error, RayTaskError) else error
        ray.get(inbox.end.remote(cause))
        if ray.train.get_context().get_world_size() > 1:
            raise
    except Ended:
        if ray.train.get_context().get_world_size() > 1:
            raise


def _train(config: Config, folder: Place, source: Place, inbox: Any) -> None:
    torch.set_num_threads(threads_of(config))
    if config.train.device == "cuda":
        torch.cuda.set_device(get_device())
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size(), config.train.sync_batch_norm)
    archive = Archive.open(source)
    count = sum(category.count for category in archive.categories)

    def on_step(done: int, loss: float) -> None:
        if group.rank == 0 and not ray.get(inbox.add.remote(done, loss)):
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
    """Yield a process's share of each batch from step `start` on, as `train.Batches` makes it."""
    steps = range(start, config.train.iterations)
    if not steps:
        return
    slots = group.slots(config.train.batch_size)
    _set_up_stream(group)
    # not `ray.data.range`: its reading tasks want a CPU beside those of the actors, and wait for it
    tasks = ray.data.from_items(list(steps), override_num_blocks=-(-len(steps) // STEPS_PER_TASK))
    shares = tasks.map_batches(
        Shares,
        fn_constructor_args=(config, source, slots),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=_makers(config), max_tasks_in_flight_per_actor=TASKS_IN_FLIGHT
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
    """Rows of step numbers in, the share of those steps' batches out."""

    def __init__(self, config: Config, source: Place, slots: range) -> None:
        torch.set_num_threads(1)
        self._config, self._source, self._slots = config, source, slots
        self._samples: ArchiveSamples | None = None

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return `images` (B, 3, S, S) float32 and `labels` (B, S, S) uint16 of one step.

        With `augment.on_device` instead one pickled `draft` of it.
        """
        config = self._config
        if (
            self._samples is None
        ):  # here and not at the start: an error of ours stays one on its way
            archive = Archive.open(self._source)
            self._samples = archive.samples(refined=config.experts.enabled)
        asked = self._samples, self._slots, config.augment, config.run.seed, int(rows["item"][0])
        if config.augment.on_device:
            return {"draft": np.array([pickle.dumps(draft_batch(*asked))], object)}
        images, labels = make_batch(*asked)
        return {"images": images.numpy(), "labels": labels.numpy().astype(np.uint16)}


def _set_up_stream(group: Group) -> None:
    context = ray.data.DataContext.get_current()
    # each process has a stream of its own, and each stream would take half of what there is
    context.override_object_store_memory_limit_fraction = 0.5 / group.size
    context.execution_options.preserve_order = True
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _makers(config: Config) -> int:
    """Return how many actors make the samples of one process."""
    return max(1, config.train.sample_processes)


def _resources(config: Config) -> dict[str, float]:
    """Return what runs at once: the processes, and beside each of them those that feed it."""
    processes = config.train.processes
    return {
        "CPU": processes * (1 + _makers(config)),
        "GPU": processes * config.train.reserved_gpus,
    }
