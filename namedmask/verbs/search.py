"""The command `search`, which finds the images of a run that are closest to a text.

The text encoder of `embed.model` embeds the text as it is typed, or in the run's prompt templates,
as for the name of a category. No image is fetched or shown, because the store has only urls, and it
is unknown which images are safe to look at.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from namedmask.categories import templates_of
from namedmask.config import Config, EmbedConfig
from namedmask.embed.open_clip import Embedder, open_embedder
from namedmask.embed.text import text_features
from namedmask.errors import InputError
from namedmask.retrieve.vectors import open_vectors
from namedmask.run.job import VerbRun
from namedmask.run.layout import RUN_RECORD
from namedmask.run.ledger import Ledger
from namedmask.run.progress import Progress
from namedmask.run.stages import opened
from namedmask.search.index import RECALL_AT, no_vectors
from namedmask.search.make import open_index

AS_TYPED = ("{}",)
"""Prompt templates that leave a text unchanged."""

BATCH = 64
"""Maximum number of prompts per forward pass.

Fewer prompts make a smaller batch, so that a single query is fast.
"""


def search(
    config: Config, text: str, k: int, progress: Progress, *, templates: bool = False
) -> dict[str, Any]:
    """Return the `k` images of the run closest to a text, best first, as `hits`, and their index.

    The index is built if there is no current index of the run's vectors; see search/make.py. With
    `templates`, the query is the mean over the run's prompt templates. `seconds` has the seconds
    per step.

    Raises:
        InputError: the text is empty, k is below 1, or the run has no vectors.
        ConfigError: the vectors were made with other settings, or there are too few vectors for
            search.kind.
        MissingExtraError: faiss is not installed, or `search.device` is cuda and faiss is the CPU
            build.
    """
    if not text.strip():
        raise InputError("the text to search for is empty. Describe the images to find.")
    if k < 1:
        raise InputError(f"search needs k of at least 1; got {k}.")
    if not (config.run.out / RUN_RECORD).is_file():
        raise no_vectors(config.run.out)
    ledger = Ledger(config.run.out)  # without the lock, so that a verb may run at the same time
    if not config.vectors.source:
        VerbRun(config, ledger, progress).finished("embed")  # raises if its settings have changed
    clock = _Clock()
    encoder = _TextEncoder(config.embed)
    index, manifest, made = open_index(
        config.run.out, open_vectors(config, ledger), config.search, encoder, progress
    )
    clock.lap("make" if made else "load")
    prompts = templates_of(config.categories) if templates else AS_TYPED
    query = encoder([text], prompts)
    clock.lap("text")
    ((scores, rows),) = index.search(query, k)
    hits = index.rows.table(rows)
    clock.lap("search")
    return {
        "text": text,
        "prompts": len(prompts),
        "vectors": len(index.rows),
        "index": manifest["kind"],
        "made_because": made,
        f"recall_at_{RECALL_AT}": manifest[f"recall_at_{RECALL_AT}"],
        "measured_on": manifest["measured_on"],
        "seconds": clock.seconds,
        "hits": [
            {"rank": rank, "score": round(float(score), 6), **row}
            for rank, (score, row) in enumerate(zip(scores, hits.to_pylist(), strict=True))
        ],
    }


class _TextEncoder:
    """A text encoder whose embedder is loaded on first use."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] = AS_TYPED) -> np.ndarray:
        """Return one vector per text, the mean over the prompts: (C, D) float32, unit L2 norm."""
        batch = min(len(texts) * len(prompts), BATCH)
        return text_features(self._embedder, texts, prompts, batch)

    @cached_property
    def _embedder(self) -> Embedder:
        return opened(partial(open_embedder, self._config), "embed.model of the run")


class _Clock:
    """A clock that measures the seconds of consecutive steps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record the seconds since the last lap, or since the start, under `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
