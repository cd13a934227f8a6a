"""The frame in which every verb runs: lock, checks, skip when finished, record of the result.

The frame is the same for every executor. It locks the run folder, refuses a folder that was made
with other settings, skips a verb that is finished, and records the result and the seconds per
stage.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from namedmask import schema
from namedmask.categories import category_set_of
from namedmask.config.run_file import Config, settings_of, to_toml
from namedmask.errors import InputError, TooManyFailuresError
from namedmask.run import layout
from namedmask.run.layout import EMBEDDINGS
from namedmask.run.ledger import Ledger, open_run
from namedmask.run.machine import peak_rss_mb
from namedmask.run.progress import Progress
from namedmask.run.stages import Stage, open_stage
from namedmask.run.stores import EmbeddingStore
from namedmask.run.verb_table import CHECKED_IMAGES, WORK, verbs_before
from namedmask.schema.status import FINDINGS
from namedmask.storage import Place, place_of
from namedmask.storage.files import content_of, digest, read_json, write_file, write_json


@dataclass
class VerbRun:
    """A verb that works in a run folder, with its config, ledger, progress, timings and result."""

    config: Config
    ledger: Ledger
    progress: Progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    archives: Place | None = None  # run folder with the archive to train on; None: this run folder
    recorded: dict[str, Any] | None = None  # recorded result; None if the verb is not finished
    result: dict[str, Any] = field(default_factory=dict)  # the verb's result, as plain values
    stages: dict[str, Stage] = field(default_factory=dict)  # by name; opened in this process

    @property
    def has_work(self) -> bool:
        """Whether the verb is not finished."""
        return self.recorded is None

    @property
    def archive(self) -> Place:
        """Return the folder of the archive to train on; the folder beside it has refined masks."""
        return (self.archives or self.ledger.folder) / layout.ARCHIVE

    def stage(self, name: str) -> Stage:
        """Return a stage of this process; open it if it is not open yet.

        Raises:
            NamedMaskError: the stage cannot be opened.
        """
        if name not in self.stages:
            self.stages[name] = open_stage(name, self.config)
        return self.stages[name]

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to the seconds of a stage.

        The seconds of fetch overlap with those of the other stages, so their sum may exceed the
        duration of the verb.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings that shape the output of a verb or other work, by `section.key`."""
        work = WORK[name]
        more = work.published_settings if self.config.vectors.source else ()
        return settings_of(self.config, (*work.settings, *more))

    def categories_digest(self, name: str) -> str:
        """Return a digest of the categories, the vectors and the settings of the image checks.

        The digest is "" for work that does not depend on the categories.
        """
        if not WORK[name].follows_categories:
            return ""
        category_set = category_set_of(self.config.categories)
        rules_by_name = self.config.tree()["categories"]["each"]
        examples = {path for rules in rules_by_name.values() for path in rules["examples"]}
        content = [
            category_set.names, category_set.queries, rules_by_name,
            self.settings(CHECKED_IMAGES.name), [_sha256_of(path) for path in sorted(examples)],
        ]  # fmt: skip
        if vectors := self.ledger.output_digest("embed"):  # changes when failed rows are retried
            content.append(vectors)
        return digest([json.dumps(content, sort_keys=True)])

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return the recorded result of a verb; None if the verb is not finished.

        Raises:
            ConfigError: as `Ledger.finished`.
        """
        return self.ledger.finished(WORK[name], self.settings(name), self.categories_digest(name))

    def is_begun(self, name: str) -> bool:
        """Return whether binding settings of a verb are recorded for the current categories."""
        return self.ledger.is_begun(WORK[name], self.categories_digest(name))

    def start(self, name: str) -> None:
        """Record a verb's settings in the run folder, before the verb's first write."""
        self.ledger.start(WORK[name], self.settings(name), self.categories_digest(name))


def _sha256_of(path: str) -> str:
    """Return the sha256 of a file, hex; "" if it is unreadable, because its reader raises later."""
    try:
        return hashlib.sha256(place_of(path).read_bytes()).hexdigest()
    except OSError:
        return ""


@contextmanager
def verb_run(
    name: str, config: Config, progress: Progress, *, again: bool = False
) -> Iterator[VerbRun]:
    """Yield the run of a verb. The block does the work and sets `result`, which is then recorded.

        with verb_run("build", config, progress) as run:
            if run.has_work:
                run.result = ...
        return run.result

    A finished verb has no work: its `result` is the recorded result with `skipped` set, and the
    block leaves it unchanged. With `again`, the block of a finished verb may do work too, and its
    result is recorded. If the block raises an exception, only the timings are recorded.

    Raises:
        ConfigError: the run folder was made with other settings, or cannot be written.
        InputError: a verb that this verb builds on is not finished, or another process writes to
            the run folder.
    """
    with open_run(config.run.out) as ledger:
        run = VerbRun(config, ledger, progress)
        for needed in verbs_before(name, config):
            require_finished(run, needed, name)
        run.recorded = run.finished(name)
        if not run.has_work and not again:
            run.result = {"skipped": True, **(run.recorded or {})}
            yield run
            return
        write_file(ledger.folder / layout.SAVED_CONFIG, to_toml(config).encode())
        try:
            yield run
        finally:
            _add_timings(run)
        run.start(name)
        store_name = WORK[name].counted_store
        output_digest = EmbeddingStore(ledger).digest() if store_name == EMBEDDINGS else ""
        ledger.finish(name, run.result, store_name, output_digest)
    run.result = run.result | {"seconds": dict(run.seconds), "peak_rss_mb": peak_rss_mb()}


def require_finished(run: VerbRun, needed: str, verb: str) -> None:
    """Raise InputError unless the verb `needed`, on which `verb` builds, is finished."""
    if run.finished(needed) is None:
        raise InputError(
            f"run folder {run.ledger.folder} has no finished '{needed}', which '{verb}' builds "
            f"on. Run 'namedmask {needed}' with this run file first."
        )


class Failures:
    """Counts tried and failed rows, and raises an error when the share of failures is too high."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._tried = self._failed = 0

    def add(self, tried: int, counts: Mapping[str, int]) -> None:
        """Count the rows of a wave.

        A row whose image was downloaded and then rejected (schema.status.FINDINGS) did not fail.

        Args:
            tried: number of rows with status `ok` before the fetch.
            counts: number of rows by final status, over all rows of the wave.

        Raises:
            TooManyFailuresError: the share of failures is above `run.max_failure_share`.
        """
        self._tried += tried
        self._failed += tried - sum(counts.get(status, 0) for status in (schema.OK, *FINDINGS))
        if self._failed > self._max_share * self._tried:
            listed = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            raise TooManyFailuresError(
                f"{self._failed:,} of {self._tried:,} rows failed, more than "
                f"run.max_failure_share = {self._max_share:g} allows; the last wave ended as "
                f"{listed}. Committed waves are kept. Fix the cause or raise the share, and run "
                "the same command again."
            )


def _add_timings(run: VerbRun) -> None:
    path = run.ledger.folder / layout.TIMINGS
    total = read_json(path) if path.exists() else {}
    with content_of(path):
        for stage, seconds in run.seconds.items():
            total[stage] = round(total.get(stage, 0.0) + seconds, 3)
    write_json(path, total)


def config_of_run(run: Place, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run file or of a run folder, with dotted overrides applied.

    A run folder may have been moved: `run.out` becomes its present path.

    Raises:
        InputError: `run` is neither a run file nor a run folder.
        ConfigError: a key or value of the config is wrong.
    """
    if not run.is_dir():
        return Config.load(run, overrides)
    if not (run / layout.SAVED_CONFIG).is_file():
        raise InputError(
            f"{run} is no run folder: its {layout.SAVED_CONFIG} is missing. Give a run file, or a "
            "folder that was the run.out of a run."
        )
    return Config.load(run / layout.SAVED_CONFIG, [f"run.out={json.dumps(str(run))}", *overrides])
