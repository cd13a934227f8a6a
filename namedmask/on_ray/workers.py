"""What processes elsewhere need: paths that hold there too, and a Ray with room for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray

from namedmask.config import Config
from namedmask.errors import ClusterTooSmallError
from namedmask.on_ray.cluster import may_grow_to


def with_absolute_paths(config: Config) -> Config:
    """Return the config with the backbone's file told from the root: workers start elsewhere."""
    weights = config.segmenter.backbone_weights
    if weights in ("", "miniworld"):
        return config
    segmenter = config.segmenter.model_copy(
        update={"backbone_weights": str(Path(weights).absolute())}
    )
    return config.model_copy(update={"segmenter": segmenter})


def refuse_to_stall(what: str, wanted: Mapping[str, float], way_out: str) -> None:
    """Raise ClusterTooSmallError when Ray has, and may grow to, less than is `wanted` at once.

    It would wait for ever, and say nothing.
    """
    has, may = ray.cluster_resources(), may_grow_to()
    for kind, number in wanted.items():
        most = max(has.get(kind, 0.0), may.get(kind, 0.0))
        if number > most:
            raise ClusterTooSmallError(
                f"{what} needs {number:g} {kind} at once; the cluster has {has.get(kind, 0):g} and "
                f"may grow to {most:g}. {way_out}, or add nodes. A Ray started by the run itself "
                "takes ray.num_cpus."
            )
