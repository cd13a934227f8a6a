"""The demo's numbers beside the bars they must clear and the numbers of the seed paper."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEED_NUMBERS = {
    "images_kept": 425_618,
    "mean_per_category": 463,
    "mean_height": 326.0,
    "mean_width": 360.5,
}
"""What the paper reports for LAION-5B with 919 categories of 500 images each."""

RELATIONS = {"≥": operator.ge, "≤": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Bar:
    """`key` must stand in `relation` to `limit`, or to `limit` times the value of another key."""

    key: str
    relation: str
    limit: float
    times: str = ""
    limit_full: float | None = None

    def bound(self, summary: Mapping[str, Any], full: bool) -> float:
        """Return the number to compare with."""
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


@dataclass(frozen=True)
class Line:
    """One number of the demo: its bars as text, whether all are met (None: no bar), the seed's."""

    key: str
    value: float
    bars: str
    met: bool | None
    seed: float | None


def scorecard(summary: Mapping[str, Any], full: bool = False) -> list[Line]:
    """Return a line for each plain number of a demo summary, in its order."""
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
    return Line(key, value, ", ".join(texts), met if texts else None, SEED_NUMBERS.get(key))
