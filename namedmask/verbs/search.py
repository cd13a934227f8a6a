"""The command `search`: finds the images of a run that are closest to a text.

The text encoder of `embed.model` embeds the text as it is typed, or in the prompt templates of the
run, like a category's name. Nothing is fetched and no image is shown: the store has only the urls,
and it is not known which of the images are safe to look at.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from namedmask.categories import templates_of
from namedmask.config import Config, EmbedConfig
from namedmask.config.registry import resolve
from namedmask.embed.open_clip import EMBEDDERS, Embedder
from namedmask.embed.text import text_features
from namedmask.errors import InputError
from namedmask.retrieve.vectors import open_vectors
from namedmask.run.job import VerbRun
from namedmask.run.layout import RUN_RECORD
from namedmask.run.ledger import Ledger
from namedmask.run.progress import Progress
from namedmask.search.index import RECALL_AT, no_vectors
from namedmask.search.make import open_index

AS_TYPED = ("{}",)
"""The prompt templates that leave a text as it is."""

BATCH = 64
"""Maximum number of prompts per forward, so that a single query does not wait for a large batch."""


def search(
    config: Config, text: str, k: int, progress: Progress, *, templates: bool = False
) -> dict[str, Any]:
    """Return the `k` images of the run closest to a text, best first, and how they were found.

    The index is built if there is none for the run's vectors; see search/make.py. With `templates`
    the query is the mean over the run's prompt templates. `seconds` has the time of each step.

    Raises:
        InputError: the text is empty, k is below 1, or the run has no vectors.
        ConfigError: the vectors were made with other settings, or there are too few of them for
            search.kind.
        MissingExtraError: faiss is not installed.
    """
    if not text.strip():
        raise InputError("the text to search for is empty. Describe what the images should show.")
    if k < 1:
        raise InputError(f"search needs k of at least 1; got {k}.")
    if not (config.run.out / RUN_RECORD).is_file():
        raise no_vectors(config.run.out)
    ledger = Ledger(config.run.out)  # without the run's lock, so that a verb may work in the folder
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
    """The text encoder of the embedder, which is loaded on first use."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] = AS_TYPED) -> np.ndarray:
        """Return one vector per text, the mean over the prompts: (C, D) float32, unit L2 norm."""
        batch = min(len(texts) * len(prompts), BATCH)
        return text_features(self._embedder, texts, prompts, batch)

    @cached_property
    def _embedder(self) -> Embedder:
        return resolve("embedder", self._config.model, EMBEDDERS)(self._config)


class _Clock:
    """Seconds of consecutive steps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record the seconds since the last lap, or since the start, under `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
