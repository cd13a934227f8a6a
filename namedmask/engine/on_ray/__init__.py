"""The executor on a Ray cluster, with graphs over pools of actors and training on many processes.

This is the only folder of the package that imports ray. `connect` yields the executor that the
verbs take. The modules in the order in which a run uses them:

* `session` connects to Ray and compares what a run needs with what the cluster has;
* `ray_executor` is the executor;
* `opening` opens the models and files of a verb before its first row;
* `metadata_scan` reads and deduplicates tables with many tasks;
* `graphs` runs a streaming graph, and `watch` reports the stages of a graph that wait;
* `actors` has the classes that run in the processes of a graph, and `isolated` finds rows that kill
  their process;
* `experts` and `training` train on many processes;
* `submit` sends a run to a remote cluster.
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
