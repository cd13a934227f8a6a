"""Scores of a model that is at hand, by the loop that the verb evaluate takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from namedmask.config import EvaluateConfig
from namedmask.evaluate.label_maps import Benchmark
from namedmask.evaluate.scorer import Scorer, predictor_of, score_benchmark
from namedmask.storage import Place


def evaluate(
    model: nn.Module,
    names: Sequence[str],
    benchmark: Benchmark,
    config: EvaluateConfig,
    *,
    out: Place | None = None,
    on_scenes: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    scorer = Scorer(predictor_of(model, config), names, benchmark, config)
    return score_benchmark(
        partial(map, scorer), names, benchmark, config, out=out, on_scenes=on_scenes
    )
