"""The command `plan`, which shows the stages of a run and the images it needs; it starts nothing.

`ALIVE_SHARE` and `MEAN_IMAGE_BYTES` come from public reports, not from measurements, and the plan
says so. By these reports, about half of LAION-5B's urls are still alive (98 % at release, about 1 %
lost per month since), and an image on the web has 96 kB on average.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from namedmask import schema
from namedmask.categories import category_set_of, face_warning
from namedmask.config import Config
from namedmask.config.presets import departures
from namedmask.config.registry import resolve
from namedmask.errors import NamedMaskError
from namedmask.fetch.proxies import unused_proxy
from namedmask.metadata.parquet_tables import open_parquet
from namedmask.metadata.sources import places_of
from namedmask.retrieve.published import PublishedStore
from namedmask.retrieve.queries import queries_of
from namedmask.retrieve.vectors import open_vectors
from namedmask.run.label_ids import assign_labels, read_labels
from namedmask.run.layout import CANDIDATE_LISTS, RUN_RECORD
from namedmask.run.ledger import Ledger, read_commits
from namedmask.run.stages import checking_stages, memory_plan, processes_here, stage_class
from namedmask.run.verb_table import Verb, steps_of_road
from namedmask.storage import place_of
from namedmask.weights.catalog import listed

ALIVE_SHARE = 0.5
"""Assumed share of the urls from which an image can still be downloaded."""

MEAN_IMAGE_BYTES = 96_000
"""Assumed mean size of an encoded image on the web, in bytes."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run, with its verb, its columns, and its settings in a few words."""

    verb: str
    name: str
    reads: tuple[str, ...]  # columns
    adds: tuple[str, ...]  # columns
    choice: str  # model, device, sizes, … from the run file


def plan_of(config: Config) -> dict[str, Any]:
    """Return the plan of a run as plain values.

    Its keys are `run`, `preset` (its name, and the values that depart from it), `categories`,
    `stages`, `images` (see `expected_images`), `memory` (see `memory_plan`; with --local there is
    one process), `changes` (see `changes_of`) and `notes`.

    Raises:
        ConfigError: the categories cannot be read, or a detector, embedder, segmenter or benchmark
            is unknown.
        InputError: `vectors.source` is not in the published layout, or an example file of a
            category is missing or is not an image.
    """
    categories = category_set_of(config.categories)
    _require_known_names(config)
    rows = _published_rows(config) if config.vectors.source else _known_rows(config.metadata.source)
    changes = changes_of(config)
    count = len(changes["new"] if changes else categories.names)
    return {
        "run": str(config.run.out),
        "preset": {"name": config.run.preset, "departures": departures(config.tree())},
        "categories": {
            "set": categories.name,
            "count": len(categories.names),
            "names": list(categories.names),
        },
        "stages": [asdict(stage) for stage in stages_of(config)],
        "images": expected_images(config, count, rows),
        "memory": memory_plan(config, processes_here(config)),
        "changes": changes,
        "notes": _notes(config, len(categories.names), rows),
    }


def changes_of(config: Config) -> dict[str, Any]:
    """Return how the run file changes the categories of a run folder; {} without stored vectors.

    `new` lists the categories to search for. The search costs one scan over all `vectors` vectors,
    and each category then costs the fetch of its images. All other categories keep their archives,
    except for vetoed or blocked images. `removed` lists the categories that are no longer in the
    run file, and `renamed` the categories that have a new name there.

    Raises:
        InputError: an example file of a category is missing or is not an image.
    """
    folder = config.run.out
    if not (folder / RUN_RECORD).exists():
        return {}
    store, known = open_vectors(config, Ledger(folder)), read_labels(folder)
    files = store.files()
    if not files:
        return {}
    labels = assign_labels(known, category_set_of(config.categories))
    committed = read_commits(folder, CANDIDATE_LISTS)
    queries = queries_of(labels, config, store.digest())
    names = {label.label_id: label.name for label in labels}
    return {
        "new": [query.label.name for query in queries if query.unit not in committed],
        "removed": [label.name for label in known if label.label_id not in names],
        "renamed": [
            f"{label.name} → {names[label.label_id]}"
            for label in known
            if names.get(label.label_id, label.name) != label.name
        ],
        "vectors": sum(rows for _, _, rows in files),
    }


def stages_of(config: Config) -> list[PlannedStage]:
    """Return the stages of the run in order, without disabled stages."""
    planners = {"embed": _embed_stages, "build": _build_stages, "refine": _refine_stages}
    return [
        stage
        for verb in steps_of_road()
        if verb.applies(config)
        for stage in planners.get(verb.name, partial(_only_stage, verb))(config)
    ]


def _embed_stages(config: Config) -> Iterator[PlannedStage]:
    metadata = tuple(schema.METADATA.names)
    yield PlannedStage("embed", "metadata", (), metadata, "filters on safety, size and url")
    for name in ("fetch", "embed"):
        yield _class_stage("embed", name, config)


def _build_stages(config: Config) -> Iterator[PlannedStage]:
    candidates, retrieve = tuple(schema.CANDIDATES.names), config.retrieve.summary
    if not config.vectors.source:
        yield PlannedStage("build", "retrieve", ("embedding",), candidates, retrieve)
    else:
        vectors, filters = config.vectors, "filters on safety and size of candidates"
        check = f"{vectors.proof_images} images, median cosine at least {vectors.proof_cosine:g}"
        source = f"{retrieve}, from {vectors.source}"
        yield PlannedStage("build", "retrieve", (), candidates, source)
        yield PlannedStage("build", "metadata", (), ("status",), filters)
        yield PlannedStage("build", "proof", ("url",), (), check)
        yield _class_stage("build", "fetch", config)
    for name in checking_stages(config):
        if name == "embed":
            changed = f", changed below cosine {config.vectors.unchanged_cosine:g}"
            yield _class_stage("build", name, config, changed)
        elif name != "fetch":
            yield _class_stage("build", name, config)


def _refine_stages(config: Config) -> Iterator[PlannedStage]:
    yield PlannedStage("refine", "experts", ("image", "mask"), ("mask",), _experts_choice(config))


def _only_stage(verb: Verb, config: Config) -> Iterator[PlannedStage]:
    """Yield the single stage of a verb; the stage has the name of the verb."""
    section = getattr(config, verb.name, None)
    choice = section.summary if section is not None else verb.help
    if verb.name == "train":
        choice = f"{config.segmenter.name}, {choice}"
    reads = ("image", "mask") if verb.name == "train" else ()
    yield PlannedStage(verb.name, verb.name, reads, (), choice)


def _class_stage(verb: str, name: str, config: Config, suffix: str = "") -> PlannedStage:
    stage, choice = stage_class(name), getattr(config, name).summary
    return PlannedStage(verb, name, tuple(stage.reads), tuple(stage.adds), choice + suffix)


def expected_images(config: Config, num_categories: int, rows: int | None) -> dict[str, Any]:
    """Return how many images the archives need, and the expected numbers of urls and bytes.

    `rows` is the number of metadata rows or published vectors; None if it is unknown.
    """
    wanted = num_categories * config.retrieve.archive_size
    alive = 1.0 if _is_local(config) else ALIVE_SHARE
    first = num_categories * math.ceil(config.retrieve.archive_size * config.retrieve.overfetch)
    return {
        "wanted": wanted,
        "candidates_tried_first": first,
        "alive_share_assumed": alive,
        "attempts_expected": math.ceil(wanted / alive),
        "bytes_expected": 0 if _is_local(config) else wanted * MEAN_IMAGE_BYTES,
        "vectors" if config.vectors.source else "metadata_rows": rows,
    }


def _require_known_names(config: Config) -> None:
    chosen = [
        ("embed.open_clip", "EMBEDDERS", "embedder", config.embed.model),
        ("saliency.detectors", "DETECTORS", "saliency detector", config.saliency.detector),
        ("segmenter.deeplab", "SEGMENTERS", "segmenter", config.segmenter.name),
    ]
    if config.faces.enabled:
        chosen.append(("faces.detectors", "FACE_DETECTORS", "face detector", config.faces.detector))
    if config.evaluate.benchmark:
        chosen.append(("evaluate.benchmarks", "BENCHMARKS", "benchmark", config.evaluate.benchmark))
    for module, registry, kind, name in chosen:
        resolve(kind, name, getattr(importlib.import_module(f"namedmask.{module}"), registry))


def _experts_choice(config: Config) -> str:
    """Return the number of experts, their total number of steps, and their network, as text."""
    experts, categories = config.experts, len(category_set_of(config.categories).names)
    count = experts.clusters or categories
    of = f"clusters of up to {math.ceil(categories / count)}" if experts.clusters else "categories"
    steps = count * experts.iterations + experts.shared_iterations
    return f"{count:,} {of}: {steps:,} steps; {config.segmenter.name}, {experts.summary}"


def _is_local(config: Config) -> bool:
    sources = config.metadata.source
    return (
        bool(sources)
        and not config.vectors.source
        and all(os.path.isdir(source) for source in sources)
    )


def _source_notes(config: Config) -> list[str]:
    if config.vectors.source:
        folder = place_of(config.vectors.source)
        notes = [
            "the vectors are published; the verb embed is skipped and metadata.source is not read."
        ]
        if isinstance(folder, Path) and not folder.is_dir():
            notes.append(f"vectors.source '{folder}' is not a folder on this machine.")
        return notes
    notes = []
    for source in config.metadata.source:
        if "://" not in source:
            try:
                places_of((source,))
            except NamedMaskError as error:
                notes.append(f"on this machine, {error}")
    if not config.metadata.source:
        notes.append("metadata.source is empty. Name tables of urls, or a folder of images.")
    return notes


def _known_rows(sources: tuple[str, ...]) -> int | None:
    """Return the number of rows of all sources; None unless all are local, readable parquet."""
    try:
        paths = [path for source in sources for path in _local_places(source)]
        if any("://" in path or not path.lower().endswith(".parquet") for path in paths):
            return None
        total = 0
        for path in paths:
            with open_parquet(Path(path)) as file:
                total += file.metadata.num_rows
        return total if sources else None
    except (OSError, UnicodeError, pa.ArrowException, NamedMaskError):
        return None


def _local_places(source: str) -> list[str]:
    # plan starts nothing, so it also asks no server
    return [source] if "://" in source else places_of((source,))


def _published_rows(config: Config) -> int | None:
    """Return the number of published vectors; None if their folder is not on this machine.

    Raises:
        InputError: the folder is not in the published layout.
    """
    folder = place_of(config.vectors.source)
    if not isinstance(folder, Path) or not folder.is_dir():
        return None
    return PublishedStore(folder, config.metadata).count


def _weights_notes(config: Config) -> list[str]:
    """Return one note per setting whose weights file is not on this machine."""
    notes = []
    for row in listed(config):
        if row["state"] == "missing":
            notes.append(f"{row['setting']}: there is no such file on this machine.")
        elif row["state"] == "not fetched" and row["setting"].endswith(f" = {row['name']}"):
            notes.append(f"{row['setting']}: run 'namedmask weights fetch {row['name']}' first.")
    return notes


def _notes(config: Config, num_categories: int, rows: int | None) -> list[str]:
    notes = [*_source_notes(config), *_weights_notes(config)]
    if not _is_local(config):
        notes.append(
            f"attempts_expected assumes that {ALIVE_SHARE:.0%} of the urls are alive, and "
            f"bytes_expected that an image has {MEAN_IMAGE_BYTES // 1000} kB. Both numbers come "
            "from public reports, not from measurements."
        )
        if config.retrieve.candidates < config.retrieve.archive_size / ALIVE_SHARE:
            notes.append(
                f"retrieve.candidates = {config.retrieve.candidates} is low for archives of "
                f"{config.retrieve.archive_size} images if half of the urls are dead."
            )
    wanted = num_categories * config.retrieve.archive_size
    if rows is not None and rows < wanted:
        notes.append(
            f"there are {rows:,} rows for {wanted:,} wanted images. Unless categories share "
            "images, archives will not be full. Lower retrieve.archive_size or add metadata."
        )
    if warning := face_warning(config.categories, config.faces.enabled):
        notes.append(warning)
    if warning := unused_proxy(config.fetch):
        notes.append(warning)
    if not config.evaluate.benchmark:
        notes.append("evaluate.benchmark is empty, so the verb evaluate is not part of the run.")
    return notes
