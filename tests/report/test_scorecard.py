"""The demo's numbers against their bars."""

from __future__ import annotations

from namedmask.report.scorecard import scorecard

SUMMARY = {
    "seed": 0,
    "archive_fill": 1.0,
    "near_dup_false_drop": 0.06,
    "pseudo_mask_iou": 0.7,
    "expert_mask_iou": 0.7,
    "miou": 0.45,
    "miou_nearest_color": 0.2,
    "images_kept": 480,
    "skipped": False,
    "rows_by_status": {"ok": 3},
}


def met_by_key(summary: dict, full: bool = False) -> dict[str, bool | None]:
    return {line.key: line.met for line in scorecard(summary, full)}


def test_scorecard_judges_each_bar_and_leaves_out_what_is_no_number() -> None:
    assert met_by_key(SUMMARY) == {
        "seed": None,
        "archive_fill": True,
        "near_dup_false_drop": False,
        "pseudo_mask_iou": True,
        "expert_mask_iou": False,
        "miou": True,
        "miou_nearest_color": None,
        "images_kept": None,
    }


def test_scorecard_of_the_full_demo_asks_for_more_miou() -> None:
    assert met_by_key(SUMMARY, full=True)["miou"] is False


def test_scorecard_both_bars_of_miou_must_hold() -> None:
    assert met_by_key(SUMMARY | {"miou_nearest_color": 0.23})["miou"] is False


def test_scorecard_line_tells_bars_and_the_number_of_the_seed() -> None:
    lines = {line.key: line for line in scorecard(SUMMARY)}
    assert lines["miou"].bars == "≥ 0.35, ≥ 2 × miou_nearest_color"
    assert lines["expert_mask_iou"].bars == "> pseudo_mask_iou"
    assert lines["images_kept"].paper == 425_618


def test_scorecard_value_that_is_no_number_at_all_is_missed() -> None:
    assert met_by_key(SUMMARY | {"miou": float("nan")})["miou"] is False
