"""Check that `embed.model` is the model that made the published vectors.

The layout of published vectors does not name their model, and the width of the vectors does not
identify it. For example, ViT-L/14 at 224 and at 336 pixels both make vectors of 768 numbers. A
search with the wrong model would run without an error and return nonsense. Before a build fetches
the images of its archives, this check fetches the images of the best-ranked candidates, embeds them
with `embed.model`, and compares the new vectors with the published vectors. It writes the outcome
to `proof.json` in the run folder, so that a resumed build does not repeat the check. It stores no
pixels.

Cost: twice `vectors.proof_images` requests, because about half of the web's old links are dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import Config, settings_of
from namedmask.errors import InputError
from namedmask.retrieve.candidates import CandidateList, published_vectors_of
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun
from namedmask.run.stages import open_stage
from namedmask.storage.files import read_json, write_json

URLS_PER_IMAGE = 2
"""Number of urls to fetch per image of `vectors.proof_images`."""

MIN_IMAGES = 10
"""Smallest number of images that the check needs, or half of the candidates if that is less."""


class Reembed:
    """A function that fetches images by url and embeds them with the configured model."""

    def __init__(self, config: Config) -> None:
        self._stages = [open_stage(name, config) for name in ("fetch", "embed")]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return sample_id, status and embedding, without pixels.

        `rows` have the columns sample_id, url and status.
        """
        for stage in self._stages:
            rows = stage(rows)
        return rows.select(["sample_id", "status", "embedding"])


def check_model(executor: Executor, run: VerbRun, lists: Sequence[CandidateList]) -> None:
    """Raise InputError unless `embed.model` made the published vectors of these candidates.

    Excluded candidates (in `own_statuses` of a list) are not fetched.

    Raises:
        InputError: the median cosine is below `vectors.proof_cosine`, or too few images could be
            fetched.
    """
    config = run.config
    path = run.ledger.folder / layout.MODEL_CHECK
    settings = settings_of(config, ("vectors.source", "embed.model", "embed.weights"))
    outcome = read_json(path) if path.exists() else {}
    if outcome.get("settings") != settings:
        with run.clock("proof"), run.progress.step("proof", 1) as step:
            outcome = {"settings": settings} | _measure(executor, run, lists)
            step.advance(1)
        write_json(path, outcome)
    if outcome["median_cosine"] < config.vectors.proof_cosine:
        raise InputError(
            f"vectors.source {config.vectors.source}: {outcome['compared']} images, embedded again "
            f"by embed.model = '{config.embed.model}' (embed.weights = '{config.embed.weights}'), "
            f"have a median cosine of {outcome['median_cosine']:.3f} with their published vectors; "
            f"expected at least vectors.proof_cosine = {config.vectors.proof_cosine:g}. Set "
            "embed.model and embed.weights to the model that the publisher of the vectors names."
        )


def _measure(executor: Executor, run: VerbRun, lists: Sequence[CandidateList]) -> dict[str, Any]:
    """Return the number of images `tried`, `by_status` and `compared`, and the `median_cosine`."""
    rows = _best(lists, URLS_PER_IMAGE * run.config.vectors.proof_images)
    made = executor.call(run, "embed", partial(Reembed, run.config), rows)
    good = schema.alive(made)
    statuses = schema.counts_by_status(made["status"].to_pylist())
    if len(good) < max(1, min(MIN_IMAGES, rows.num_rows // URLS_PER_IMAGE)):
        listed = ", ".join(f"{status} {count}" for status, count in statuses.items())
        raise InputError(
            f"only {len(good)} images of {rows.num_rows} candidates could be fetched "
            f"({listed or 'none tried'}). These are too few to check that embed.model made the "
            "vectors of vectors.source. Check the network, or raise vectors.proof_images."
        )
    vectors = np.array(made["embedding"].take(good).to_pylist(), np.float32)
    ids = made["sample_id"].take(good).to_pylist()
    published: dict[str, np.ndarray] = {}
    for candidates in lists:
        listed_vectors = published_vectors_of(run.ledger.folder, candidates.unit)
        published |= {key: listed_vectors[key] for key in ids if key in listed_vectors}
    expected = np.stack([published[sample_id] for sample_id in ids])
    cosines = np.einsum("nd,nd->n", vectors, expected.astype(np.float32))
    return {
        "tried": rows.num_rows,
        "by_status": statuses,
        "compared": len(good),
        "median_cosine": round(float(np.median(cosines)), 6),
    }


def _best(lists: Sequence[CandidateList], count: int) -> pa.Table:
    """Return up to `count` of the best-ranked candidates over all categories, each image once."""
    chosen: dict[str, str] = {}
    for rank in range(max((len(listed.sample_ids) for listed in lists), default=0)):
        for listed in lists:
            ids = listed.sample_ids
            if rank < len(ids) and ids[rank] not in listed.own_statuses:
                chosen.setdefault(ids[rank], listed.urls[rank])
        if len(chosen) >= count:
            break
    best = list(chosen.items())[:count]
    return pa.table(
        {
            "sample_id": pa.array([sample_id for sample_id, _ in best], pa.string()),
            "url": pa.array([url for _, url in best], pa.string()),
            "status": pa.array([schema.OK] * len(best), pa.string()),
        }
    )
