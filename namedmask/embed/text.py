"""Category names into vectors: prompts through templates, averaged.

Method: 85 templates per name; each prompt's vector has unit length before the mean, and so has the
mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from namedmask.categories import fill
from namedmask.config import EmbedConfig
from namedmask.config.registry import resolve

if TYPE_CHECKING:
    pass
from namedmask.embed.open_clip import EMBEDDERS, Embedder, _in_padded_batches, _unit, decoder_of

TEXT_BATCH = 256
"""Prompts in one forward, padded to it."""


def text_features(
    embedder: Embedder, queries: Sequence[str], templates: Sequence[str], batch: int = TEXT_BATCH
) -> np.ndarray:
    """Return one vector a query, (C, D) float32, unit L2 norm, averaged over the templates.

    `batch` prompts go through the model at once: for a few queries fewer are faster.

    Method: each prompt's vector has unit length before the mean, and so has the mean.
    """
    prompts = [fill(template, query) for query in queries for template in templates]
    vectors = _unit(_in_padded_batches(prompts, batch, embedder.embed_texts, embedder.dim))
    return _unit(vectors.reshape(len(queries), len(templates), embedder.dim).mean(axis=1))


@dataclass(frozen=True)
class Prompts:
    """What is to be encoded: texts through prompt templates, and encoded image files."""

    texts: Sequence[str]
    templates: tuple[str, ...]
    images: Sequence[bytes] = ()


class QueryEncoder:
    """The text side of the embedder, and its image side for example images."""

    def __init__(self, config: EmbedConfig) -> None:
        self._embedder = resolve("embedder", config.model, EMBEDDERS)(config)
        self._batch_size = config.batch_size

    def __call__(self, prompts: Mapping[str, Prompts]) -> dict[str, np.ndarray]:
        """Return (N, D) float32, unit L2 norm, per name: its texts' features, its images' vectors.

        Raises:
            BadImage: an image cannot be decoded.
        """
        embedder = self._embedder
        texts: dict[tuple[str, ...], list[str]] = {}
        for asked in prompts.values():
            texts.setdefault(asked.templates, []).extend(asked.texts)
        features = {
            templates: iter(text_features(embedder, listed, templates))
            for templates, listed in texts.items()
        }
        decode = decoder_of(embedder)
        images = [decode(data) for asked in prompts.values() for data in asked.images]
        vectors = iter(
            _in_padded_batches(images, self._batch_size, embedder.embed_images, embedder.dim)
        )
        answers = {}
        for name, asked in prompts.items():
            found = [*islice(features[asked.templates], len(asked.texts))]
            found += islice(vectors, len(asked.images))
            answers[name] = np.array(found, np.float32).reshape(-1, embedder.dim)
        return answers
