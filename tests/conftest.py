"""Fixtures for all tests: real photos, one thread, fixed seeds; the skips counted at the end."""

from __future__ import annotations

import os

# Before torch is imported: tests run beside one another on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from tests import toys

# The same examples each time: a test that fails now and then is a defect.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

REAL_DATA_VARIABLE = "NAMEDMASK_REAL_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real photos and weights; skip where the user has none.

    A variable that points nowhere is a mistake, not a reason to skip.
    """
    folder = os.environ.get(REAL_DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{REAL_DATA_VARIABLE} is not set: tests on real photos need its folder")
    if not Path(folder).is_dir():
        pytest.fail(f"{REAL_DATA_VARIABLE} is {folder}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="module")
def web() -> Iterator[toys.SmallWeb]:
    """A small web with every kind of trouble; tests may add to it."""
    with toys.filled_web() as web:
        yield web


@pytest.fixture(scope="module")
def source(web: toys.SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a metadata table of the module's web."""
    return str(web.write_metadata(tmp_path_factory.mktemp("web") / "metadata.parquet"))


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third-party code draws from it)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(_reason(report) for report in skipped)
    terminalreporter.section(f"{len(skipped)} skipped, and why")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:4d}  {reason}")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
