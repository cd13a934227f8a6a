"""Refines the masks of the archives with one expert per category, or per cluster of categories.

An expert and its refined masks are committed together, as one unit of the run folder's ledger. A
committed unit is reused as long as its archives do not change, and a new category trains only its
own expert. Experts do not depend on one another (beyond an optional shared expert to start from),
so they can be trained one after the other, as in this file, or in parallel.

Clusters group categories with similar names (clusters.py). They are computed once per list of
categories. When the list changes, they are computed again, and experts of clusters with other
members are trained again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from torch.nn import Module

from namedmask import images, schema
from namedmask.archive.store import Archive, ArchivedCategory, stem
from namedmask.categories import templates_of
from namedmask.config import Config, settings_of
from namedmask.embed.text import Prompts, QueryEncoder
from namedmask.errors import ConfigError
from namedmask.experts.clusters import balanced_clusters
from namedmask.experts.expert import redraw, train_expert, train_shared_expert
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun
from namedmask.run.layout import EXPERTS, REFINED, SHARED_EXPERT
from namedmask.run.ledger import Commit, write_unit
from namedmask.segmenter.checkpoint import load_checkpoint, save_checkpoint
from namedmask.storage import Place
from namedmask.storage.files import Content, content_of, digest, read_json, write_json

SHARED_FILE = layout.expert_file(SHARED_EXPERT)
"""Path, in the run folder, of the checkpoint of the shared expert (unit `SHARED_EXPERT`)."""

OnStep = Callable[[int, float], None]
"""Called after each training step with the number of steps done and the loss."""


@dataclass(frozen=True)
class Cluster:
    """The categories of one expert, by ascending label id. Usually this is a single category."""

    members: tuple[ArchivedCategory, ...]

    @property
    def title(self) -> str:
        """Return the name to use for the cluster in messages."""
        return ", ".join(category.name for category in self.members)

    @property
    def digest(self) -> str:
        """Return a digest of the archives that the cluster's masks depend on."""
        if len(self.members) == 1:
            return self.members[0].sha256
        return digest([f"{member.label_id} {member.sha256}" for member in self.members])

    @property
    def unit(self) -> str:
        """Return the cluster's name in the ledger.

        For several categories it contains the digest, so it changes with the members or archives.
        """
        first = self.members[0]
        if len(self.members) == 1:
            return stem(first.label_id, first.name)
        return f"cluster-{first.label_id:05d}-{self.digest[:12]}"

    @property
    def files(self) -> list[str]:
        """Return the files of the refined masks, relative to the run folder, one per category."""
        return [f"{REFINED}/{category.file}" for category in self.members]


@dataclass(frozen=True)
class Work:
    """The finished and the remaining work of `refine` in a run folder."""

    clusters: list[Cluster]
    done: list[Commit]
    left: list[Cluster]
    needs_shared: bool  # whether the shared expert must be trained first
    start: Place | None  # checkpoint of the shared expert, perhaps not yet written; None: not used


def find_clusters(executor: Executor, run: VerbRun) -> list[list[str]]:
    """Return the category names of each cluster; [] if every category has its own expert.

    The clusters are read from the run folder if they are still valid; otherwise they are computed
    and written there.

    Raises:
        ConfigError: `experts.clusters` exceeds the number of categories.
    """
    config, path = run.config, run.ledger.folder / layout.CLUSTERS
    count = config.experts.clusters
    if not count:
        return []
    categories = Archive.open(run.ledger.folder / layout.ARCHIVE).categories
    if count > len(categories):
        raise ConfigError(
            f"experts.clusters is {count}, and there are {len(categories)} categories. Lower it, "
            "or set it to 0 for one expert per category."
        )
    queries = [(category.name, category.query) for category in categories]
    templates = templates_of(config.categories)
    follows_from = digest([json.dumps([queries, templates, settings_of(config, ("embed",)), count,
                                       config.run.seed])])  # fmt: skip
    if path.exists() and (record := read_json(path)).get("follows_from") == follows_from:
        with content_of(path):
            clusters: list[list[str]] = record["clusters"]
        return clusters
    prompts = {"categories": Prompts([query for _, query in queries], templates)}
    encode = partial(QueryEncoder, config.embed)
    vectors = executor.call(run, "embed", encode, prompts)["categories"]
    clusters = [
        [categories[row].name for row in rows]
        for rows in balanced_clusters(vectors, count, config.run.seed)
    ]
    write_json(path, {"follows_from": follows_from, "clusters": clusters})
    return clusters


def open_work(run: VerbRun, clusters: Sequence[Sequence[str]] = ()) -> Work:
    """Return the finished and the remaining work, after removing stale and uncommitted files.

    `clusters` are the category names of each cluster, from `find_clusters`. If empty, every
    category is a cluster of its own.
    """
    archive = Archive.open(run.ledger.folder / layout.ARCHIVE)
    listed = [[archive.category(name) for name in names] for names in clusters]
    groups = listed or [[category] for category in archive.categories]
    wanted = [Cluster(tuple(members)) for members in groups]
    committed = run.ledger.commits(REFINED)
    done, left = [], []
    for cluster in wanted:
        commit = committed.get(cluster.unit)
        if commit is not None and commit.input_digest == cluster.digest:
            done.append(commit)
        else:
            left.append(cluster)
    current = {file for cluster in wanted for file in cluster.files}
    for commit in committed.values():
        # remove stale commits of these categories; the sweep below then deletes their files
        if commit not in done and current & commit.files.keys():
            (run.ledger.folder / REFINED / layout.commit_file(commit.unit)).unlink()
    run.ledger.sweep(REFINED, EXPERTS)
    shared = bool(left) and run.config.experts.shared_iterations > 0
    return Work(
        wanted, done, left,
        needs_shared=shared and SHARED_EXPERT not in run.ledger.commits(EXPERTS),
        start=run.ledger.folder / SHARED_FILE if shared else None,
    )  # fmt: skip


def total_steps(work: Work, config: Config) -> int:
    """Return the number of training steps of all experts, including finished experts."""
    experts = config.experts
    shared = experts.shared_iterations if work.start else 0
    return shared + experts.iterations * len(work.clusters)


def steps_done(work: Work, config: Config) -> int:
    """Return how many of `total_steps` belong to finished experts."""
    experts = config.experts
    shared = experts.shared_iterations if work.start and not work.needs_shared else 0
    return shared + experts.iterations * len(work.done)


def sum_up(commits: Iterable[Commit]) -> dict[str, Any]:
    """Return the verb's result: the numbers of categories and of masks redrawn and kept."""
    counts: Counter[str] = Counter()
    categories = 0
    for commit in commits:
        counts.update(commit.counts)
        categories += sum(file.startswith(f"{REFINED}/") for file in commit.files)
    return {"categories": categories, "masks": dict(counts)}


def refine_archive(run: VerbRun, clusters: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Train the remaining experts of a run and commit their masks; return the verb's result.

    Finished clusters are not refined again. `clusters` are as for `open_work`, the result as from
    `sum_up`. Raises as `train_expert`.
    """
    config, folder = run.config, run.ledger.folder
    work = open_work(run, clusters)
    commits = list(work.done)
    with run.progress.step("experts", total_steps(work, config)) as step:
        step.advance(steps_done(work, config))

        def on_step(done: int, loss: float) -> None:
            step.advance()

        if work.needs_shared:
            with run.clock("shared expert"):
                shared = shared_expert(config, folder, on_step)
            run.start("refine")
            commit_shared(config, folder, shared)
        for cluster in work.left:
            with run.clock("experts"):
                expert = cluster_expert(config, folder, cluster, work.start, on_step)
            with run.clock("refine"):
                redrawn = redraw_cluster(config, folder, cluster, expert)
            run.start("refine")
            commits.append(commit_cluster(config, folder, cluster, expert, redrawn))
    return sum_up(commits)


def refine_cluster(config: Config, folder: Place, cluster: Cluster, start: Place | None) -> Commit:
    """Train the expert of one cluster, commit its masks to `folder`, and return the commit.

    `folder` is the run folder. The function takes no lock, so the process that holds the folder's
    lock may refine many clusters in parallel. `start` is the checkpoint of the expert to start
    from. Raises as `train_expert`.
    """
    expert = cluster_expert(config, folder, cluster, start)
    redrawn = redraw_cluster(config, folder, cluster, expert)
    return commit_cluster(config, folder, cluster, expert, redrawn)


def refine_shared(config: Config, folder: Place) -> Commit:
    """Train the shared expert, commit it to the run folder `folder`, and return the commit."""
    return commit_shared(config, folder, shared_expert(config, folder))


def shared_expert(config: Config, folder: Place, on_step: OnStep | None = None) -> Module:
    """Return the shared expert, trained on the archives of all categories."""
    samples = Archive.open(folder / layout.ARCHIVE).samples(refined=False)
    return train_shared_expert(samples, config, on_step=on_step)


def commit_shared(config: Config, folder: Place, expert: Module) -> Commit:
    """Write the shared expert to the run folder and return the commit."""
    save = partial(save_checkpoint, model=expert, name=config.segmenter.name, names=["thing"])
    return write_unit(folder, EXPERTS, SHARED_EXPERT, {SHARED_FILE: save}, rows=0, counts={})


def cluster_expert(
    config: Config,
    folder: Place,
    cluster: Cluster,
    start: Place | None,
    on_step: OnStep | None = None,
) -> Module:
    """Return the expert of a cluster, trained from the checkpoint `start` if it is given."""
    names = [category.name for category in cluster.members]
    samples = Archive.open(folder / layout.ARCHIVE).thing_samples(*names)
    model = load_checkpoint(start, config.segmenter)[0] if start else None
    seed = config.run.seed + cluster.members[0].label_id
    return train_expert(samples, config, seed, model, on_step=on_step)


def redraw_cluster(
    config: Config, folder: Place, cluster: Cluster, expert: Module
) -> list[tuple[pa.Table, int]]:
    """Return each category's refined masks (schema.REFINED) and its number of kept pseudo-masks."""
    archive = Archive.open(folder / layout.ARCHIVE)
    solver = config.bilateral if config.experts.snap else None
    redrawn = []
    for category in cluster.members:
        samples = archive.thing_samples(category.name)
        masks, kept = redraw(expert, samples, config.experts, solver)
        table = archive.entries(category.name).select(schema.REFINED.names)
        encoded = pa.array([images.encode_mask(mask) for mask in masks], schema.TYPES["mask"])
        table = table.set_column(table.schema.get_field_index("mask"), "mask", encoded)
        redrawn.append((table, kept))
    return redrawn


def commit_cluster(
    config: Config,
    folder: Place,
    cluster: Cluster,
    expert: Module,
    redrawn: Sequence[tuple[pa.Table, int]],
) -> Commit:
    """Write the masks and the expert of a cluster to the run folder, and return the commit.

    `redrawn` is the result of `redraw_cluster`.
    """
    names = [category.name for category in cluster.members]
    save = partial(
        save_checkpoint, model=expert, name=config.segmenter.name,
        names=names if len(names) == 1 else ["thing"], step=config.experts.iterations,
        extra={} if len(names) == 1 else {"categories": names},
    )  # fmt: skip
    files: dict[str, Content] = {
        file: table for file, (table, _) in zip(cluster.files, redrawn, strict=True)
    }
    rows, kept = sum(table.num_rows for table, _ in redrawn), sum(kept for _, kept in redrawn)
    return write_unit(
        folder,
        REFINED,
        cluster.unit,
        files | {layout.expert_file(cluster.unit): save},
        rows=rows,
        counts={"redrawn": rows - kept, "kept": kept},
        input_digest=cluster.digest,
    )
