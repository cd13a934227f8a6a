"""What waits in a graph, and what for: said now and then, and when the run ends for it.

Ray calls `on_execution_step` in the loop that schedules a graph. An error raised there ends the
graph and reaches whoever reads its results.
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

LOOK_EVERY_S = 1.0


@dataclass
class GraphState:
    """What a watch saw last: the pool with the longest queue, where there is one."""

    slowest: str = ""


class Watch(ExecutionCallback):
    """Looks at a graph once a second."""

    pools: ClassVar[dict[str, Pool]]
    seen: ClassVar[GraphState]
    config: ClassVar[RayConfig]

    def __init__(self) -> None:
        self._looked = self._spoke = self._moved = time.monotonic()
        self._state: object = None

    def on_execution_step(self, executor: Any) -> None:
        """Say what waits when nothing moved for `heartbeat_s`.

        Raises:
            NamedMaskError: nothing moved for `stall_timeout_s`.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        self.seen.slowest = self._slowest(executor)
        state = _state_of(executor)
        if state != self._state:
            self._state, self._moved = state, now
            return
        quiet = now - self._moved
        if quiet >= self.config.stall_timeout_s:
            raise _stalled(quiet, "; ".join(self._waiting(executor)))
        if min(quiet, now - self._spoke) >= self.config.heartbeat_s:
            self._spoke = now
            _log.warning("no progress for %.0f s: %s", quiet, "; ".join(self._waiting(executor)))

    def _slowest(self, executor: Any) -> str:
        queues = {
            stage_of(operator.name): state.total_enqueued_input_blocks()
            for operator, state in executor._topology.items()
            if stage_of(operator.name) in self.pools
        }
        longest = max(queues, key=lambda name: queues[name], default="")
        return longest if longest and queues[longest] else ""

    def _waiting(self, executor: Any) -> list[str]:
        """Return a sentence for each pool that is not done."""
        free = ray.available_resources()
        said = []
        for operator in executor._topology:
            pool = self.pools.get(stage_of(operator.name))
            if operator.has_completed() or pool is None:
                continue
            running, pending = _actors_of(operator)
            queued = executor._topology[operator].total_enqueued_input_blocks()
            if pending and not running:
                said.append(
                    f"{pool.name} waits for its first actor, which needs {_needs(pool)}; free are "
                    f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
                )
            else:
                said.append(
                    f"{pool.name} has {running} of up to {pool.actors[1]} actors, "
                    f"{operator.num_active_tasks()} at work, {queued} waves before them"
                )
        return said or ["the reader of the waves has not ended"]


def gather(references: Sequence[Any], clerk: Any, what: str, config: RayConfig) -> list[Any]:
    """Return the values of tasks, in order, saying now and then that they wait for CPUs.

    A task tells the `clerk` when it begins and when it ends.

    Raises:
        NamedMaskError: none has begun for `stall_timeout_s`.
    """
    left, moved = list(references), time.monotonic()
    while left:
        done, left = ray.wait(left, timeout=min(config.heartbeat_s, config.stall_timeout_s))
        if done or ray.get(clerk.active.remote()):
            moved = time.monotonic()
            continue
        quiet, free = time.monotonic() - moved, ray.available_resources().get("CPU", 0)
        said = f"{what} waits for CPUs; {len(left)} tasks are left, {free:g} CPU is free"
        if quiet >= config.stall_timeout_s:
            for reference in left:
                ray.cancel(reference, force=True)
            raise _stalled(quiet, said)
        _log.warning("no progress for %.0f s: %s", quiet, said)
    return list(ray.get(list(references)))


def _stalled(quiet: float, said: str) -> NamedMaskError:
    return NamedMaskError(
        f"nothing moved for {quiet:.0f} s (ray.stall_timeout_s): {said}. What is committed is "
        "kept; run the same command again once the cluster has what is missing, or raise "
        "ray.stall_timeout_s."
    )


def watch_of(pools: Sequence[Pool], config: RayConfig, seen: GraphState) -> type[Watch]:
    """Return the class that watches a graph of these pools; Ray makes the instance."""
    by_name = {pool.name: pool for pool in pools}
    return type("Watch", (Watch,), {"pools": by_name, "config": config, "seen": seen})


def _state_of(executor: Any) -> object:
    return [
        (operator.metrics.num_outputs_taken, operator.metrics.num_tasks_finished,
         *_actors_of(operator))
        for operator in executor._topology
    ]  # fmt: skip


def _actors_of(operator: Any) -> tuple[int, int]:
    """Return how many actors of an operator are up, and how many are on their way."""
    pool = getattr(operator, "_actor_pool", None)
    return (pool.num_running_actors(), pool.num_pending_actors()) if pool else (0, 0)


def stage_of(operator_name: str) -> str:
    """Return `fetch` for `MapBatches(Fetch)`, and for what Ray fuses with it."""
    return operator_name.rpartition("(")[2].rstrip(")").lower()


def _needs(pool: Pool) -> str:
    gpus = f" and {pool.num_gpus:g} GPU" if pool.num_gpus else ""
    return f"{pool.num_cpus:g} CPU{gpus}"
