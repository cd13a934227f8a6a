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

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from namedmask import schema
from namedmask.ahead import one_ahead
from namedmask.categories import fill
from namedmask.clip_weights import add_in_float32, create_open_clip, loading
from namedmask.config import EmbedConfig
from namedmask.errors import CheckpointError
from namedmask.images import BadImage, decode
from namedmask.jpegs import decode_coarse
from namedmask.plugins import resolve, torch_device
from namedmask.reasons import CONTENT_CHANGED

if TYPE_CHECKING:
    import torch

TEXT_BATCH = 256
"""Prompts in one forward, padded to it."""

ENOUGH = 2
"""Pixels a side that an image keeps for each that the model sees, where a JPEG comes coarser."""

WIDEST = 16
"""Times its shorter side that a picture may be long. Where only the middle is seen, more is cut off
before the resizing: a line of pixels of 100 kB would come to gigabytes there."""

T = TypeVar("T")


class Embedder(Protocol):
    """What turns images and texts into comparable vectors.

    It may have `decode(data: bytes) -> np.ndarray` too, which many threads call at once: what of a
    file it needs, in a form that `embed_images` takes, for less work than `images.decode`.
    """

    dim: int

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B images (H, W, 3) uint8 RGB of any sizes."""
        ...

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B texts."""
        ...


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
class Wording:
    """What is asked for: texts through prompt templates, and encoded images beside them."""

    texts: Sequence[str]
    templates: tuple[str, ...]
    images: Sequence[bytes] = ()


class AskSide:
    """The embedder for whoever asks and has its resources."""

    def __init__(self, config: EmbedConfig) -> None:
        self._embedder = resolve("embedder", config.model, EMBEDDERS)(config)
        self._batch_size = config.batch_size

    def __call__(self, wordings: Sequence[Wording]) -> list[np.ndarray]:
        """Return (N, D) float32, unit L2 norm, of each: its texts' features, its images' vectors.

        Raises:
            BadImage: an image cannot be decoded.
        """
        embedder = self._embedder
        texts: dict[tuple[str, ...], list[str]] = {}
        for one in wordings:
            texts.setdefault(one.templates, []).extend(one.texts)
        features = {
            templates: iter(text_features(embedder, listed, templates))
            for templates, listed in texts.items()
        }
        decode = decoder_of(embedder)
        shown = [decode(data) for one in wordings for data in one.images]
        vectors = iter(
            _in_padded_batches(shown, self._batch_size, embedder.embed_images, embedder.dim)
        )
        answers = []
        for one in wordings:
            found = [*islice(features[one.templates], len(one.texts))]
            found += islice(vectors, len(one.images))
            answers.append(np.array(found, np.float32).reshape(-1, embedder.dim))
        return answers


def decoder_of(embedder: Embedder) -> Callable[[bytes], np.ndarray]:
    """Return bytes → (H, W, 3) uint8 RGB, raising BadImage: the embedder's own, or that of all."""
    decoder: Callable[[bytes], np.ndarray] = getattr(embedder, "decode", decode)
    return decoder


def _in_padded_batches(
    items: Sequence[T], size: int, forward: Callable[[list[T]], np.ndarray], dim: int
) -> np.ndarray:
    """Return forward's rows, (len(items), dim) float32, every call being given `size` items."""
    rows = [np.empty((0, dim), np.float32)]
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        padded = batch + batch[-1:] * (size - len(batch))
        rows.append(forward(padded)[: len(batch)])
    return np.concatenate(rows)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class OpenClip:
    """An Embedder around an open_clip model, its own preprocessing and its own tokenizer.

    `precision` is that of the networks: auto is bf16 on a GPU and float32 on a CPU. Norms, softmax
    and the vectors stay in float32, on a CPU so do the sums between a vision transformer's blocks.

    Differs: open_clip decodes a JPEG in full. Here libjpeg shrinks a large one on the way, never
    below twice the side that the model wants; the resizing to it is open_clip's, by torch's kernel
    instead of Pillow's where there is one: a fifth of the time, and of a photo 3 values in 1,000
    differ, by 2 levels of 256 at most.
    """

    def __init__(
        self, model: Any, tokenizer: Any, device: torch.device, precision: str = "auto"
    ) -> None:
        import open_clip
        import torch
        from torchvision.transforms import Resize, v2

        self.model = model.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._device = device
        self._bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
        if self._bf16 and device.type == "cpu":
            add_in_float32(self.model.visual)
        preprocessing = open_clip.transform.PreprocessCfg(
            **open_clip.get_model_preprocess_cfg(model)
        )
        *fit, _, _ = open_clip.transform.image_transform_v2(
            preprocessing, is_train=False
        ).transforms  # the last two are ToTensor and Normalize, here done by `_normalized`
        self._fits_tensors = isinstance(fit[0], Resize)
        self._fit = [
            v2.Resize(step.size, step.interpolation) if isinstance(step, Resize) else step
            for step in fit
        ]
        self._sees_middle = preprocessing.resize_mode == "shortest"
        size = preprocessing.size  # an int or a pair
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean, self.std = (
            torch.tensor(channels, device=device).view(1, 3, 1, 1)
            for channels in (preprocessing.mean, preprocessing.std)
        )
        self.dim: int = self.embed_texts([""]).shape[1]

    def decode(self, data: bytes) -> np.ndarray:
        """Return the image as the model sees it, (S, S, 3) uint8 RGB of its own size S.

        Raises:
            BadImage: as `images.decode`.
        """
        return self._fitted(decode_coarse(data, ENOUGH * max(self._size)))

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B images (H, W, 3) uint8 RGB of any sizes."""
        import torch

        batch = torch.from_numpy(np.stack([self._fitted(image) for image in images]))
        with self._inference():
            vectors = self.model.encode_image(self._normalized(batch.to(self._device)))
        return _unit(vectors.float().cpu().numpy())

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == self._size:
            return image
        seen = _middle(image) if self._sees_middle else image
        picture: Any = _tensor(seen) if self._fits_tensors else Image.fromarray(seen)
        for step in self._fit:
            picture = step(picture)
        return picture.permute(1, 2, 0).numpy() if self._fits_tensors else np.asarray(picture)

    def _normalized(self, batch: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, H, W) float32 of a (B, H, W, 3) uint8 batch, by open_clip's arithmetic."""
        pixels = batch.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return pixels.sub_(self.mean).div_(self.std)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16),
        ):
            yield

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B texts; cut at the model's context length."""
        with self._inference():
            vectors = self.model.encode_text(self._tokenizer(texts).to(self._device))
        return _unit(vectors.float().cpu().numpy())


def _tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image as (3, H, W) uint8 on the same memory where that can be written."""
    import torch

    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def _middle(image: np.ndarray) -> np.ndarray:
    """Return the middle of an image that is more than `WIDEST` times as long as wide; else it."""
    height, width = image.shape[:2]
    most = WIDEST * min(height, width)
    top, left = (max(0, (side - most) // 2) for side in (height, width))
    return image[top : height - top, left : width - left]


def load_clip_folder(folder: Path, device: torch.device, precision: str = "auto") -> OpenClip:
    """Return the embedder of a folder with `clip.json`, `clip.safetensors` and `bpe.txt.gz`.

    `clip.json` is an open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`); the merges of
    the tokenizer are in open_clip's own format. Weights may be stored in half precision; they run
    in `precision`.

    Raises:
        CheckpointError: a file is missing or broken, or they do not fit together.
    """
    import open_clip

    config_path, weights, merges = (folder / name for name in CLIP_FOLDER)
    for path in (config_path, weights, merges):
        if not path.is_file():
            raise CheckpointError(
                f"embedder 'miniworld': {path} is missing. Install the package again, or name "
                "another embedder in embed.model."
            )
    with loading(str(folder)):
        config = json.loads(config_path.read_text(encoding="utf-8"))
        text = config["text_cfg"]
        tokenizer = open_clip.SimpleTokenizer(str(merges), context_length=text["context_length"])
        if tokenizer.vocab_size != text["vocab_size"]:
            raise ValueError(
                f"{merges.name} makes {tokenizer.vocab_size} tokens, {config_path.name} expects "
                f"{text['vocab_size']}"
            )
        model = open_clip.CLIP(**config)
        open_clip.load_checkpoint(model, str(weights))
    return OpenClip(model, tokenizer, device, precision)


CLIP_FOLDER = ("clip.json", "clip.safetensors", "bpe.txt.gz")


def _miniworld(config: EmbedConfig) -> OpenClip:
    own = resources.files("namedmask.miniworld").joinpath("weights")
    device = torch_device(config.device, "embed")
    return load_clip_folder(Path(config.weights or str(own)), device, config.precision)


def _open_clip(config: EmbedConfig) -> OpenClip:
    import open_clip

    device = torch_device(config.device, "embed")
    model = create_open_clip(config)
    tokenizer = open_clip.get_tokenizer(config.model.partition(":")[2])
    return OpenClip(model, tokenizer, device, config.precision)


EMBEDDERS: dict[str, Callable[[EmbedConfig], Embedder]] = {
    "miniworld": _miniworld,
    "open_clip:": _open_clip,  # the model's name follows: open_clip:ViT-L-14
}


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
            yield (vector, schema.OK) if finite else (None, "not_finite")


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
