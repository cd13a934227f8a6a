"""The report's section on the baselines: their scores, and the curves of their thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from namedmask.evaluate.thresholds import measured, standings
from namedmask.report.page import Html, element, figure, joined, note, number, section, table
from namedmask.report.run_folder import Run

METHOD_NAMES = {"namedmask": "NamedMask", "maskclip": "MaskCLIP", "reco": "ReCo"}
"""Display name of each method."""

WIDTH, HEIGHT = 420, 260
"""Size of a chart, in pixels."""

LEFT, RIGHT, TOP, BOTTOM = 48, 12, 30, 40
"""Margins of a chart around its plot area, in pixels."""


def baselines(run: Run) -> Html:
    """Return tables that compare the segmenter, MaskCLIP and ReCo, and the threshold curves."""
    results = measured(run.folder)
    if not results:
        command = element("code", "namedmask evaluate --baseline maskclip")
        return section("Baselines", note("No baseline has been evaluated yet. Run ", command, "."))
    splits = dict.fromkeys((result["benchmark"], result["split"]) for result in results)
    tables = [_standings(run, *split) for split in splits]
    sweeps = [result for result in results if "curve" in result]
    figures = (
        figure(f"{called(sweep)}, {sweep['benchmark']} {sweep['split']}", sweep_chart(sweep))
        for sweep in sweeps
    )
    return section("Baselines", *tables, element("div", *figures, class_="gallery"))


def _standings(run: Run, benchmark: str, split: str) -> Html:
    rows = [
        (called(row), threshold_of(row), number(row["miou"], 3), number(row["pixel_accuracy"], 3))
        for row in standings(run.folder, benchmark, split)
    ]
    head = ("method", "background below", "mean IoU", "pixel accuracy")
    title = element("h3", f"{benchmark}, {split}")
    return joined((title, table(head, rows, numbers=(2, 3))))


def called(row: Mapping[str, Any]) -> str:
    """Return the display name of a method."""
    result: str = METHOD_NAMES.get(row["baseline"], row["baseline"])
    return result


def threshold_of(row: Mapping[str, Any]) -> str:
    """Return a method's background threshold as text, with the split it was chosen on."""
    if row["threshold"] is None:
        return "not needed"
    if row.get("chosen_here"):
        return f"{row['threshold']:.2f}, chosen on this very split"
    if row["chosen_on"] is None:
        return f"{row['threshold']:.2f}, as given"
    return f"{row['threshold']:.2f}, of {row['chosen_on']['benchmark']} {row['chosen_on']['split']}"


def sweep_chart(sweep: Mapping[str, Any]) -> Html:
    """Return a threshold sweep as an SVG: mean IoU over the threshold, with the best point marked.

    The SVG is a whole document, so that it can be written to a file as well.
    """
    points = [p for p in sweep["curve"] if p["miou"] is not None]
    top = max(0.05, 1.15 * max(point["miou"] for point in points))
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(point: Mapping[str, float]) -> tuple[float, float]:
        return LEFT + across * point["threshold"], HEIGHT - BOTTOM - up * point["miou"] / top

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    dots = [_dot(*place(point), 2.5) for point in points]
    best = place({"threshold": sweep["threshold"], "miou": sweep["miou"]})
    label = f"{sweep['miou']:.3f} at {sweep['threshold']:.2f}"
    side = "end" if sweep["threshold"] > 0.5 else "start"
    parts = [
        element("polyline", points=line, fill="none", stroke="#3b82f6", stroke_width="2"),
        *dots,
        _dot(*best, 5),
        _text(label, best[0], best[1] - 10, side),
        _text(f"{called(sweep)}, {sweep['benchmark']} {sweep['split']}", LEFT, 16, "start"),
        _text("background below", LEFT + across / 2, HEIGHT - 6, "middle"),
        *_axes(across, up, top),
    ]
    return element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img", width=f"{WIDTH}", height=f"{HEIGHT}", aria_label=f"mean IoU: {label}",
        style="max-width:100%",
    )  # fmt: skip


def _axes(across: float, up: float, top: float) -> list[Html]:
    parts = []
    for step in range(5):
        x, y = LEFT + across * step / 4, HEIGHT - BOTTOM - up * step / 4
        parts += [
            element("line", x1=f"{LEFT}", x2=f"{LEFT + across}", y1=f"{y:.1f}", y2=f"{y:.1f}",
                    stroke="#888", stroke_width="0.4"),
            _text(f"{step / 4:g}", x, HEIGHT - BOTTOM + 16, "middle"),
            _text(f"{top * step / 4:.2f}", LEFT - 6, y + 4, "end"),
        ]  # fmt: skip
    return parts


def _dot(x: float, y: float, radius: float) -> Html:
    return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{radius:g}", fill="#3b82f6")


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    return element(
        "text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, fill="#888",
        font_size="12", font_family="sans-serif",
    )  # fmt: skip
