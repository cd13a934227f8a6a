"""The demo as a user runs it: one command, in time, over its bars, and for free the second time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from namedmask.report.scorecard import scorecard

SEED = 11
"""One of the seeds in docs/results.md; the world got more horizons because it missed a bar here."""

CLOSE = {"expert_mask_iou": 0.97}
"""What one seed alone must reach of a bar that is asked of the mean over three."""


@pytest.mark.slow
@pytest.mark.timeout(2100)
def test_demo_clears_its_bars_and_is_done_the_second_time(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "namedmask", "demo", "--json"]
    command += ["--seed", str(SEED), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=1800)
    summary = json.loads((out / "summary.json").read_text())
    for funnel in ("rows", "candidates"):
        assert sum(summary[f"{funnel}_by_status"].values()) == summary[f"{funnel}_in"]
    assert summary["candidates_by_status"]["violent"] > 0
    missed = [line for line in scorecard(summary) if line.met is False]
    for line in missed:
        assert line.key in CLOSE, f"{line.key} is {line.value}; expected {line.bars}"
        assert line.value >= CLOSE[line.key] * summary["pseudo_mask_iou"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "425,618" in page
    begun = time.monotonic()
    again = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True)
    assert time.monotonic() - begun < 60
    assert json.loads(again.stdout)["skipped"]
