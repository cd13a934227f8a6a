"""A verb under way in a run folder: what it depends on, what it skips, when it gives up.

Whoever does the work, the frame is the same: take the folder's lock, refuse what another config
made, skip what is finished, and write down what it came to and how long each stage took.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from namedmask import schema
from namedmask.categories import category_set_of
from namedmask.config import Config, settings_of
from namedmask.errors import InputError, TooManyFailuresError
from namedmask.ledger import (
    Ledger,
    digest,
    open_run,
    read_json,
    write_file,
    write_json,
)
from namedmask.progress import Progress
from namedmask.storage import Place, place_of
from namedmask.stores import EMBEDDINGS, FETCHED, IMAGES, EmbeddingStore
from namedmask.waves import Stage

VERBS = ("embed", "build", "refine", "train", "evaluate")
"""In the order in which they build on one another; `fetch` builds on none, and none on it."""

DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "fetch": ("metadata", "fetch", "run.wave_rows"),
    "embed": ("metadata", "fetch", "embed", "run.wave_rows"),
    "images": ("fetch", "faces", "saliency", "bilateral"),
    "build": ("categories.templates", "retrieve"),
    "refine": ("experts", "augment", "segmenter", "run.seed"),
    "train": ("train", "augment", "segmenter", "experts.enabled", "run.seed"),
    "evaluate": ("evaluate",),
}
"""Sections and keys that shape what a verb writes, beside those of the verbs before it.

`images` is no verb but a store of the verb build, which a failed build may leave to the next.
"""

CONTENT = ("build", "refine", "train", "evaluate")
"""Verbs that have work again when the categories change, or how images are judged."""

BOUND = ("embed", "images", "build", "refine")
"""Verbs whose units for the categories as they were are of use for the categories as they are."""

LOOSE = ("build",)
"""Verbs whose settings hold once they are finished: their units are named by what they are of."""


PUBLISHED_ADDS: dict[str, tuple[str, ...]] = {
    "images": ("vectors.source", "vectors.unchanged_cosine", "embed"),
    "build": (
        "vectors.source", "vectors.unchanged_cosine", "embed", "metadata.max_punsafe",
        "metadata.unknown_punsafe", "metadata.min_similarity", "metadata.max_similarity",
        "metadata.max_pwatermark", "metadata.min_side", "metadata.max_aspect",
    ),
}  # fmt: skip
"""The same, where the vectors are published and no verb `embed` comes before."""


STORES = {"fetch": FETCHED, "embed": EMBEDDINGS, "images": IMAGES}
"""Stores without which a verb has written nothing yet."""

STAGE_CLASSES = {
    "fetch": "Fetch",
    "embed": "Embed",
    "faces": "Faces",
    "saliency": "Saliency",
    "bilateral": "Bilateral",
}
"""The stages by the name of their module and config section."""

VERDICTS = ("has_face", "no_mask", "content_changed")
"""What a look at its pixels says of an image that did come: no failure."""


def load_stage(name: str, config: Config) -> Stage:
    """Return a stage, ready to run here; its module is imported now.

    Raises:
        InputError: its weights, detector or device are not to be had.
    """
    loaded: Stage = stage_class(name)(getattr(config, name))
    return loaded


def stage_class(name: str) -> Any:
    """Return the class of a stage, with its `reads` and `adds`; its module is imported now."""
    return getattr(importlib.import_module(f"namedmask.{name}"), STAGE_CLASSES[name])


def judging_stages(config: Config) -> tuple[str, ...]:
    """Return the stages that an image passes between its fetch and the archive, in order."""
    enabled = {
        "embed": bool(config.vectors.source),  # is it still the image that was published?
        "faces": config.faces.enabled,
        "bilateral": config.bilateral.enabled,
    }
    stages = ("fetch", "embed", "faces", "saliency", "bilateral")
    return tuple(name for name in stages if enabled.get(name, True))


def batch_size_of(stages: Sequence[str], config: Config) -> int:
    """Return the batch size of the stages that have one, the largest."""
    return max(getattr(getattr(config, name), "batch_size", 1) for name in stages)


@dataclass
class Job:
    """One verb under way: what it was asked, where it writes, what it has spent."""

    config: Config
    ledger: Ledger
    progress: Progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    archives: Place | None = None  # the run folder whose archive is trained on; None: its own

    @property
    def archive(self) -> Place:
        """The folder of the archive to train on, with that of the refined masks beside it."""
        return (self.archives or self.ledger.folder) / "archive"

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Add the seconds of a block to those of a stage; fetching overlaps the others."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def settings(self, verb: str) -> dict[str, Any]:
        """Return the settings that `verb` depends on."""
        more = PUBLISHED_ADDS.get(verb, ()) if self.config.vectors.source else ()
        return settings_of(self.config, (*DEPENDS_ON[verb], *more))

    def content(self, verb: str) -> str:
        """Return a digest of categories, vectors and how images are judged, if it matters."""
        if verb not in CONTENT:
            return ""
        category_set = category_set_of(self.config.categories)
        each = self.config.tree()["categories"]["each"]
        shown = {path for rules in each.values() for path in rules["examples"]}
        content = [
            category_set.names, category_set.queries, each, self.settings("images"),
            [_sha256_of(path) for path in sorted(shown)],
        ]  # fmt: skip
        if vectors := self.ledger.made("embed"):  # others once rows were tried again
            content.append(vectors)
        return digest([json.dumps(content, sort_keys=True)])

    def finished(self, verb: str) -> dict[str, Any] | None:
        """Return what `verb` ended with here, None when it has work; raises as Ledger.finished."""
        bound = verb in BOUND
        return self.ledger.finished(verb, self.settings(verb), self.content(verb), bound=bound)

    def is_begun(self, verb: str) -> bool:
        """Return whether the run folder is bound to this verb for the content of today."""
        return self.ledger.is_begun(verb, self.content(verb))

    def start(self, verb: str) -> None:
        """Bind the run folder to this verb's settings, before its first write."""
        store, loose = STORES.get(verb, ""), verb in LOOSE
        settings, content = self.settings(verb), self.content(verb)
        self.ledger.start(verb, settings, store, content, loose=loose)


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
    work: Callable[[Job], dict[str, Any]],
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
        job = Job(config, ledger, progress)
        for needed in verbs_before(verb, config):
            require_finished(job, needed, verb)
        done = job.finished(verb)
        if done is not None and not again:
            return {"skipped": True, **done}
        write_file(ledger.folder / "run.toml", to_toml(config).encode())
        try:
            result = work(job)
        finally:
            _add_timings(job)
        job.start(verb)
        made = EmbeddingStore(ledger).digest() if store == EMBEDDINGS else ""
        ledger.finish(verb, result, store, made)
    return result | {"seconds": dict(job.seconds), "peak_rss_mb": peak_rss_mb()}


def require_finished(job: Job, needed: str, verb: str) -> None:
    """Raise InputError when `needed`, which `verb` builds on, is not finished."""
    if job.finished(needed) is None:
        raise InputError(
            f"run folder {job.ledger.folder} has no finished '{needed}', which '{verb}' builds "
            f"on. Run 'namedmask {needed}' with this run file first."
        )


def verbs_before(verb: str, config: Config) -> tuple[str, ...]:
    """Return the verbs that must be finished before `verb` may begin."""
    if verb not in VERBS:
        return ()
    left_out = {"embed": bool(config.vectors.source), "refine": not config.experts.enabled}
    return tuple(one for one in VERBS[: VERBS.index(verb)] if not left_out.get(one))


def threads_of(config: Config) -> int:
    """Return how many threads torch may use."""
    return config.run.threads or os.cpu_count() or 1


def use_threads(config: Config) -> None:
    """Let torch use as many threads as the config says, where it is loaded: that takes seconds."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads_of(config))


def to_toml(config: Config) -> str:
    """Return the config as a run file; text, numbers, flags and lists are written as in JSON."""
    lines = []
    for section, keys in config.tree().items():
        lines += [f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""]
    return "\n".join(lines).replace("\x7f", "\\u007f")  # the one character that JSON lets through


def _toml(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    pairs = (f"{_toml(key)} = {_toml(one)}" for key, one in value.items())
    return f"{{{', '.join(pairs)}}}"


def peak_rss_mb() -> int:
    """Return the most memory that this process has held, MB; 0 where the system does not tell.

    Not `ru_maxrss`: a process inherits that from whoever started it.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM")), 0)


class Failures:
    """Counts what was tried and what came to nothing, and ends the run when that is too much."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._tried = self._failed = 0

    def add(self, tried: int, counts: Mapping[str, int]) -> None:
        """Count a wave: `tried` rows were to be fetched, `counts` is what all its rows ended as.

        A verdict on an image (see VERDICTS) is no failure.

        Raises:
            TooManyFailuresError: the share of failures is above `run.max_failure_share`.
        """
        self._tried += tried
        self._failed += tried - sum(counts.get(one, 0) for one in (schema.OK, *VERDICTS))
        if self._failed > self._max_share * self._tried:
            listed = ", ".join(f"{status} {count:,}" for status, count in counts.items())
            raise TooManyFailuresError(
                f"{self._failed:,} of {self._tried:,} rows failed, more than "
                f"run.max_failure_share = {self._max_share:g} allows; the last wave ended as "
                f"{listed}. What is committed is kept. Mend the cause or raise the share, and "
                "run the same command again."
            )


def _add_timings(job: Job) -> None:
    path = job.ledger.folder / "timings.json"
    total = read_json(path) if path.exists() else {}
    for stage, seconds in job.seconds.items():
        total[stage] = round(total.get(stage, 0.0) + seconds, 3)
    write_json(path, total)
