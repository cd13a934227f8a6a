"""The parts of a run folder that the report shows.

Each part is read at most once, and is None if the run has not written it yet.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import pyarrow as pa

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.run import layout
from namedmask.run.layout import MANIFEST
from namedmask.storage import Place
from namedmask.storage.files import read_json, read_parquet


class Run:
    """A run folder whose parts are read on first use."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    @cached_property
    def verbs(self) -> dict[str, Any]:
        """The record of each verb in `run.json`, by name; empty if there is none."""
        verbs: dict[str, Any] = (self._json(layout.RUN_RECORD) or {}).get("verbs", {})
        return verbs

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The scores of a demo run, as in `summary.json`."""
        return self._json(layout.DEMO_SUMMARY)

    @cached_property
    def funnels(self) -> dict[str, Any] | None:
        """The counts of rows and of candidates by status."""
        return self._json(layout.FUNNELS)

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """The segmenter's scores, as returned by the verb `evaluate`."""
        return self._json(layout.EVALUATION)

    @cached_property
    def timings(self) -> dict[str, float] | None:
        """The seconds that each stage has taken."""
        return self._json(layout.TIMINGS)

    @cached_property
    def archive(self) -> Archive | None:
        """The archive, if it is complete (its manifest is written last)."""
        folder = self.folder / layout.ARCHIVE
        return Archive.open(folder) if (folder / MANIFEST).exists() else None

    @cached_property
    def sizes(self) -> pa.Table | None:
        """The columns image_height and image_width, in pixels, over all archive entries."""
        if self.archive is None:
            return None
        columns = ["image_height", "image_width"]
        files = (self.archive.folder / category.file for category in self.archive.categories)
        return pa.concat_tables([read_parquet(file, columns) for file in files])

    @cached_property
    def config_text(self) -> str | None:
        """The text of the resolved run file."""
        path = self.folder / layout.SAVED_CONFIG
        return path.read_text(encoding="utf-8") if path.exists() else None

    @cached_property
    def config(self) -> Config | None:
        """The resolved config."""
        return None if self.config_text is None else Config.load(self.folder / layout.SAVED_CONFIG)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return read_json(path) if path.exists() else None
