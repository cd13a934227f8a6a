"""The verbs `fetch` and `embed`, which store an image or a vector for each row of the metadata.

Every row ends in the verb's store with one status, so the counts by status add up to the number of
rows read (the row funnel). The verbs work in waves of rows. A verb that was killed resumes after
the last committed wave when it is run again.

This module does not load torch, so that `namedmask fetch` starts its work within a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from namedmask.config import Config
from namedmask.engine import PLAIN_LOOP
from namedmask.errors import InputError
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.failures import refuse_none_ok
from namedmask.run.job import Failures, VerbRun, verb_run
from namedmask.run.layout import EMBEDDINGS, FETCHED
from namedmask.run.ledger import Commit
from namedmask.run.progress import Progress, Step
from namedmask.run.retry import count_in_classes, refuse_unknown_classes, rows_again
from namedmask.run.waves import Wave, digest_of
from namedmask.storage.files import read_json, write_json
from namedmask.verbs.preflight import open_parts

NONE_OK = (
    "Check metadata.source, the section fetch and the network. To try again the rows whose failure "
    "may pass, add --retry transient."
)
"""Way out of a run without any good row."""


class Kind(NamedTuple):
    """A verb, the stages that its rows pass in order, and the name of its store."""

    verb: str
    stages: tuple[str, ...]
    store: str


FETCH = Kind("fetch", ("fetch",), FETCHED)
EMBED = Kind("embed", ("fetch", "embed"), EMBEDDINGS)


def fetch(
    config: Config,
    progress: Progress,
    executor: Executor = PLAIN_LOOP,
    retry: Collection[str] = (),
) -> dict[str, Any]:
    """Read the metadata, fetch and store the images; return numbers of rows, in all and by status.

    The verb needs no categories, no models and no other verb. `retry` lists failure classes
    (schema.status.FAILURE_CLASSES). Rows whose status is in one of these classes are tried again,
    and the result also has the counts before the retry.

    Raises:
        ConfigError: there is no such failure class.
        InputError: a source cannot be read, or it has changed since the run began.
        TooManyFailuresError: a larger share of rows failed than `run.max_failure_share` allows.
    """
    return _collect(FETCH, config, progress, executor, retry)


def embed(
    config: Config,
    progress: Progress,
    executor: Executor = PLAIN_LOOP,
    retry: Collection[str] = (),
    then: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the metadata, fetch the images, store one vector per image; return counts as `fetch`.

    `retry` works as in `fetch`. If a retry adds vectors, `build` is no longer finished. `then`
    names the verbs that the same command runs next, whose models and files are opened here too.

    Raises:
        ConfigError, InputError, TooManyFailuresError: as in `fetch`.
    """
    refuse_unknown_classes(retry)
    if config.vectors.source:
        return {"skipped": True, "reason": "vectors.source has the vectors"}
    return _collect(EMBED, config, progress, executor, retry, then)


def _collect(
    kind: Kind,
    config: Config,
    progress: Progress,
    executor: Executor,
    retry: Collection[str],
    then: Sequence[str] = (),
) -> dict[str, Any]:
    """Pass uncommitted rows, and rows to retry, through the stages; return counts by status."""
    refuse_unknown_classes(retry)
    counts: dict[str, Any] = {}
    with verb_run(kind.verb, config, progress, again=bool(retry)) as run:
        if not (run.has_work or retry):
            return run.result
        committed, retried = run.ledger.commits(kind.store), 0
        before = row_funnel(run, kind.store)["rows_by_status"]
        run.result = run.recorded or {}
        if run.has_work or count_in_classes(before, retry):
            open_parts(executor, run, kind.verb, then)
            run.ledger.sweep(kind.store)
            failures = Failures(config.run.max_failure_share)
            with progress.step(kind.verb) as step:
                waves = _to_do(kind, run, executor.metadata(run), committed, retry, step)
                run.start(kind.verb)
                with closing(executor.run(run, waves, kind.stages, kind.store, step)) as results:
                    for written in results:
                        if written.unit in committed:
                            retried += written.tried
                        else:
                            failures.add(written.tried, written.counts)
            run.ledger.sweep(kind.store)  # removes the files that retried waves have replaced
            run.result = row_funnel(run, kind.store)
            if kind is EMBED:
                _write_funnel(run, run.result)
        refuse_none_ok("rows", run.result["rows_by_status"], NONE_OK)
        if retry:
            counts = {"rows_by_status_before": before, "rows_tried_again": retried}
    return run.result | counts


def _write_funnel(run: VerbRun, funnel: dict[str, Any]) -> None:
    # keep the counts of candidates in the file, because the archives have not changed
    path = run.ledger.folder / layout.FUNNELS
    write_json(path, (read_json(path) if path.exists() else {}) | funnel)


def _to_do(
    kind: Kind,
    run: VerbRun,
    waves: Iterable[Wave],
    committed: Mapping[str, Commit],
    retry: Collection[str],
    step: Step,
) -> Iterator[Wave]:
    """Yield the waves to process or to retry; check that committed waves have unchanged rows.

    Raises:
        InputError: a committed wave has different rows now, or no longer exists.
    """
    left = dict(committed)
    for wave in waves:
        commit = left.pop(wave.unit, None)
        if commit is None:
            yield wave
            continue
        if digest_of(wave) != commit.input_digest:
            raise _changed_metadata(run, wave.unit)
        if count_in_classes(commit.counts, retry):
            run.ledger.unfinish(kind.verb)
            read = partial(rows_again, wave.read, run.ledger.folder.absolute(), commit, retry)
            yield Wave(wave.unit, read, again=True)
        else:
            step.advance(commit.rows, commit.counts)
    if left:
        raise _changed_metadata(run, min(left))


def _changed_metadata(run: VerbRun, unit: str) -> InputError:
    return InputError(
        f"metadata.source now has different rows for wave {unit} than when run folder "
        f"{run.ledger.folder} was begun. Restore the source, or set another run.out."
    )


def row_funnel(run: VerbRun, store: str) -> dict[str, Any]:
    """Return the number of rows committed to a store as `rows_in`, and `rows_by_status`."""
    counts: Counter[str] = Counter()
    for commit in run.ledger.commits(store).values():
        counts.update(commit.counts)
    return {"rows_in": counts.total(), "rows_by_status": dict(counts.most_common())}
