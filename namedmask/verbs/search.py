"""`namedmask search`: the images of a run's store that are closest to a text.

The text goes through the text side of `embed.model` as it is typed, or through the prompt templates
of the run, as a category's name would. Nothing is fetched and no picture shown: of most images in
the store nobody knows whether they are safe, and the links are all that is kept of them.
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

BATCH = 64
"""Prompts in one forward: a query alone need not wait for a whole batch of the method's."""


def search(
    config: Config, text: str, k: int, progress: Progress, *, templates: bool = False
) -> dict[str, Any]:
    """Return the `k` images of the run closest to a text, best first, and how they were found.

    The index is made when there is none for the run's vectors; see search_index.py.

    Raises:
        InputError: the text is empty, k below 1, or the run has no vectors.
        ConfigError: the vectors were made with other settings, or search.kind is not for so few.
        MissingExtraError: faiss is not installed.
    """
    if not text.strip():
        raise InputError("the text to search for is empty. Say in words what the image shows.")
    if k < 1:
        raise InputError(f"search needs k of at least 1; got {k}.")
    if not (config.run.out / RUN_RECORD).is_file():
        raise no_vectors(config.run.out)
    ledger = Ledger(config.run.out)  # without the run's lock: it may go on meanwhile
    if not config.vectors.source:
        VerbRun(config, ledger, progress).finished("embed")  # refuses other settings
    clock = _Clock()
    text_side = _TextSide(config.embed)
    index, manifest, made = open_index(
        config.run.out, open_vectors(config, ledger), config.search, text_side, progress
    )
    clock.lap("make" if made else "load")
    prompts = templates_of(config.categories) if templates else AS_TYPED
    query = text_side([text], prompts)
    clock.lap("text")
    ((scores, rows),) = index.search(query, k)
    found = index.rows.table(rows)
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
            for rank, (score, row) in enumerate(zip(scores, found.to_pylist(), strict=True))
        ],
    }


class _TextSide:
    """The text side of the embedder, loaded when it is first asked."""

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] = AS_TYPED) -> np.ndarray:
        """Return the vectors (C, D) float32 of texts, unit L2 norm, over prompt templates."""
        batch = min(len(texts) * len(prompts), BATCH)
        return text_features(self._embedder, texts, prompts, batch)

    @cached_property
    def _embedder(self) -> Embedder:
        return resolve("embedder", self._config.model, EMBEDDERS)(self._config)


class _Clock:
    """Seconds of one thing after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note what passed since the last lap."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
