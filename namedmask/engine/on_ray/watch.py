"""A watch over graphs and tasks, which logs waiting work and ends work that has stalled.

Ray calls `on_execution_step` in the loop that schedules a graph. An error raised there ends the
graph and reaches the process that reads its results.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from namedmask.config import RayConfig
from namedmask.engine.on_ray.session import Pool
from namedmask.errors import NamedMaskError

_log = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""Seconds between two checks of a graph."""


@dataclass
class GraphState:
    """The state of a graph at the last check."""

    slowest: str = ""  # name of the pool with the longest queue; "" if all queues are empty


class Watch(ExecutionCallback):
    """A callback of Ray Data that checks a graph once per second."""

    pools: ClassVar[dict[str, Pool]]
    state: ClassVar[GraphState]
    config: ClassVar[RayConfig]

    def __init__(self) -> None:
        self._checked_at = self._warned_at = self._moved_at = time.monotonic()
        self._counters: object = None

    def on_execution_step(self, executor: Any) -> None:
        """Log the waiting pools if nothing has moved for `heartbeat_s`.

        Raises:
            NamedMaskError: nothing has moved for `stall_timeout_s`.
        """
        now = time.monotonic()
        if now - self._checked_at < CHECK_EVERY_S:
            return
        self._checked_at = now
        self.state.slowest = self._slowest(executor)
        counters = _counters_of(executor)
        if counters != self._counters:
            self._counters, self._moved_at = counters, now
            return
        idle_s = now - self._moved_at
        if idle_s >= self.config.stall_timeout_s:
            raise stalled(idle_s, "; ".join(self._waiting(executor)))
        if min(idle_s, now - self._warned_at) >= self.config.heartbeat_s:
            self._warned_at = now
            _log.warning("no progress for %.0f s: %s", idle_s, "; ".join(self._waiting(executor)))

    def _slowest(self, executor: Any) -> str:
        queues = {
            stage_of(operator.name): operator_state.total_enqueued_input_blocks()
            for operator, operator_state in executor._topology.items()
            if stage_of(operator.name) in self.pools
        }
        longest = max(queues, key=lambda name: queues[name], default="")
        return longest if longest and queues[longest] else ""

    def _waiting(self, executor: Any) -> list[str]:
        """Return a message for each pool that has work left."""
        free = ray.available_resources()
        messages = []
        for operator in executor._topology:
            pool = self.pools.get(stage_of(operator.name))
            if operator.has_completed() or pool is None:
                continue
            running, pending = _actors_of(operator)
            queued = executor._topology[operator].total_enqueued_input_blocks()
            if pending and not running:
                messages.append(
                    f"{pool.name} waits for its first actor, which needs {_needs(pool)}; the "
                    f"cluster has {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU free"
                )
            else:
                messages.append(
                    f"{pool.name} has {running} of up to {pool.actors[1]} actors, "
                    f"{operator.num_active_tasks()} tasks at work, {queued} waves queued"
                )
        return messages or ["the reader of the waves is not finished"]


def gather(references: Sequence[Any], registry: Any, work: str, config: RayConfig) -> list[Any]:
    """Return the results of tasks in order; log a warning while no task runs for lack of CPUs.

    Args:
        references: references to the results of the tasks.
        registry: the `WorkRegistry` in which each task records its start and its end.
        work: the work of the tasks, as the subject of the warning.
        config: the section `ray`.

    Raises:
        NamedMaskError: no task has run for `stall_timeout_s`.
    """
    left, moved_at = list(references), time.monotonic()
    while left:
        done, left = ray.wait(left, timeout=min(config.heartbeat_s, config.stall_timeout_s))
        if done or ray.get(registry.active.remote()):
            moved_at = time.monotonic()
            continue
        idle_s, free = time.monotonic() - moved_at, ray.available_resources().get("CPU", 0)
        message = f"{work} waits for CPUs; {len(left)} tasks are left, {free:g} CPU is free"
        if idle_s >= config.stall_timeout_s:
            for reference in left:
                ray.cancel(reference, force=True)
            raise stalled(idle_s, message)
        _log.warning("no progress for %.0f s: %s", idle_s, message)
    return list(ray.get(list(references)))


def stalled(idle_s: float, message: str) -> NamedMaskError:
    """Return the error for work that has not moved for `idle_s` seconds."""
    return NamedMaskError(
        f"nothing moved for {idle_s:.0f} s (ray.stall_timeout_s): {message}. Committed work is "
        "kept. Run the same command again once the cluster has the missing resources, or raise "
        "ray.stall_timeout_s."
    )


def watch_of(pools: Sequence[Pool], config: RayConfig, state: GraphState) -> type[Watch]:
    """Return a class that watches a graph of these pools; Ray makes the instance."""
    by_name = {pool.name: pool for pool in pools}
    return type("Watch", (Watch,), {"pools": by_name, "config": config, "state": state})


def _counters_of(executor: Any) -> object:
    """Return counts that change whenever a block moves, or an actor starts or ends."""
    return [
        (operator.metrics.num_outputs_taken, operator.metrics.num_tasks_finished,
         *_actors_of(operator))
        for operator in executor._topology
    ]  # fmt: skip


def _actors_of(operator: Any) -> tuple[int, int]:
    """Return the numbers of running and of pending actors of an operator."""
    pool = getattr(operator, "_actor_pool", None)
    return (pool.num_running_actors(), pool.num_pending_actors()) if pool else (0, 0)


def stage_of(operator_name: str) -> str:
    """Return the stage of an operator: `fetch` for `MapBatches(Fetch)`, fused by Ray or not."""
    return operator_name.rpartition("(")[2].rstrip(")").lower()


def _needs(pool: Pool) -> str:
    gpus = f" and {pool.num_gpus:g} GPU" if pool.num_gpus else ""
    return f"{pool.num_cpus:g} CPU{gpus}"
