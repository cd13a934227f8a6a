"""The experts on Ray: small trainings that run at the same time, each in a process of its own.

Each expert is committed to the run folder as its own unit, so that the same command resumes an
interrupted run. If an expert fails, the other experts finish first; then an error lists the failed
experts with their errors. On a cluster, the run folder must be on storage that all machines can
access.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from namedmask.config import Config
from namedmask.engine.on_ray.session import refuse_to_stall, with_absolute_paths
from namedmask.errors import NamedMaskError
from namedmask.experts.refine import (
    SHARED_FILE,
    Cluster,
    Work,
    open_work,
    refine_cluster,
    refine_shared,
    steps_done,
    sum_up,
    total_steps,
)
from namedmask.run.job import VerbRun
from namedmask.run.ledger import Commit
from namedmask.storage import Place

TRIES = 2
"""Maximum number of processes per expert. Only a process that dies is replaced."""


def refine_archive(run: VerbRun, clusters: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Train the experts that are not finished; return how many masks were redrawn and kept.

    `clusters` is as in experts.refine.refine_archive.

    Raises:
        ClusterTooSmallError: an expert needs more than the cluster has, so it would wait forever.
        NamedMaskError: experts failed; the message lists their errors. Other experts are committed.
    """
    config, folder = with_absolute_paths(run.config), run.ledger.folder.resolve()
    work = open_work(run, clusters)
    commits, failed = list(work.done), {}
    if work.left:
        refuse_to_stall("an expert", _resources(config), "Lower experts.num_cpus or num_gpus")
        run.start("refine")
    with run.clock("experts"), run.progress.step("experts", total_steps(work, config)) as step:
        step.advance(steps_done(work, config))
        if work.needs_shared:
            _train_shared(config, folder)
            step.advance(config.experts.shared_iterations)
        for cluster, outcome in _refined(config, folder, work):
            if isinstance(outcome, Commit):
                commits.append(outcome)
            else:
                failed[cluster.title] = outcome
            step.advance(config.experts.iterations)
    if failed:
        raise _failure(failed, len(work.left))
    return sum_up(commits)


def _train_shared(config: Config, folder: Place) -> None:
    for _, outcome in _outcomes(config, {"": (refine_shared, folder)}):
        if not isinstance(outcome, Commit):
            raise NamedMaskError(
                f"the shared expert, from which all other experts start, failed: {outcome}\nNo "
                "other expert was started. Fix the cause and run the same command again."
            )


def _refined(config: Config, folder: Place, work: Work) -> Iterator[tuple[Cluster, Commit | str]]:
    """Yield each unfinished cluster with its commit record or its error, in order of completion."""
    start = folder / SHARED_FILE if work.start else None
    by_unit = {cluster.unit: cluster for cluster in work.left}
    calls = {unit: (refine_cluster, folder, cluster, start) for unit, cluster in by_unit.items()}
    for unit, outcome in _outcomes(config, calls):
        yield by_unit[unit], outcome


def _outcomes(
    config: Config, calls: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, Commit | str]]:
    """Run all calls at once; yield each call's name with its commit record or its error.

    Ray's own retries are off, because they never end if a process runs out of memory each time.
    """
    task = _run.options(max_retries=0, **_options(config))
    running = {task.remote(config, *call): (name, 1) for name, call in calls.items()}
    try:
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            name, tries = running.pop(reference)
            try:
                yield name, ray.get(reference)
            except RayTaskError as error:
                yield name, _message_of(error.cause)
            except RayError as error:
                if tries < TRIES:
                    running[task.remote(config, *calls[name])] = name, tries + 1
                else:
                    yield name, f"its process died {tries} times: {_first_line(error)}"
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


@ray.remote
def _run(config: Config, work: Any, *arguments: Any) -> Commit:
    torch.set_num_threads(config.run.threads or max(1, int(config.experts.num_cpus)))
    commit: Commit = work(config, *arguments)
    return commit


def _options(config: Config) -> dict[str, float]:
    return {f"num_{kind.lower()}s": count for kind, count in _resources(config).items()}


def _resources(config: Config) -> dict[str, float]:
    return {"CPU": config.experts.num_cpus, "GPU": config.experts.reserved_gpus}


def _message_of(cause: BaseException) -> str:
    return str(cause) if isinstance(cause, NamedMaskError) else f"{type(cause).__name__}: {cause}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _failure(failed: Mapping[str, str], tried: int) -> NamedMaskError:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in sorted(failed.items()))
    return NamedMaskError(
        f"{len(failed)} of {tried} experts failed; the others are finished and kept:\n{listed}\n"
        "Fix the causes and run the same command again, which trains only the failed experts."
    )
