"""What processes that begin in another folder need: paths that hold there too."""

from __future__ import annotations

from pathlib import Path

from namedmask.config import Config
from namedmask.storage import is_s3
from namedmask.weights import known_weights


def with_absolute_paths(config: Config) -> Config:
    """Return the config with files of weights told from the root: workers start elsewhere.

    A name of `namedmask weights` stays one: each machine has its own cache.
    """
    weights = config.segmenter.backbone_weights
    if weights not in ("", "miniworld", *known_weights()):
        update = {"backbone_weights": str(Path(weights).absolute())}
        config = config.model_copy(update={"segmenter": config.segmenter.model_copy(update=update)})
    if config.train.start and not is_s3(config.train.start):
        update = {"start": str(Path(config.train.start).absolute())}
        config = config.model_copy(update={"train": config.train.model_copy(update=update)})
    return config
