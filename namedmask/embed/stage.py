"""Image bytes and category names into one vector space.

Reads `image`, adds `embedding` (D float32, unit L2 norm) and `status` (`not_an_image`, `truncated`,
`too_many_pixels`, `not_finite` beside `ok`). Where a row brings the vector that was published of
its url in `expected`, an image with a cosine below `expected_cosine` is `content_changed`.

Every forward runs at one padded batch shape, so a vector does not depend on its neighbours, and the
text side is the method's: 85 prompts a name, each unit, their mean, unit again.

Cost per 1,000 images of 256 × 340, in seconds of one CPU core without decoding: 6 with the mini
world's model at 96 pixels, 105 with ViT-B/32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import EmbedConfig
from namedmask.config.registry import resolve
from namedmask.images.codec import BadImage
from namedmask.schema.status import CONTENT_CHANGED, NOT_FINITE
from namedmask.storage.read_ahead import one_ahead

if TYPE_CHECKING:
    pass
from namedmask.embed.open_clip import EMBEDDERS, _in_padded_batches, decoder_of


class Embed:
    """Image bytes → `embedding`, or the status that says why there is none."""

    name = "embed"
    reads = ("image",)
    adds = ("embedding", "status")

    def __init__(self, config: EmbedConfig) -> None:
        self.embedder = resolve("embedder", config.model, EMBEDDERS)(config)
        self._batch_size = config.batch_size
        self._is_ahead = config.device != "cpu"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with `embedding`, (D,) float32 of unit L2 norm, at every row still ok."""
        schema.require_columns(table, self.reads, self.name)
        rows = schema.alive(table)
        data = table["image"].take(rows).to_pylist()
        embeddings: list[np.ndarray | None] = []
        statuses: list[str] = []
        for decoded in self._decoded(data):
            for vector, status in self._embed(decoded):
                embeddings.append(vector)
                statuses.append(status)
        if "expected" in table.column_names:
            _refuse_changed(embeddings, statuses, table.take(rows))
        table = schema.update(table, rows, {"embedding": embeddings, "status": statuses})
        return schema.bury(table, ("image",))

    def _decoded(self, data: list[bytes]) -> Iterator[list[np.ndarray | str]]:
        """Yield the batches, decoded; while a GPU embeds one, the next is under way.

        On a CPU the forward has all cores: a thread that takes one away makes the others wait.
        """
        import torch

        read = partial(_decode, decoder_of(self.embedder))
        batches = [
            data[start : start + self._batch_size]
            for start in range(0, len(data), self._batch_size)
        ]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            decoded = (list(pool.map(read, batch)) for batch in batches)
            yield from one_ahead(decoded) if self._is_ahead else decoded

    def _embed(self, decoded: list[np.ndarray | str]) -> Iterator[tuple[np.ndarray | None, str]]:
        good = [image for image in decoded if not isinstance(image, str)]
        embedder = self.embedder
        vectors = iter(
            _in_padded_batches(good, self._batch_size, embedder.embed_images, embedder.dim)
        )
        for image in decoded:
            if isinstance(image, str):
                yield None, image
                continue
            vector = next(vectors)
            finite = bool(np.isfinite(vector).all())
            yield (vector, schema.OK) if finite else (None, NOT_FINITE)


def _refuse_changed(
    embeddings: list[np.ndarray | None], statuses: list[str], rows: pa.Table
) -> None:
    """Bury, in place, the embeddings that are too far from what their rows expect."""
    expected, least = rows["expected"].to_pylist(), rows["expected_cosine"].to_pylist()
    for number, vector in enumerate(embeddings):
        if vector is not None and vector @ np.asarray(expected[number]) < least[number]:
            embeddings[number], statuses[number] = None, CONTENT_CHANGED


def _decode(decoder: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray | str:
    """Return the image (H, W, 3) uint8 RGB, or the status that says why there is none."""
    try:
        return decoder(data)
    except BadImage as error:
        return error.status
