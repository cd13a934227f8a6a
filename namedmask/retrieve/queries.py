"""The query of each category: its prompts, and the unit in which its candidates are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from namedmask.categories import templates_of
from namedmask.config import CategoryConfig, Config, settings_of
from namedmask.embed.text import Prompts
from namedmask.errors import InputError
from namedmask.images.codec import BadImage, decode
from namedmask.run.label_ids import Label
from namedmask.storage import place_of

FOLLOWS_FROM = (
    "embed", "retrieve.backend", "retrieve.index", "retrieve.nprobe", "retrieve.candidates",
    "retrieve.near_duplicates", "retrieve.near_duplicate_cosine",
    "retrieve.violence_text", "retrieve.violence_cosine", "retrieve.violence_prompts",
    "retrieve.safety_head", "retrieve.safety_score", "vectors.source", "metadata.max_punsafe",
    "metadata.unknown_punsafe", "metadata.min_similarity", "metadata.max_similarity",
    "metadata.max_pwatermark", "metadata.min_side", "metadata.max_aspect",
)  # fmt: skip
"""Settings that a candidate list depends on, in addition to its category query."""


@dataclass(frozen=True)
class CategoryQuery:
    """The search for one category.

    `unit` names the category's candidate list in the run folder; the list may not exist yet.
    """

    label: Label
    rules: CategoryConfig
    prompts: Prompts  # texts: the query, more queries, negative queries; images: the examples
    unit: str

    def vectors(self, encoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the query vector (D,) and the negative vectors (N, D), float32, unit L2 norm.

        The query vector is the normalized mean over the query texts and the example images, all
        with equal weight. `encoded` are the vectors of `prompts`, (M, D) float32, unit L2 norm.
        """
        first = 1 + len(self.rules.queries)
        last = first + len(self.rules.negatives)
        mean = np.concatenate([encoded[:first], encoded[last:]]).mean(axis=0)
        return mean / np.linalg.norm(mean), encoded[first:last]


def queries_of(labels: Sequence[Label], config: Config, vectors_digest: str) -> list[CategoryQuery]:
    """Return the query of each category, for a search over the vectors of this digest.

    Raises:
        InputError: an example file is missing or is not an image.
    """
    settings = settings_of(config, FOLLOWS_FROM) | {"vectors": vectors_digest}
    templates = templates_of(config.categories)
    queries = []
    for label in labels:
        rules = config.categories.each.get(label.name, CategoryConfig())
        texts = (label.query, *rules.queries, *rules.negatives)
        examples = [read_example(label.name, path) for path in rules.examples]
        hashes = [hashlib.sha256(data).hexdigest() for data in examples]
        follows_from = [texts, len(rules.negatives), templates, hashes, settings]
        unit = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:20]
        queries.append(CategoryQuery(label, rules, Prompts(texts, templates, examples), unit))
    return queries


def read_example(name: str, path: str) -> bytes:
    """Return the bytes of an example image of the category `name`.

    Raises:
        InputError: the file is missing or is not an image.
    """
    try:
        data = place_of(path).read_bytes()
        decode(data)
    except (OSError, BadImage) as error:
        raise InputError(
            f"categories.each.'{name}'.examples: {path} cannot be read as an image: {error}. Give "
            "the path of an image file, or remove this path from the list."
        ) from error
    return data
