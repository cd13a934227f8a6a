"""Waves of made-up vectors, committed to a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import Config
from namedmask.run.layout import EMBEDDINGS
from namedmask.run.ledger import open_run
from namedmask.run.stores import WaveWriter
from tests import toys

WORDS = list(toys.COLORS)
EMBEDDER = toys.ThumbnailEmbedder()


def vectors_of(count: int, seed: int, words: Sequence[str] = WORDS) -> np.ndarray:
    """Return (count, 108) unit vectors about the texts of colors, in turn."""
    rng = np.random.default_rng(seed)
    ground = EMBEDDER.embed_texts([words[row % len(words)] for row in range(max(count, 1))])[:count]
    vectors = ground + 0.15 * rng.standard_normal(ground.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def add_wave(
    out: Path, unit: str, count: int, *, caption: Callable[[int], str | None] | None = None
) -> np.ndarray:
    """Commit a wave with a tombstone to a run folder; return its good vectors."""
    vectors = vectors_of(count, int(unit))
    say = caption or (lambda row: f"a {WORDS[row % 3]} thing, number {row}")
    columns = {
        "sample_id": [f"{unit}{row:015d}" for row in range(count + 1)],
        "url": [f"http://example.org/{unit}/{row}.jpg" for row in range(count + 1)],
        "caption": [say(row) for row in range(count + 1)],
        "image_height": [8] * (count + 1),
        "image_width": [8] * (count + 1),
        "embedding": [*vectors.tolist(), None],
        "status": [schema.OK] * count + ["http_404"],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema.EMBEDDINGS]
    add_table(out, unit, pa.Table.from_arrays(arrays, schema=schema.EMBEDDINGS))
    return vectors


def add_table(out: Path, unit: str, table: pa.Table) -> None:
    """Commit rows of vectors to a run folder as a wave."""
    with open_run(out), WaveWriter(out, EMBEDDINGS, unit, unit) as writer:
        writer.add(table)
        writer.commit()


def search_config(out: Path, *overrides: str) -> Config:
    return Config.of(
        {"run": {"out": str(out)}, "embed": {"model": "tests.toys:embedder"}}, overrides
    )
