"""Categories as queries: the prompts of each, and the unit that its candidates are kept in."""

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
"""Settings that shape a candidate list, beside the query itself."""


@dataclass(frozen=True)
class CategoryQuery:
    """What is searched for one category, and the unit that its candidate list is or will be."""

    label: Label
    rules: CategoryConfig
    prompts: Prompts  # the query, more queries, negative queries; the examples
    unit: str

    def vectors(self, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the query's vector (D,) and the negative ones (N, D), all of unit length.

        `found`: (M, D) float32, of the texts and images of `prompts`. Texts and examples weigh the
        same.
        """
        first = 1 + len(self.rules.queries)
        last = first + len(self.rules.negatives)
        mean = np.concatenate([found[:first], found[last:]]).mean(axis=0)
        return mean / np.linalg.norm(mean), found[first:last]


def queries_of(labels: Sequence[Label], config: Config, vectors_digest: str) -> list[CategoryQuery]:
    """Return the query of each category, for vectors that have this digest.

    Raises:
        InputError: an example is missing or no image.
    """
    settings = settings_of(config, FOLLOWS_FROM) | {"vectors": vectors_digest}
    templates = templates_of(config.categories)
    queries = []
    for label in labels:
        rules = config.categories.each.get(label.name, CategoryConfig())
        texts = (label.query, *rules.queries, *rules.negatives)
        examples = [_example(label.name, path) for path in rules.examples]
        hashes = [hashlib.sha256(data).hexdigest() for data in examples]
        follows_from = [texts, len(rules.negatives), templates, hashes, settings]
        unit = hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:20]
        queries.append(CategoryQuery(label, rules, Prompts(texts, templates, examples), unit))
    return queries


def _example(name: str, path: str) -> bytes:
    try:
        data = place_of(path).read_bytes()
        decode(data)
    except (OSError, BadImage) as error:
        raise InputError(
            f"categories.each.'{name}'.examples: {path} gives no image: {error}. Give the path of "
            "an image file, or remove it from the list."
        ) from error
    return data
