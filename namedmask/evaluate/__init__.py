"""Scores of a segmenter on benchmarks, and the baselines that it is compared with."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.evaluate.benchmarks import BENCHMARKS as BENCHMARKS
    from namedmask.evaluate.scorer import Scorer as Scorer

__all__ = ["BENCHMARKS", "Scorer"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"BENCHMARKS": "benchmarks", "Scorer": "scorer"},
)
