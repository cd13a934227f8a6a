"""The embed stage turns image bytes into vectors; text.py embeds texts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import EmbedConfig
from namedmask.embed.open_clip import decoder_of, in_padded_batches, open_embedder
from namedmask.images.codec import BadImage, size_of
from namedmask.images.limits import Limits, within
from namedmask.schema.status import CONTENT_CHANGED, NOT_FINITE
from namedmask.storage.read_ahead import prefetch_one


class Embed:
    """The stage that embeds images.

    Columns in: `image` (encoded bytes) and `status`. A row may also have `expected` ((D,) float16,
    the vector that was published for its url) and `expected_cosine`.

    Columns out: `embedding` ((D,) float32, unit L2 norm) and `status`. The status of a row without
    an embedding is `not_an_image`, `truncated`, `too_many_pixels`, `too_many_scans`, `not_finite`,
    or `content_changed` if the cosine of `embedding` and `expected` is below `expected_cosine`. The
    `image` of such a row becomes null.

    Cost per 1,000 images of 256 × 340 pixels on one CPU core, without decoding: 6 s with the mini
    world's model at 96 pixels, 105 s with ViT-B/32.

    Method: CLIP vectors of unit norm (method section 1). The only departure is that JPEGs are
    shrunk while they are decoded; see `OpenClip`. Every forward pass has the same padded batch
    shape, so that a vector does not depend on the other images in its batch.
    """

    name = "embed"
    reads = ("image",)
    adds = ("embedding", "status")
    limits = Limits()

    def __init__(self, config: EmbedConfig) -> None:
        self.embedder = open_embedder(config)
        self._batch_size = config.batch_size
        self._prefetches = config.device != "cpu"

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return `table` with `embedding` and `status`; `image` is null in each row that is not ok.

        Raises:
            SchemaError: `table` lacks `image` or `status`.
        """
        schema.require_columns(table, self.reads, self.name)
        rows = schema.alive(table)
        data = table["image"].take(rows)
        embeddings: list[np.ndarray | None] = []
        statuses: list[str] = []
        for decoded in self._decoded(data):
            for vector, status in self._embed(decoded):
                embeddings.append(vector)
                statuses.append(status)
        if "expected" in table.column_names:
            _drop_changed(embeddings, statuses, table.take(rows))
        table = schema.update(table, rows, {"embedding": embeddings, "status": statuses})
        return schema.bury(table, ("image",))

    def _decoded(self, data: pa.ChunkedArray) -> Iterator[list[np.ndarray | str]]:
        """Yield the batches of images or statuses; with a GPU, prefetch the next batch.

        Without a GPU there is no prefetch, because the forward pass uses all cores, and the other
        cores would wait for the core on which a thread decodes.
        """
        import torch

        read = partial(_decode, decoder_of(self.embedder, self.limits.max_pixels))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            decoded = (list(pool.map(read, batch)) for batch in self._batches(data))
            yield from prefetch_one(decoded) if self._prefetches else decoded

    def _batches(self, data: pa.ChunkedArray) -> Iterator[list[bytes]]:
        """Yield the encoded images in batches.

        An embedder with a decoder of its own returns small images. Otherwise a batch is smaller if
        its images have more than `limits.decoded_bytes`.
        """
        returns_small = hasattr(self.embedder, "decode")
        for start in range(0, len(data), self._batch_size):
            batch = data.slice(start, self._batch_size).to_pylist()
            limit = self.limits.decoded_bytes
            yield from [batch] if returns_small else within(batch, _decoded_bytes, limit)

    def _embed(self, decoded: list[np.ndarray | str]) -> Iterator[tuple[np.ndarray | None, str]]:
        good = [image for image in decoded if not isinstance(image, str)]
        embedder = self.embedder
        vectors = iter(
            in_padded_batches(good, self._batch_size, embedder.embed_images, embedder.dim)
        )
        for image in decoded:
            if isinstance(image, str):
                yield None, image
                continue
            vector = next(vectors)
            finite = bool(np.isfinite(vector).all())
            yield (vector, schema.OK) if finite else (None, NOT_FINITE)


def _decoded_bytes(data: bytes) -> int:
    """Return the bytes of an image after decoding; 0 if it cannot be decoded."""
    try:
        height, width = size_of(data, sys.maxsize)
    except BadImage:
        return 0
    return 3 * height * width


def _drop_changed(
    embeddings: list[np.ndarray | None], statuses: list[str], table: pa.Table
) -> None:
    """Set, in place, each embedding that is too far from its `expected` vector to None."""
    expected, least = table["expected"].to_pylist(), table["expected_cosine"].to_pylist()
    for row, vector in enumerate(embeddings):
        if vector is not None and vector @ np.asarray(expected[row]) < least[row]:
            embeddings[row], statuses[row] = None, CONTENT_CHANGED


def _decode(decoder: Callable[[bytes], np.ndarray], data: bytes) -> np.ndarray | str:
    """Return the image, (H, W, 3) uint8 RGB, or the status of a row that cannot be decoded."""
    try:
        return decoder(data)
    except BadImage as error:
        return error.status
