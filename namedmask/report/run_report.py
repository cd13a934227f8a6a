"""A run folder → `report.html`: one page that needs nothing beside itself, at any stage of the run.

Whatever is there is shown, whatever is missing is named with the command that makes it. Pictures
come from the archive and the benchmark alone, so what a check rejected cannot appear.
Cost: 0.6 s on one core for 9 images of the gallery and 9 scenes, 0.4 MB; both grow with these.
"""

from __future__ import annotations

from namedmask.errors import InputError
from namedmask.report.curves import baselines
from namedmask.report.figures import gallery, scenes
from namedmask.report.numbers import (
    categories,
    configuration,
    funnels,
    header,
    headline,
    iou_by_label,
    timings,
)
from namedmask.report.page import page
from namedmask.report.run_folder import Run
from namedmask.run import layout
from namedmask.storage import Place
from namedmask.storage.files import write_file


def write_report(run: Place) -> Place:
    """Write `report.html` into a run folder and return its path.

    Raises:
        InputError: `run` is no run folder, or a file of it is damaged.
    """
    if not (run / layout.RUN_RECORD).exists() and not (run / layout.DEMO_SUMMARY).exists():
        raise InputError(
            f"{run} holds no run: run.json is missing. Give the folder that run.out named."
        )
    found = Run(run)
    sections = (
        header, headline, funnels, categories, gallery, iou_by_label, baselines, scenes,
        timings, configuration,
    )  # fmt: skip
    text = page(f"NamedMask: {found.name}", *(make(found) for make in sections))
    write_file(run / layout.REPORT, text.encode())
    return run / layout.REPORT
