"""A verb under way in a run folder: what it depends on, what it skips, when it gives up.

Whoever does the work, the frame is the same: take the folder's lock, refuse what another config
made, skip what is finished, and write down what it came to and how long each stage took.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """One verb under way: what it was asked, where it writes, what it has spent."""

    config: Config
    ledger: Ledger
    progress: Progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    archives: Place | None = None  # the run folder whose archive is trained on; None: its own

    @property
    def archive(self) -> Place:
        """The folder of the archive to train on, with that of the refined masks beside it."""
        return (self.archives or self.ledger.folder) / layout.ARCHIVE

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to those of a stage; fetching overlaps the others."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings that shape the output of a verb, or of other work."""
        work = WORK[name]
        more = work.published_settings if self.config.vectors.source else ()
        return settings_of(self.config, (*work.settings, *more))

    def categories_digest(self, name: str) -> str:
        """Return a digest of categories, vectors and how images are checked; "" if none matters."""
        if not WORK[name].follows_categories:
            return ""
        category_set = category_set_of(self.config.categories)
        each = self.config.tree()["categories"]["each"]
        shown = {path for rules in each.values() for path in rules["examples"]}
        content = [
            category_set.names, category_set.queries, each, self.settings(CHECKED_IMAGES.name),
            [_sha256_of(path) for path in sorted(shown)],
        ]  # fmt: skip
        if vectors := self.ledger.output_digest("embed"):  # others once rows were tried again
            content.append(vectors)
        return digest([json.dumps(content, sort_keys=True)])

    def finished(self, name: str) -> dict[str, Any] | None:
        """Return what a verb ended with here, None when it has work; raises as Ledger.finished."""
        return self.ledger.finished(WORK[name], self.settings(name), self.categories_digest(name))

    def is_begun(self, name: str) -> bool:
        """Return whether the run folder is bound to a verb for the categories of today."""
        return self.ledger.is_begun(WORK[name], self.categories_digest(name))

    def start(self, name: str) -> None:
        """Bind the run folder to a verb's settings, before its first write."""
        self.ledger.start(WORK[name], self.settings(name), self.categories_digest(name))


def _sha256_of(path: str) -> str:
    """Return the sha256, hex, of a file; empty where it cannot be read: its reader will say so."""
    try:
        return hashlib.sha256(place_of(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def run_verb(
    verb: str,
    config: Config,
    progress: Progress,
    work: Callable[[VerbRun], dict[str, Any]],
    store: str = "",
    again: bool = False,
) -> dict[str, Any]:
    """Return what `work` ends with, or what it ended with when it was finished before.

    With `store`, the verb is finished only as long as that store has all its commit records.
    With `again`, one that is finished is worked on too.

    Raises:
        ConfigError: the run folder was made by another config, or cannot be written.
        InputError: a verb that this one builds on is not finished.
    """
    with open_run(config.run.out) as ledger:
        run = VerbRun(config, ledger, progress)
        for needed in verbs_before(verb, config):
            require_finished(run, needed, verb)
        done = run.finished(verb)
        if done is not None and not again:
            return {"skipped": True, **done}
        write_file(ledger.folder / layout.SAVED_CONFIG, to_toml(config).encode())
        try:
            result = work(run)
        finally:
            _add_timings(run)
        run.start(verb)
        made = EmbeddingStore(ledger).digest() if store == EMBEDDINGS else ""
        ledger.finish(verb, result, store, made)
    return result | {"seconds": dict(run.seconds), "peak_rss_mb": peak_rss_mb()}


def require_finished(run: VerbRun, needed: str, verb: str) -> None:
    """Raise InputError when `needed`, which `verb` builds on, is not finished."""
    if run.finished(needed) is None:
        raise InputError(
            f"run folder {run.ledger.folder} has no finished '{needed}', which '{verb}' builds "
            f"on. Run 'namedmask {needed}' with this run file first."
        )


class Failures:
    """Counts what was tried and what came to nothing, and ends the run when that is too much."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._tried = self._failed = 0

    def add(self, tried: int, counts: Mapping[str, int]) -> None:
        """Count a wave: `tried` rows were to be fetched, `counts` is what all its rows ended as.

        What a look at the pixels found (schema.status.FINDINGS) is no failure.

        Raises:
            TooManyFailuresError: the share of failures is above `run.max_failure_share`.
        """
        self._tried += tried
        self._failed += tried - sum(counts.get(one, 0) for one in (schema.OK, *FINDINGS))
        if self._failed > self._max_share * self._tried:
            listed = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            raise TooManyFailuresError(
                f"{self._failed:,} of {self._tried:,} rows failed, more than "
                f"run.max_failure_share = {self._max_share:g} allows; the last wave ended as "
                f"{listed}. What is committed is kept. Mend the cause or raise the share, and "
                "run the same command again."
            )


def _add_timings(run: VerbRun) -> None:
    path = run.ledger.folder / layout.TIMINGS
    total = read_json(path) if path.exists() else {}
    for stage, seconds in run.seconds.items():
        total[stage] = round(total.get(stage, 0.0) + seconds, 3)
    write_json(path, total)


def config_of_run(run: Place, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run file, or of a run folder wherever it lies now.

    Raises:
        InputError: it is neither, or a key or value in it is wrong.
    """
    if not run.is_dir():
        return Config.load(run, overrides)
    if not (run / layout.SAVED_CONFIG).is_file():
        raise InputError(
            f"{run} holds no run: run.toml is missing. Give a run file, or the folder that run.out "
            "named."
        )
    return Config.load(run / layout.SAVED_CONFIG, [f"run.out={json.dumps(str(run))}", *overrides])
