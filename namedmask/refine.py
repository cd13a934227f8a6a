"""Archives → better masks: one expert a category, committed one by one.

An expert and the masks it drew are one unit of the run folder's ledger: a category that is done is
not done again while its archive stays as it is, and adding categories trains only theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from torch.nn import Module

from namedmask import images, schema
from namedmask.archive import REFINED, Archive, ArchivedCategory, stem
from namedmask.experts import redraw, train_expert, train_shared_expert
from namedmask.jobs import Job
from namedmask.ledger import Commit
from namedmask.progress import Step
from namedmask.segmenter import load_checkpoint, save_checkpoint

EXPERTS = "experts"
SHARED = "shared"
"""The unit, and the file, of the expert where all others start."""


def refine_archive(job: Job) -> dict[str, Any]:
    """Return how many masks were redrawn and kept; archives refined before are left as they are."""
    config, archive = job.config.experts, Archive.open(job.ledger.folder / "archive")
    committed = job.ledger.commits(REFINED)
    job.ledger.sweep(REFINED, EXPERTS)
    todo = [one for one in archive.categories if not _is_refined(one, committed)]
    counts: Counter[str] = Counter()
    total = config.shared_iterations * bool(todo) + config.iterations * len(archive.categories)
    with job.progress.step("experts", total) as step:
        start = _shared_expert(job, archive, step) if todo and config.shared_iterations else None
        for category in archive.categories:
            if category in todo:
                commit = _refine_category(job, archive, category, start, step)
            else:
                commit = committed[stem(category.label_id, category.name)]
                step.advance(config.iterations)
            counts.update(commit.counts)
    return {"categories": len(archive.categories), "masks": dict(counts)}


def _is_refined(category: ArchivedCategory, committed: Mapping[str, Commit]) -> bool:
    commit = committed.get(stem(category.label_id, category.name))
    return commit is not None and commit.input_digest == category.sha256


def _shared_expert(job: Job, archive: Archive, step: Step) -> Module:
    """Return the expert of all categories, trained once in the life of a run folder."""
    config, file = job.config, f"{EXPERTS}/{SHARED}.pt"
    if SHARED in job.ledger.commits(EXPERTS):
        step.advance(config.experts.shared_iterations)
        return load_checkpoint(job.ledger.folder / file, config.segmenter)[0]
    with job.clock("shared expert"):
        expert = train_shared_expert(
            archive.samples(refined=False), config, on_step=lambda *_: step.advance()
        )
    save = partial(save_checkpoint, model=expert, name=config.segmenter.name, names=["thing"])
    job.start("refine")
    job.ledger.commit(EXPERTS, SHARED, {file: save}, rows=0, counts={})
    return expert


def _refine_category(
    job: Job, archive: Archive, category: ArchivedCategory, start: Module | None, step: Step
) -> Commit:
    """Train one expert, redraw its category's masks, and commit both."""
    config = job.config
    samples = archive.one_category_samples(category.name)
    seed = config.run.seed + category.label_id
    with job.clock("experts"):
        expert = train_expert(samples, config, seed, start, on_step=lambda *_: step.advance())
    with job.clock("refine"):
        solver = config.bilateral if config.experts.snap else None
        masks, kept = redraw(expert, samples, config.experts, solver)
        table = archive.entries(category.name).select(schema.REFINED.names)
        encoded = pa.array([images.encode_mask(mask) for mask in masks], schema.TYPES["mask"])
        table = table.set_column(table.schema.get_field_index("mask"), "mask", encoded)
    name = stem(category.label_id, category.name)
    save = partial(
        save_checkpoint, model=expert, name=config.segmenter.name, names=[category.name],
        step=config.experts.iterations,
    )  # fmt: skip
    job.start("refine")
    return job.ledger.commit(
        REFINED,
        name,
        {f"{REFINED}/{name}.parquet": table, f"{EXPERTS}/{name}.pt": save},
        rows=len(masks),
        counts={"redrawn": len(masks) - kept, "kept": kept},
        input_digest=category.sha256,
    )
