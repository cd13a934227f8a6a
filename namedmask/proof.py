"""Which model made the published vectors? Their layout does not say, so a few are made again.

ViT-L/14 at 224 and at 336 pixels both make vectors 768 wide; a search with the wrong one runs
through and finds nonsense. Before a build spends more, the images of its best candidates are
fetched, embedded by the declared model, and compared with the vectors that were published of them.
The outcome stays in the run folder as `proof.json`, so that a build which goes on does not ask
again. No pixel of these images is kept.

Cost: twice `vectors.proof_images` requests, for about half of the web's old links are dead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.executor import Executor
from namedmask.jobs import Job, load_stage
from namedmask.ledger import read_json, settings_of, write_json
from namedmask.rounds import Offers

FILE = "proof.json"

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


def prove_model(executor: Executor, job: Job, offers: Offers, ruled_out: dict[str, str]) -> None:
    """Return when the embedder of the config made the vectors of these candidates.

    `ruled_out` candidates are not fetched.

    Raises:
        InputError: it did not, or too few of their images came to tell.
    """
    config = job.config
    path = job.ledger.folder / FILE
    asked = settings_of(config, ("vectors.source", "embed.model", "embed.weights"))
    found = read_json(path) if path.exists() else {}
    if found.get("settings") != asked:
        with job.clock("proof"), job.progress.step("proof", 1) as step:
            found = {"settings": asked} | _measure(executor, job, offers, ruled_out)
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


def _measure(
    executor: Executor, job: Job, offers: Offers, ruled_out: dict[str, str]
) -> dict[str, Any]:
    """Return how many images were `tried`, `by_status`, `compared`, and their `median_cosine`."""
    rows, expected = _best(offers, ruled_out, TRIES * job.config.vectors.proof_images)
    (made,) = executor.map(job, "embed", partial(Reembed, job.config), [rows])
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
    cosines = np.einsum("nd,nd->n", again, expected[came])
    return {
        "tried": rows.num_rows,
        "by_status": statuses,
        "compared": len(came),
        "median_cosine": round(float(np.median(cosines)), 6),
    }


def _best(offers: Offers, ruled_out: dict[str, str], count: int) -> tuple[pa.Table, np.ndarray]:
    """Return the best-ranked candidates over all categories, each image once, and their vectors.

    The vectors are (N, D) float32.
    """
    table = offers.candidates.append_column("row", pa.array(offers.index.ravel()))
    chosen: dict[str, tuple[str, int]] = {}
    for one in table.select(["sample_id", "url", "rank", "row"]).sort_by("rank").to_pylist():
        if len(chosen) == count:
            break
        if one["sample_id"] not in ruled_out:
            chosen.setdefault(one["sample_id"], (one["url"], one["row"]))
    rows = pa.table(
        {
            "sample_id": pa.array(chosen, pa.string()),
            "url": pa.array([url for url, _ in chosen.values()], pa.string()),
            "status": pa.array([schema.OK] * len(chosen), pa.string()),
        }
    )
    return rows, offers.vectors[[row for _, row in chosen.values()]]
