"""What processes that begin in another folder need: paths that hold there too."""

from __future__ import annotations

from pathlib import Path

from namedmask.config import Config


def with_absolute_paths(config: Config) -> Config:
    """Return the config with the backbone's file told from the root: workers start elsewhere."""
    weights = config.segmenter.backbone_weights
    if weights in ("", "miniworld"):
        return config
    segmenter = config.segmenter.model_copy(
        update={"backbone_weights": str(Path(weights).absolute())}
    )
    return config.model_copy(update={"segmenter": segmenter})
