"""Every knob of a run: run files, their sections, presets, and what their names point at."""

from namedmask.config.run_file import SPEED_ONLY, Config, settings_of
from namedmask.config.sections import (
    BilateralConfig,
    CategoriesConfig,
    CategoryConfig,
    EmbedConfig,
    FacesConfig,
    FetchConfig,
    MetadataConfig,
    RayConfig,
    RetrieveConfig,
    RunConfig,
    SaliencyConfig,
    SearchConfig,
    VectorsConfig,
)
from namedmask.config.training_sections import (
    AugmentConfig,
    BaselinesConfig,
    EvaluateConfig,
    ExpertsConfig,
    OptimConfig,
    SegmenterConfig,
    TrainConfig,
)
from namedmask.config.types import ModelSection, PoolSection, Section

__all__ = [
    "SPEED_ONLY",
    "AugmentConfig",
    "BaselinesConfig",
    "BilateralConfig",
    "CategoriesConfig",
    "CategoryConfig",
    "Config",
    "EmbedConfig",
    "EvaluateConfig",
    "ExpertsConfig",
    "FacesConfig",
    "FetchConfig",
    "MetadataConfig",
    "ModelSection",
    "OptimConfig",
    "PoolSection",
    "RayConfig",
    "RetrieveConfig",
    "RunConfig",
    "SaliencyConfig",
    "SearchConfig",
    "Section",
    "SegmenterConfig",
    "TrainConfig",
    "VectorsConfig",
    "settings_of",
]
