"""The frame in which every verb runs: lock, checks, skip when finished, record of the result.

The frame is the same for every executor. It locks the run folder, refuses a folder that another
config wrote, skips a verb that is finished, and records the result and the seconds per stage.
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
from namedmask.run.stores import EmbeddingStore
from namedmask.run.verb_table import CHECKED_IMAGES, WORK, verbs_before
from namedmask.schema.status import FINDINGS
from namedmask.storage import Place, place_of
from namedmask.storage.files import digest, read_json, write_file, write_json


@dataclass
class VerbRun:
    """A verb at work in a run folder: its config, its ledger, its progress, and its timings."""

    config: Config
    ledger: Ledger
    progress: Progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    archives: Place | None = None  # the run folder whose archive is trained on; None: this one
    recorded: dict[str, Any] | None = None  # the result of a finished verb; None: there is work
    result: dict[str, Any] = field(default_factory=dict)  # of the verb, as plain values

    @property
    def has_work(self) -> bool:
        """Whether the verb is not finished."""
        return self.recorded is None

    @property
    def archive(self) -> Place:
        """Return the folder of the archive to train on; its sibling holds the refined masks."""
        return (self.archives or self.ledger.folder) / layout.ARCHIVE

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the seconds that the block takes to those of a stage.

        The seconds of fetch overlap those of the other stages.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings that shape the output of a verb or of other work, flat."""
        work = WORK[name]
        more = work.published_settings if self.config.vectors.source else ()
        return settings_of(self.config, (*work.settings, *more))

    def categories_digest(self, name: str) -> str:
        """Return a digest of the categories, the vectors and the settings of the image checks.

        The digest is "" for work that depends on none of them.
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
        """Return the recorded result of a verb, None if it is not finished.

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
    """Return the sha256 of a file, hex; "" if unreadable, which its actual reader reports."""
    try:
        return hashlib.sha256(place_of(path).read_bytes()).hexdigest()
    except OSError:
        return ""


@contextmanager
def verb_run(
    name: str, config: Config, progress: Progress, *, again: bool = False
) -> Iterator[VerbRun]:
    """Yield the run of a verb; the block does the work and sets `result`, which is recorded after.

        with verb_run("build", config, progress) as run:
            if run.has_work:
                run.result = ...
        return run.result

    A finished verb has no work, and its result is the recorded one with `skipped` set; with `again`
    the block may find work all the same. An exception in the block records nothing but timings.

    Raises:
        ConfigError: the run folder was made by another config, or cannot be written.
        InputError: a verb that this one builds on is not finished.
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
    """Counts tried and failed rows, and ends the run when the share of failures is too high."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._tried = self._failed = 0

    def add(self, tried: int, counts: Mapping[str, int]) -> None:
        """Count the rows of a wave.

        A row whose image was fetched and then rejected by its pixels (schema.status.FINDINGS) is
        no failure.

        Args:
            tried: number of rows that were to be fetched.
            counts: number of rows per final status, over all rows of the wave.

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
    for stage, seconds in run.seconds.items():
        total[stage] = round(total.get(stage, 0.0) + seconds, 3)
    write_json(path, total)


def config_of_run(run: Place, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run file, or of a run folder, even one that was moved.

    Raises:
        InputError: `run` is neither, or one of its keys or values is wrong.
    """
    if not run.is_dir():
        return Config.load(run, overrides)
    if not (run / layout.SAVED_CONFIG).is_file():
        raise InputError(
            f"{run} is no run folder: its {layout.SAVED_CONFIG} is missing. Give a run file, or a "
            "folder that was the run.out of a run."
        )
    return Config.load(run / layout.SAVED_CONFIG, [f"run.out={json.dumps(str(run))}", *overrides])
