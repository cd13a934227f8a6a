"""The verbs that take rows of metadata one by one: fetch stores images, embed stores vectors.

They are the row funnel: each row ends in the store with a status, and the counts add up to the rows
read. Wave by wave: killed anywhere and run again, a verb goes on behind the last committed wave.

Nothing here loads torch: `namedmask fetch` is at work within a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.executor import Executor
from namedmask.jobs import Failures, Job, run_verb
from namedmask.ledger import Commit, read_json, write_json
from namedmask.local import PlainLoop
from namedmask.progress import Progress, Step
from namedmask.retry import count_of, refuse_unknown, rows_again
from namedmask.stores import EMBEDDINGS, FETCHED
from namedmask.waves import Wave, digest_of

PLAIN_LOOP = PlainLoop()


@contextmanager
def executor_of(config: Config, local: bool = False) -> Iterator[Executor]:
    """Yield the plain loop, or an executor on the Ray that the config names."""
    if local:
        yield PLAIN_LOOP
        return
    from namedmask.on_ray import connect

    with connect(config) as executor:
        yield executor


def fetch(
    config: Config,
    progress: Progress,
    executor: Executor = PLAIN_LOOP,
    retry: Collection[str] = (),
) -> dict[str, Any]:
    """Read the metadata, fetch the images, store them; return rows in and by status.

    Needs no categories and no models, and none of the other verbs.

    With `retry`, rows that failed for a reason of these classes (reasons.REASONS) are tried again,
    and what they were before is returned as well.

    Raises:
        ConfigError: there is no such class.
        InputError: a source cannot be read, or is not what it was when the run began.
        TooManyFailuresError: more rows failed than `run.max_failure_share`.
    """
    return _verb("fetch", ("fetch",), FETCHED, config, progress, executor, retry)


def embed(
    config: Config,
    progress: Progress,
    executor: Executor = PLAIN_LOOP,
    retry: Collection[str] = (),
) -> dict[str, Any]:
    """Read the metadata, fetch the images, store a vector each; return rows in and by status.

    With `retry`, as `fetch`.

    Raises:
        ConfigError, InputError, TooManyFailuresError: as `fetch`.
    """
    if config.vectors.source:
        refuse_unknown(retry)
        return {"skipped": True, "reason": "vectors.source has the vectors"}
    return _verb("embed", ("fetch", "embed"), EMBEDDINGS, config, progress, executor, retry)


def _verb(
    verb: str,
    stages: Sequence[str],
    store: str,
    config: Config,
    progress: Progress,
    executor: Executor,
    retry: Collection[str],
) -> dict[str, Any]:
    refuse_unknown(retry)
    before: dict[str, int] = {}

    def work(job: Job) -> dict[str, Any]:
        before.update(row_funnel(job, store)["rows_by_status"])
        return _collect(executor, verb, stages, store, retry, job)

    summary = run_verb(verb, config, progress, work, store, again=bool(retry))
    if retry:
        tried = count_of(before, retry)
        summary |= {"rows_by_status_before": before, "rows_tried_again": tried}
    return summary


def _collect(
    executor: Executor,
    verb: str,
    stages: Sequence[str],
    store: str,
    retry: Collection[str],
    job: Job,
) -> dict[str, Any]:
    committed = job.ledger.commits(store)
    done = job.finished(verb)
    if done is not None and not any(count_of(one.counts, retry) for one in committed.values()):
        return done
    job.ledger.sweep(store)
    failures = Failures(job.config.run.max_failure_share)
    with job.progress.step(verb) as step:
        waves = _to_do(job, executor.metadata(job), verb, committed, retry, step)
        job.start(verb)
        for written in executor.run(job, waves, stages, store, step):
            if written.unit not in committed:
                failures.add(written.tried, written.counts)
    job.ledger.sweep(store)
    funnel = row_funnel(job, store)
    if store == EMBEDDINGS:
        # rows tried again leave the archive, and what is told of it, as they are
        path = job.ledger.folder / "funnels.json"
        write_json(path, (read_json(path) if path.exists() else {}) | funnel)
    return funnel


def _to_do(
    job: Job,
    waves: Iterable[Wave],
    verb: str,
    committed: Mapping[str, Commit],
    retry: Collection[str],
    step: Step,
) -> Iterator[Wave]:
    """Yield the waves still to do, or to do again, once those done are found to be what they were.

    Raises:
        InputError: a wave that is done has other rows now, or is gone.
    """
    left = dict(committed)
    for wave in waves:
        commit = left.pop(wave.unit, None)
        if commit is None:
            yield wave
            continue
        if digest_of(wave) != commit.input_digest:
            raise _changed_metadata(job, wave.unit)
        if count_of(commit.counts, retry):
            job.ledger.unfinish(verb)
            read = partial(rows_again, wave.read, job.ledger.folder.absolute(), commit, retry)
            yield Wave(wave.unit, read, again=True)
        else:
            step.advance(commit.rows, commit.counts)
    if left:
        raise _changed_metadata(job, min(left))


def _changed_metadata(job: Job, unit: str) -> InputError:
    return InputError(
        f"metadata.source gives other rows for wave {unit} than when run folder "
        f"{job.ledger.folder} was begun. Restore the source, or give another run.out."
    )


def row_funnel(job: Job, store: str) -> dict[str, Any]:
    """Return how many rows are committed to a store, and how many ended with each status."""
    counts: Counter[str] = Counter()
    for commit in job.ledger.commits(store).values():
        counts.update(commit.counts)
    return {"rows_in": counts.total(), "rows_by_status": dict(counts.most_common())}
