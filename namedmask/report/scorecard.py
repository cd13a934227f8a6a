"""Compare the demo's scores with the bars that they must clear and with the paper's numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAPER_NUMBERS = {
    "images_kept": 425_618,
    "mean_per_category": 463,
    "mean_height": 326.0,
    "mean_width": 360.5,
}
"""Archive statistics that the paper reports: LAION-5B, 919 categories, 500 images per category."""

RELATIONS = {"≥": operator.ge, "≤": operator.le, ">": operator.gt, "<": operator.lt}
"""Comparison of a score (left) with the limit of its bar (right), by symbol."""


@dataclass(frozen=True)
class Bar:
    """The condition that the score `key` must meet: `relation` to a limit.

    The limit is `limit`, or `limit_full` in the full demo. If `times` names another score, the
    limit is multiplied by that score.
    """

    key: str
    relation: str
    limit: float
    times: str = ""
    limit_full: float | None = None

    def bound(self, summary: Mapping[str, Any], full: bool) -> float:
        """Return the number that the score is compared with."""
        limit = self.limit_full if full and self.limit_full is not None else self.limit
        return limit * summary[self.times] if self.times else limit


BARS = (
    Bar("archive_fill", "≥", 1.0),
    Bar("retrieval_precision", "≥", 0.95),
    Bar("near_dup_recall", "≥", 0.95),
    Bar("near_dup_false_drop", "≤", 0.05),
    Bar("face_recall", "≥", 0.98),
    Bar("face_false_drop", "≤", 0.03),
    Bar("faces_total", "≥", 200),
    Bar("nonfaces_total", "≥", 500),
    Bar("otsu_mask_iou", "<", 0.5),
    Bar("center_mask_iou", "<", 0.5),
    Bar("pseudo_mask_iou", "≥", 0.65),
    Bar("expert_mask_iou", ">", 1.0, times="pseudo_mask_iou"),
    Bar("miou", "≥", 0.35, limit_full=0.5),
    Bar("miou", "≥", 2.0, times="miou_nearest_color"),
)
"""The bars of the demo; a score may have several bars."""


@dataclass(frozen=True)
class Line:
    """One score of the demo with its bars as text; `met` is None for a score without bars."""

    key: str
    value: float
    bars: str
    met: bool | None
    paper: float | None


def scorecard(summary: Mapping[str, Any], full: bool = False) -> list[Line]:
    """Return one line per number in a demo summary, in the order of the summary.

    `full` applies the higher bars of the full demo. Booleans, texts and nested values are skipped.
    """
    return [
        _line(key, value, summary, full)
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _line(key: str, value: float, summary: Mapping[str, Any], full: bool) -> Line:
    texts, met = [], True
    for bar in BARS:
        if bar.key != key or (bar.times and bar.times not in summary):
            continue
        bound = bar.bound(summary, full)
        factor = f"{bar.limit:g} × " if bar.limit != 1 else ""
        texts.append(
            f"{bar.relation} {factor}{bar.times}" if bar.times else f"{bar.relation} {bound:g}"
        )
        met = met and RELATIONS[bar.relation](value, bound)
    return Line(key, value, ", ".join(texts), met if texts else None, PAPER_NUMBERS.get(key))
