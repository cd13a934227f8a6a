"""The verb `refine`: trains experts on the archives and redraws the masks with them."""

from __future__ import annotations

from functools import partial
from typing import Any

from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.experts.refine import find_clusters
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun, run_verb
from namedmask.run.layout import REFINED
from namedmask.run.progress import Progress


def refine(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Train the experts and redraw the masks; return how many masks were redrawn and kept."""
    if not config.experts.enabled:
        return {"skipped": True, "reason": "experts.enabled is false"}
    return run_verb("refine", config, progress, partial(_refine, executor), REFINED)


def _refine(executor: Executor, run: VerbRun) -> dict[str, Any]:
    return executor.refine(run, find_clusters(executor, run))
