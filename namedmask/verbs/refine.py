"""The verb `refine`, which trains experts on the archives and redraws the masks with them."""

from __future__ import annotations

from typing import Any

from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.experts.refine import find_clusters
from namedmask.run.executor import Executor
from namedmask.run.job import verb_run
from namedmask.run.progress import Progress
from namedmask.verbs.preflight import open_parts


def refine(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the experts and redraw the masks; return how many masks were redrawn and kept.

    Raises:
        ConfigError: `experts.clusters` exceeds the number of categories.
        ClusterTooSmallError: on Ray, an expert needs more than the cluster has.
        NamedMaskError: an expert failed.
    """
    if not config.experts.enabled:
        return {"skipped": True, "reason": "experts.enabled is false"}
    with verb_run("refine", config, progress) as run:
        if run.has_work:
            open_parts(executor, run, "refine")
            run.result = executor.refine(run, find_clusters(executor, run))
    return run.result
