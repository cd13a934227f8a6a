"""The verbs that take rows of metadata one by one: fetch stores images, embed stores vectors.

They are the row funnel: each row ends in the store with a status, and the counts add up to the rows
read. Wave by wave: killed anywhere and run again, a verb goes on behind the last committed wave.

Nothing here loads torch: `namedmask fetch` is at work within a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.executor import Executor
from namedmask.jobs import Failures, Job, run_verb
from namedmask.ledger import Commit, write_json
from namedmask.local import PlainLoop
from namedmask.progress import Progress, Step
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


def fetch(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Read the metadata, fetch the images, store them; return rows in and by status.

    Needs no categories and no models, and none of the other verbs.

    Raises:
        InputError: a source cannot be read, or is not what it was when the run began.
        TooManyFailuresError: more rows failed than `run.max_failure_share`.
    """
    work = partial(_collect, executor, "fetch", ("fetch",), FETCHED)
    return run_verb("fetch", config, progress, work, FETCHED)


def embed(config: Config, progress: Progress, executor: Executor = PLAIN_LOOP) -> dict[str, Any]:
    """Read the metadata, fetch the images, store a vector each; return rows in and by status.

    Raises:
        InputError, TooManyFailuresError: as `fetch`.
    """
    if config.vectors.source:
        return {"skipped": True, "reason": "vectors.source has the vectors"}
    return run_verb("embed", config, progress, partial(_embed, executor), EMBEDDINGS)


def _embed(executor: Executor, job: Job) -> dict[str, Any]:
    funnel = _collect(executor, "embed", ("fetch", "embed"), EMBEDDINGS, job)
    write_json(job.ledger.folder / "funnels.json", funnel)
    return funnel


def _collect(
    executor: Executor, verb: str, stages: Sequence[str], store: str, job: Job
) -> dict[str, Any]:
    committed = job.ledger.commits(store)
    job.ledger.sweep(store)
    failures = Failures(job.config.run.max_failure_share)
    with job.progress.step(verb) as step:
        waves = _uncommitted(job, executor.metadata(job), committed, step)
        job.start(verb)
        for written in executor.run(job, waves, stages, store, step):
            failures.add(written.tried, written.counts)
    return row_funnel(job, store)


def _uncommitted(
    job: Job, waves: Iterable[Wave], committed: Mapping[str, Commit], step: Step
) -> Iterator[Wave]:
    """Yield the waves still to do, once those that are done are found to be what they were.

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
