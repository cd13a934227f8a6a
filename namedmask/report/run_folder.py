"""What a run folder holds, each part read once and None where it is not there yet."""

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
    """A run folder as the report reads it."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    @cached_property
    def verbs(self) -> dict[str, Any]:
        """What `run.json` tells of each verb."""
        verbs: dict[str, Any] = (self._json(layout.RUN_RECORD) or {}).get("verbs", {})
        return verbs

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """The demo's numbers."""
        return self._json(layout.DEMO_SUMMARY)

    @cached_property
    def funnels(self) -> dict[str, Any] | None:
        """Counts by status of rows and candidates."""
        return self._json(layout.FUNNELS)

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """What `evaluate` returned."""
        return self._json(layout.EVALUATION)

    @cached_property
    def timings(self) -> dict[str, float] | None:
        """Seconds by stage."""
        return self._json(layout.TIMINGS)

    @cached_property
    def archive(self) -> Archive | None:
        """The archive, once it is whole."""
        folder = self.folder / layout.ARCHIVE
        return Archive.open(folder) if (folder / MANIFEST).exists() else None

    @cached_property
    def sizes(self) -> pa.Table | None:
        """image_height and image_width of every archive entry."""
        if self.archive is None:
            return None
        columns = ["image_height", "image_width"]
        files = (self.archive.folder / one.file for one in self.archive.categories)
        return pa.concat_tables([read_parquet(file, columns) for file in files])

    @cached_property
    def config_text(self) -> str | None:
        """The resolved run file."""
        path = self.folder / layout.SAVED_CONFIG
        return path.read_text(encoding="utf-8") if path.exists() else None

    @cached_property
    def config(self) -> Config | None:
        """The resolved config."""
        return None if self.config_text is None else Config.load(self.folder / layout.SAVED_CONFIG)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return read_json(path) if path.exists() else None
