"""The choice of an executor: the plain loop on this machine, or graphs on a Ray cluster.

with executor_of(config, local=True) as executor:
    collect.embed(config, progress, executor)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from namedmask.config import Config
from namedmask.engine.local import PlainLoop
from namedmask.run.executor import Executor

PLAIN_LOOP = PlainLoop()
"""The executor without Ray, which all runs share because it has no state."""


@contextmanager
def executor_of(config: Config, local: bool = False) -> Iterator[Executor]:
    """Yield the plain loop if `local`, else an executor on Ray; see engine.on_ray.connect."""
    if local:
        yield PLAIN_LOOP
        return
    from namedmask.engine.on_ray import connect

    with connect(config) as executor:
        yield executor
