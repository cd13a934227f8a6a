"""The report: one HTML page that shows a run folder."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.report.run_report import write_report as write_report

__all__ = ["write_report"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"write_report": "run_report"},
)
