"""The opening of a verb's models and files on Ray, before its first row.

The parts are opened in tasks with the resources of their config sections: all parts without a GPU
in one task, all parts with a GPU in another. An error is the task's answer, so that it reaches the
driver unchanged. A task whose process dies is repeated part by part, to name the part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray

from namedmask.config import Config
from namedmask.engine.on_ray.isolated import died_while_opened
from namedmask.engine.on_ray.session import may_grow_to
from namedmask.engine.on_ray.watch import stalled
from namedmask.errors import NamedMaskError
from namedmask.run.failures import sentence_of
from namedmask.run.stages import Part

_log = logging.getLogger(__name__)

Answer = tuple[int, NamedMaskError | None]
"""The number of parts that were opened, and the error that ended the task, if any."""


def open_on_ray(parts: Sequence[Part], config: Config) -> None:
    """Open parts in processes of the cluster.

    Raises:
        NamedMaskError: the error of the first part, in order, that cannot be opened; or no process
            was free for `ray.stall_timeout_s`.
    """
    with_gpu = [part for part in parts if _gpus(part, config)]
    others = [part for part in parts if part not in with_gpu]
    groups = [group for group in (others, with_gpu) if group]
    failed: dict[int, NamedMaskError] = {}
    for group, answer in zip(groups, _answers(groups, config), strict=True):
        if answer is None:  # the process died
            alone = [[part] for part in group]
            answers = [answer or (0, died_while_opened()) for answer in _answers(alone, config)]
            answer = next(
                ((number, error) for number, (_, error) in enumerate(answers) if error),
                (len(group), None),
            )
        count, error = answer
        if error:
            failed[parts.index(group[count])] = error
    if failed:
        raise failed[min(failed)]


def _answers(groups: Sequence[Sequence[Part]], config: Config) -> list[Answer | None]:
    """Return the answer of one task per group of parts; None for a task whose process died."""
    references = [_task(group, config).remote(list(group)) for group in groups]
    _wait(references, groups, config)
    return [_answer_of(reference) for reference in references]


def _answer_of(reference: Any) -> Answer | None:
    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise NamedMaskError(f"a task of Ray failed: {sentence_of(error)}") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return None
    return answer


def _task(group: Sequence[Part], config: Config) -> Any:
    sections = [getattr(config, part.section) for part in group]
    most = max(getattr(section, "num_cpus", 1.0) for section in sections)
    has = ray.cluster_resources()
    cpus = most if max(has.get("CPU", 0), may_grow_to().get("CPU", 0)) >= most else 0
    gpus = max(_gpus(part, config) for part in group)
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_open)


def _open(parts: Sequence[Part]) -> Answer:
    for number, part in enumerate(parts):
        try:
            part.open()
        except NamedMaskError as error:
            return number, error
    return len(parts), None


def _gpus(part: Part, config: Config) -> float:
    """Return the GPUs of a part; 0 without a GPU in the cluster, which opening it then tells."""
    most = max(ray.cluster_resources().get("GPU", 0), may_grow_to().get("GPU", 0))
    return float(min(getattr(config, part.section).reserved_gpus, most))


def _wait(references: Sequence[Any], groups: Sequence[Sequence[Part]], config: Config) -> None:
    """Return when all tasks have ended; log a warning while they wait for a process."""
    left, settings, began = list(references), config.ray, time.monotonic()
    subjects = ", ".join(part.subject for group in groups for part in group)
    while left:
        _, left = ray.wait(
            left, num_returns=len(left), timeout=min(settings.heartbeat_s, settings.stall_timeout_s)
        )
        idle_s = time.monotonic() - began
        message = f"a process to open {subjects} waits for CPUs or GPUs, or takes long"
        if left and idle_s >= settings.stall_timeout_s:
            for reference in left:
                ray.cancel(reference, force=True)
            raise stalled(idle_s, message)
        if left:
            _log.warning("no progress for %.0f s: %s", idle_s, message)
