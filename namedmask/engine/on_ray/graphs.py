"""Streaming graphs of Ray Data, in which numbered items pass pools of actors.

The number of each wave is a block of its own, and each slice of a wave is a row that Ray does not
divide (see parcels.py). The results are pickled, and leave the graph in any order. At most as many
waves are in progress as the pools have actors, which limits the work that is repeated when the
driver dies. If nothing moves for `ray.heartbeat_s`, a log line names the waiting
pools and the resources that they need. If nothing moves for `ray.stall_timeout_s`, the run ends
with the same message.

A graph takes seconds to start; bench/overhead.py measures the time.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.data._internal.execution import backpressure_policy

from namedmask.config import RayConfig
from namedmask.engine.on_ray.session import Pool
from namedmask.engine.on_ray.watch import GraphState, stage_of, watch_of
from namedmask.errors import NamedMaskError

BLOCK_BYTES = 1
"""Bytes at which a block is complete, so that each slice of a wave is a block of its own.

If a process dies, Ray runs its task again and skips as many blocks as it has. Two slices in a block
by their sizes would be others in the second run, because images on the web change."""

IN_FLIGHT = 2
"""Maximum number of blocks per actor. The second block waits, which tells Ray to add an actor."""


def stream(
    count: int,
    reader: Pool | None,
    pools: list[Pool],
    config: RayConfig,
    state: GraphState | None = None,
) -> Iterator[Any]:
    """Yield the unpickled result of a graph for each number below `count`, in any order.

    Args:
        count: number of items that enter the graph.
        reader: turns a number into a table, in a task. Without a reader, the first pool gets a
            table of one row with the number in the column `id`.
        pools: the pools of actors, in the order in which a block passes them.
        config: the section `ray`.
        state: updated while the graph runs.

    Raises:
        NamedMaskError: an actor raised this error, or nothing moved for `ray.stall_timeout_s`.
    """
    if not count:
        return
    problem = None
    try:
        dataset = _dataset(count, reader, pools, _context(pools, config, state or GraphState()))
        batch: Any
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for value in batch["value"].to_pylist():
                yield pickle.loads(value)
    except ray.exceptions.RayError as error:
        problem = own_error(error) or error.with_traceback(None)
    if problem:
        # A live traceback keeps the actors alive, and their CPUs; raise without it.
        gc.collect()
        raise problem


def _dataset(
    count: int, reader: Pool | None, pools: list[Pool], context: ray.data.DataContext
) -> ray.data.Dataset:
    with ray.data.DataContext.current(context):
        dataset = ray.data.range(count, override_num_blocks=count)
        if reader:
            dataset = dataset.map_batches(
                reader.worker(**reader.arguments), batch_size=None, batch_format="pyarrow",
                num_cpus=reader.num_cpus,
            )  # fmt: skip
        for pool in pools:
            dataset = dataset.map_batches(
                _named(pool), fn_constructor_kwargs=dict(pool.arguments), batch_size=None,
                batch_format="pyarrow", num_cpus=pool.num_cpus, num_gpus=pool.num_gpus,
                compute=_compute(pool, count),
            )  # fmt: skip
        return dataset


def _named(pool: Pool) -> type:
    """Return a subclass with the name of the pool, which Ray shows in its plan and dashboard."""
    return type(pool.name.capitalize(), (pool.worker,), {})


def _context(pools: list[Pool], config: RayConfig, state: GraphState) -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise an error of Ray hides the original
    context.issue_detectors_config.detectors = []  # `Watch` reports waiting pools instead
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = 3
    context.custom_execution_callback_classes = [watch_of(pools, config, state)]
    if len(pools) > 1:  # in a single pool, no block waits between two pools
        policies = [*backpressure_policy.ENABLED_BACKPRESSURE_POLICIES, _gate_of(pools)]
        context.set_config(backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    return context


class Gate(backpressure_policy.BackpressurePolicy):
    """Admits a wave to the first pool while fewer waves are in progress than pools have actors.

    A wave is in progress from its arrival at the first pool until the last pool has returned its
    result, one row. Ray counts both in the process that schedules, so the count is never too low.
    """

    pools: ClassVar[list[Pool]]

    def can_add_input(self, op: Any) -> bool:
        """Return whether Ray may give a block to this operator."""
        first, last = self.pools[0].name, self.pools[-1].name
        if stage_of(op.name) != first:
            return True
        ended = sum(
            operator.metrics.rows_task_outputs_generated
            for operator in self._topology
            if stage_of(operator.name) == last
        )
        under_way: int = op.metrics.num_inputs_received - ended
        return under_way < sum(pool.actors[1] for pool in self.pools)


def _gate_of(pools: list[Pool]) -> type[Gate]:
    return type("Gate", (Gate,), {"pools": pools})


def own_error(error: BaseException) -> NamedMaskError | None:
    """Return the NamedMaskError that caused an error of Ray; None if there is no such cause."""
    inner = getattr(error, "cause", None) or error.__cause__
    found = own_error(inner) if isinstance(inner, BaseException) else None
    if found or not isinstance(error, NamedMaskError):
        return found
    return error


def _compute(pool: Pool, count: int) -> ActorPoolStrategy:
    fewest, most = (min(number, count) for number in pool.actors)
    return ActorPoolStrategy(
        min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=IN_FLIGHT
    )
