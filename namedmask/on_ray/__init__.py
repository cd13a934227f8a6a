"""The same road on a Ray cluster: graphs over pools of actors, training on many processes.

The only part of the package that imports ray. `connect` gives the executor that the verbs take:

    with connect(config) as executor:
        verbs.curate(config, progress, executor)

What is where, in the order of a run: `cluster` (connect, what the run needs against what there is),
`scan` (metadata read and deduplicated by many), `graphs` (a streaming graph, and what waits in it),
`actors` and `careful` (what its processes do, and how one bad row is found), `executor`, `experts`,
`training`, `submit`.
"""

from namedmask.on_ray.executor import connect as connect
