"""The same road on a Ray cluster: graphs over pools of actors, training on many processes.

The only part of the package that imports ray. `connect` gives the executor that the verbs take. The
files in the order of a run: `session` (connect; what the run needs against what there is),
`metadata_scan` (tables read and deduplicated by many tasks), `graphs` (a streaming graph), `watch`
(what waits in it), `actors` and `isolated` (what its processes do; how one bad row is found),
`ray_executor`, `experts`, `training`, `submit`.
"""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.engine.on_ray.ray_executor import connect as connect

__all__ = ["connect"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"connect": "ray_executor"},
)
