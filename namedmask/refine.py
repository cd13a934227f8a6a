"""Archives → better masks: one expert a category, committed one by one.

An expert and the masks it drew are one unit of the run folder's ledger: a category that is done is
not done again while its archive stays as it is, and adding categories trains only theirs. A
category needs no other, so they may be refined one after the other, as here, or many at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from torch.nn import Module

from namedmask import images, schema
from namedmask.archive import REFINED, Archive, ArchivedCategory, stem
from namedmask.config import Config
from namedmask.experts import redraw, train_expert, train_shared_expert
from namedmask.jobs import Job
from namedmask.ledger import Commit, write_unit
from namedmask.segmenter import load_checkpoint, save_checkpoint
from namedmask.storage import Place

EXPERTS = "experts"
SHARED = "shared"
SHARED_FILE = f"{EXPERTS}/{SHARED}.pt"
"""The expert where all others start; its unit is `SHARED`."""

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Work:
    """What there is to refine in a run folder."""

    archive: Archive
    done: list[Commit]
    left: list[ArchivedCategory]
    needs_shared: bool  # whether the shared expert is still to be trained
    start: Place | None  # where the shared expert lies, or will; None: experts start without it


def open_work(job: Job) -> Work:
    """Return what is done and what is left, once the leftovers of a killed run are gone."""
    archive = Archive.open(job.ledger.folder / "archive")
    committed = job.ledger.commits(REFINED)
    done, left = [], []
    for category in archive.categories:
        commit = committed.get(stem(category.label_id, category.name))
        if commit is not None and commit.input_digest == category.sha256:
            done.append(commit)
        else:
            left.append(category)
            if commit is not None:  # of another archive; the sweep takes its files
                (job.ledger.folder / REFINED / f"commit-{commit.unit}.json").unlink()
    job.ledger.sweep(REFINED, EXPERTS)
    shared = bool(left) and job.config.experts.shared_iterations > 0
    return Work(
        archive, done, left,
        needs_shared=shared and SHARED not in job.ledger.commits(EXPERTS),
        start=job.ledger.folder / SHARED_FILE if shared else None,
    )  # fmt: skip


def total_steps(work: Work, config: Config) -> int:
    """Return the steps of all experts, those that are done included."""
    experts = config.experts
    shared = experts.shared_iterations if work.start else 0
    return shared + experts.iterations * len(work.archive.categories)


def steps_done(work: Work, config: Config) -> int:
    """Return how many of `total_steps` were taken before."""
    experts = config.experts
    shared = experts.shared_iterations if work.start and not work.needs_shared else 0
    return shared + experts.iterations * len(work.done)


def sum_up(commits: Iterable[Commit]) -> dict[str, Any]:
    """Return what the verb ends with: how many categories, masks redrawn and masks kept."""
    counts: Counter[str] = Counter()
    categories = 0
    for commit in commits:
        counts.update(commit.counts)
        categories += 1
    return {"categories": categories, "masks": dict(counts)}


def refine_archive(job: Job) -> dict[str, Any]:
    """Return how many masks were redrawn and kept; archives refined before are left as they are."""
    config, folder = job.config, job.ledger.folder
    work = open_work(job)
    commits = list(work.done)
    with job.progress.step("experts", total_steps(work, config)) as step:
        step.advance(steps_done(work, config))

        def on_step(done: int, loss: float) -> None:
            step.advance()

        if work.needs_shared:
            with job.clock("shared expert"):
                shared = shared_expert(config, folder, on_step)
            job.start("refine")
            commit_shared(config, folder, shared)
        for category in work.left:
            with job.clock("experts"):
                expert = category_expert(config, folder, category, work.start, on_step)
            with job.clock("refine"):
                table, kept = redraw_category(config, folder, category, expert)
            job.start("refine")
            commits.append(commit_category(config, folder, category, expert, table, kept))
    return sum_up(commits)


def refine_category(
    config: Config, folder: Place, category: ArchivedCategory, start: Place | None
) -> Commit:
    """Return the record of one category, refined and committed to the run folder `folder`.

    Needs no lock of its own: whoever holds the folder's may have many refined at once. `start` is
    the checkpoint of the expert to start from. Raises as `experts.train_expert`.
    """
    expert = category_expert(config, folder, category, start)
    table, kept = redraw_category(config, folder, category, expert)
    return commit_category(config, folder, category, expert, table, kept)


def refine_shared(config: Config, folder: Place) -> Commit:
    """Return the record of the expert of all categories, trained and committed to `folder`."""
    return commit_shared(config, folder, shared_expert(config, folder))


def shared_expert(config: Config, folder: Place, on_step: OnStep | None = None) -> Module:
    """Return the expert of all categories."""
    samples = Archive.open(folder / "archive").samples(refined=False)
    return train_shared_expert(samples, config, on_step=on_step)


def commit_shared(config: Config, folder: Place, expert: Module) -> Commit:
    """Return the record of the expert of all categories, once it is written."""
    save = partial(save_checkpoint, model=expert, name=config.segmenter.name, names=["thing"])
    return write_unit(folder, EXPERTS, SHARED, {SHARED_FILE: save}, rows=0, counts={})


def category_expert(
    config: Config,
    folder: Place,
    category: ArchivedCategory,
    start: Place | None,
    on_step: OnStep | None = None,
) -> Module:
    """Return the expert of one category, begun at the checkpoint `start` if there is one."""
    samples = Archive.open(folder / "archive").one_category_samples(category.name)
    model = load_checkpoint(start, config.segmenter)[0] if start else None
    seed = config.run.seed + category.label_id
    return train_expert(samples, config, seed, model, on_step=on_step)


def redraw_category(
    config: Config, folder: Place, category: ArchivedCategory, expert: Module
) -> tuple[pa.Table, int]:
    """Return a category's entries with new masks (schema.REFINED), and how many are as before."""
    archive = Archive.open(folder / "archive")
    samples = archive.one_category_samples(category.name)
    solver = config.bilateral if config.experts.snap else None
    masks, kept = redraw(expert, samples, config.experts, solver)
    table = archive.entries(category.name).select(schema.REFINED.names)
    encoded = pa.array([images.encode_mask(mask) for mask in masks], schema.TYPES["mask"])
    return table.set_column(table.schema.get_field_index("mask"), "mask", encoded), kept


def commit_category(
    config: Config,
    folder: Place,
    category: ArchivedCategory,
    expert: Module,
    table: pa.Table,
    kept: int,
) -> Commit:
    """Return the record of one category, once its masks and its expert are written."""
    name = stem(category.label_id, category.name)
    save = partial(
        save_checkpoint, model=expert, name=config.segmenter.name, names=[category.name],
        step=config.experts.iterations,
    )  # fmt: skip
    return write_unit(
        folder,
        REFINED,
        name,
        {f"{REFINED}/{name}.parquet": table, f"{EXPERTS}/{name}.pt": save},
        rows=table.num_rows,
        counts={"redrawn": table.num_rows - kept, "kept": kept},
        input_digest=category.sha256,
    )
