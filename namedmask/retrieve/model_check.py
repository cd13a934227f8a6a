"""Which model made the published vectors? Their layout does not say, so a few are made again.

ViT-L/14 at 224 and at 336 pixels both make vectors 768 wide; a search with the wrong one runs
through and finds nonsense. Before a build spends more, the images of its best candidates are
fetched, embedded by the declared model, and compared with the vectors that were published of them.
The outcome stays in the run folder as `proof.json`, so that a build which goes on does not query
again. No pixel of these images is kept.

Cost: twice `vectors.proof_images` requests, for about half of the web's old links are dead.
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
from namedmask.run.stages import load_stage
from namedmask.storage.files import read_json, write_json

TRIES = 2
"""Urls asked for each image wanted."""

FEWEST = 10
"""Images that a proof needs, unless fewer are offered."""


class Reembed:
    """Urls → the vectors that the declared model makes of what they give now."""

    def __init__(self, config: Config) -> None:
        self._stages = [load_stage(name, config) for name in ("fetch", "embed")]

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows (sample_id, url, status) with `embedding`, and without pixels."""
        for stage in self._stages:
            rows = stage(rows)
        return rows.select(["sample_id", "status", "embedding"])


def check_model(executor: Executor, run: VerbRun, lists: Sequence[CandidateList]) -> None:
    """Return when the embedder of the config made the vectors of these candidates.

    Candidates that are ruled out already are not fetched.

    Raises:
        InputError: it did not, or too few of their images came to tell.
    """
    config = run.config
    path = run.ledger.folder / layout.MODEL_CHECK
    asked = settings_of(config, ("vectors.source", "embed.model", "embed.weights"))
    found = read_json(path) if path.exists() else {}
    if found.get("settings") != asked:
        with run.clock("proof"), run.progress.step("proof", 1) as step:
            found = {"settings": asked} | _measure(executor, run, lists)
            step.advance(1)
        write_json(path, found)
    if found["median_cosine"] < config.vectors.proof_cosine:
        raise InputError(
            f"vectors.source {config.vectors.source}: {found['compared']} images, embedded again "
            f"by embed.model = '{config.embed.model}' (embed.weights = '{config.embed.weights}'), "
            f"have a median cosine of {found['median_cosine']:.3f} with their published vectors; "
            f"expected at least vectors.proof_cosine = {config.vectors.proof_cosine:g}. Set "
            "embed.model and embed.weights to the model that their publisher names."
        )


def _measure(executor: Executor, run: VerbRun, lists: Sequence[CandidateList]) -> dict[str, Any]:
    """Return how many images were `tried`, `by_status`, `compared`, and their `median_cosine`."""
    rows = _best(lists, TRIES * run.config.vectors.proof_images)
    made = executor.call(run, "embed", partial(Reembed, run.config), rows)
    came = schema.alive(made)
    statuses = schema.counts_by_status(made["status"].to_pylist())
    if len(came) < max(1, min(FEWEST, rows.num_rows // TRIES)):
        listed = ", ".join(f"{status} {count}" for status, count in statuses.items())
        raise InputError(
            f"of {rows.num_rows} candidates {len(came)} images came ({listed or 'none tried'}): "
            "too few to prove that embed.model made the vectors of vectors.source. Is the network "
            "there? Else raise vectors.proof_images."
        )
    again = np.array(made["embedding"].take(came).to_pylist(), np.float32)
    ids = made["sample_id"].take(came).to_pylist()
    published: dict[str, np.ndarray] = {}
    for candidates in lists:
        found = published_vectors_of(run.ledger.folder, candidates.unit)
        published |= {one: found[one] for one in ids if one in found}
    expected = np.stack([published[one] for one in ids])
    cosines = np.einsum("nd,nd->n", again, expected.astype(np.float32))
    return {
        "tried": rows.num_rows,
        "by_status": statuses,
        "compared": len(came),
        "median_cosine": round(float(np.median(cosines)), 6),
    }


def _best(lists: Sequence[CandidateList], count: int) -> pa.Table:
    """Return the best-ranked candidates over all categories, each image once."""
    chosen: dict[str, str] = {}
    for rank in range(max((len(one.sample_ids) for one in lists), default=0)):
        for one in lists:
            if rank < len(one.sample_ids) and one.sample_ids[rank] not in one.own_statuses:
                chosen.setdefault(one.sample_ids[rank], one.urls[rank])
        if len(chosen) >= count:
            break
    best = list(chosen.items())[:count]
    return pa.table(
        {
            "sample_id": pa.array([one for one, _ in best], pa.string()),
            "url": pa.array([url for _, url in best], pa.string()),
            "status": pa.array([schema.OK] * len(best), pa.string()),
        }
    )
