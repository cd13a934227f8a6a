"""What processes elsewhere need: paths that hold there too, and a Ray with room for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ray

from namedmask.config import Config
from namedmask.errors import ConfigError


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
    """Raise ConfigError when this Ray has less than is `wanted`: it would wait without a word.

    A cluster of several machines, or one whose head lends no CPU, may grow and is let through.
    """
    found = ray.cluster_resources()
    if len(ray.nodes()) > 1 or not found.get("CPU"):
        return
    for kind, count in wanted.items():
        if found.get(kind, 0) < count:
            raise ConfigError(
                f"{what} needs {count:g} {kind}s of Ray at once, and this one has "
                f"{found.get(kind, 0):g}. {way_out} Or start Ray with more: it may be told of more "
                "CPUs than the machine has."
            )
