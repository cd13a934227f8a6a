"""Embed category names: fill the names into prompt templates, and average the prompts' vectors.

Method: 85 templates per name; each prompt's vector is normalized before the mean, and the mean is
normalized again (method section 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from namedmask.categories import fill
from namedmask.config import EmbedConfig
from namedmask.embed.open_clip import Embedder, decoder_of, in_padded_batches, open_embedder, unit

TEXT_BATCH = 256
"""Number of prompts per forward pass; a shorter batch is padded."""


def text_features(
    embedder: Embedder, queries: Sequence[str], templates: Sequence[str], batch: int = TEXT_BATCH
) -> np.ndarray:
    """Return one vector per query, (C, D) float32, unit L2 norm, averaged over the templates.

    Each forward pass has `batch` prompts. With few queries, a smaller `batch` is faster.

    Method: each prompt's vector is normalized before the mean, and the mean is normalized again.
    """
    prompts = [fill(template, query) for query in queries for template in templates]
    vectors = unit(in_padded_batches(prompts, batch, embedder.embed_texts, embedder.dim))
    return unit(vectors.reshape(len(queries), len(templates), embedder.dim).mean(axis=1))


@dataclass(frozen=True)
class Prompts:
    """Inputs to embed: texts, the prompt templates for these texts, and encoded image files."""

    texts: Sequence[str]
    templates: tuple[str, ...]
    images: Sequence[bytes] = ()


class QueryEncoder:
    """An encoder of queries: texts with prompt templates, and example images."""

    def __init__(self, config: EmbedConfig) -> None:
        self._embedder = open_embedder(config)
        self._batch_size = config.batch_size

    def __call__(self, prompts: Mapping[str, Prompts]) -> dict[str, np.ndarray]:
        """Return the vectors of each name's prompts, (N, D) float32, unit L2 norm, by name.

        The vectors of the texts come first, then those of the images.

        Raises:
            BadImage: an image cannot be decoded.
        """
        embedder = self._embedder
        texts_of: dict[tuple[str, ...], list[str]] = {}
        for entry in prompts.values():
            texts_of.setdefault(entry.templates, []).extend(entry.texts)
        features = {
            templates: iter(text_features(embedder, texts, templates))
            for templates, texts in texts_of.items()
        }
        decode = decoder_of(embedder)
        images = [decode(data) for entry in prompts.values() for data in entry.images]
        vectors = iter(
            in_padded_batches(images, self._batch_size, embedder.embed_images, embedder.dim)
        )
        encoded = {}
        for name, entry in prompts.items():
            rows = [*islice(features[entry.templates], len(entry.texts))]
            rows += islice(vectors, len(entry.images))
            encoded[name] = np.array(rows, np.float32).reshape(-1, embedder.dim)
        return encoded
