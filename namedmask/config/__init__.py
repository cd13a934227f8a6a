"""Run files with their sections and presets, and the resolution of names in them."""

from namedmask.config.collect_sections import FetchConfig, MetadataConfig, VectorsConfig
from namedmask.config.run_file import SPEED_ONLY, Config, settings_of
from namedmask.config.sections import (
    CategoriesConfig,
    CategoryConfig,
    EmbedConfig,
    RayConfig,
    RetrieveConfig,
    RunConfig,
    SearchConfig,
)
from namedmask.config.training_sections import (
    AugmentConfig,
    BaselinesConfig,
    BilateralConfig,
    EvaluateConfig,
    ExpertsConfig,
    FacesConfig,
    OptimConfig,
    SaliencyConfig,
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
