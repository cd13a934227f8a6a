"""The same road on a Ray cluster: graphs over pools of actors, training on many processes.

The only part of the package that imports ray. `connect` gives the executor that the verbs take:

    with connect(config) as executor:
        verbs.curate(config, progress, executor)

What is where, in the order of a run: `cluster` (connect, what the run needs against what there is),
`scan` (metadata read and deduplicated by many), `graphs` (a streaming graph, and what waits in it),
`actors` and `careful` (what its processes do, and how one bad row is found), `executor`, `experts`,
`training`, `submit`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from namedmask.config import Config

if TYPE_CHECKING:
    from namedmask.on_ray.executor import RayExecutor


def connect(config: Config) -> AbstractContextManager[RayExecutor]:
    """Return what yields an executor on the Ray of `ray.address`, or on one begun for its block."""
    # only now: each process of a graph imports this package, and most need no torch
    from namedmask.on_ray.executor import connect

    return connect(config)
