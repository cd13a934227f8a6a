"""A streaming graph: numbers in, each through pools of actors, pickled results out, in any order.

One block a number and one number a block, so that a wave stays together and its neighbors do not
matter. No more of them are on their way at once than the pools have actors: so little is done again
after the driver's death, and so little is in memory. Where a pool waits, a line says which and what
for; where nothing moves at all for `ray.stall_timeout_s`, the run ends with the same words.

A graph costs seconds before it works; bench/overhead.py measures how many.
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

IN_FLIGHT = 2
"""Blocks an actor has in hand: one in work, one waiting with it, which tells Ray to add actors."""


def stream(
    count: int,
    reader: Pool | None,
    pools: list[Pool],
    config: RayConfig,
    seen: GraphState | None = None,
) -> Iterator[Any]:
    """Yield what comes out for each of the numbers below `count`, unpickled, in any order.

    `reader` makes a table of a number in a task, where there is one; the first pool else gets the
    number itself in the column `id`. `seen` is kept true while the graph runs.

    Raises:
        NamedMaskError: as raised in a pool; or nothing moved for `ray.stall_timeout_s`.
    """
    if not count:
        return
    problem = None
    try:
        dataset = _dataset(count, reader, pools, _context(pools, config, seen or GraphState()))
        batch: Any
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for value in batch["value"].to_pylist():
                yield pickle.loads(value)
    except ray.exceptions.RayError as error:
        problem = own_error(error) or error.with_traceback(None)
    if problem:
        # what a traceback can reach keeps its actors, and they their CPUs: so none from above
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
    """Return the pool's class under the pool's name, which Ray shows in its plan and dashboard."""
    return type(pool.name.capitalize(), (pool.worker,), {})


def _context(pools: list[Pool], config: RayConfig, seen: GraphState) -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = None  # a wave is one block, whatever its size
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else ours is lost in one of Ray's
    context.issue_detectors_config.detectors = []  # the watch says what waits
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = 3
    context.custom_execution_callback_classes = [watch_of(pools, config, seen)]
    if len(pools) > 1:  # in one pool alone nothing waits that was begun
        policies = [*backpressure_policy.ENABLED_BACKPRESSURE_POLICIES, _gate_of(pools)]
        context.set_config(backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    return context


class Gate(backpressure_policy.BackpressurePolicy):
    """Lets a block into the first pool while fewer are on their way than all pools have actors.

    On their way is what the first pool was given and the last one has not ended: counted by Ray in
    the process that schedules, so never less than what is being worked on.
    """

    pools: ClassVar[list[Pool]]

    def can_add_input(self, op: Any) -> bool:
        """Return whether Ray may give a block to this operator."""
        first, last = self.pools[0].name, self.pools[-1].name
        if stage_of(op.name) != first:
            return True
        ended = sum(
            one.metrics.num_tasks_finished for one in self._topology if stage_of(one.name) == last
        )
        on_their_way: int = op.metrics.num_inputs_received - ended
        return on_their_way < sum(pool.actors[1] for pool in self.pools)


def _gate_of(pools: list[Pool]) -> type[Gate]:
    return type("Gate", (Gate,), {"pools": pools})


def own_error(error: BaseException) -> NamedMaskError | None:
    """Return the package's own error inside one of Ray's, as it was raised, if there is one."""
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
