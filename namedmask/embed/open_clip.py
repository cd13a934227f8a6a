"""The embedders (open_clip's models and the mini world's tiny CLIP) and their registry.

Every forward pass has the same padded batch shape, so that the vector of an image or text does not
depend on the rest of its batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from namedmask.config import EmbedConfig
from namedmask.config.registry import made, torch_device
from namedmask.embed.clip_weights import add_in_float32, asks_hub, create_open_clip, loading
from namedmask.embed.hub import hub
from namedmask.errors import CheckpointError
from namedmask.images.codec import decode
from namedmask.images.jpegs import decode_coarse
from namedmask.images.limits import MAX_PIXELS

if TYPE_CHECKING:
    import torch


DECODE_OVERSAMPLING = 2
"""When libjpeg shrinks an image while decoding, keep at least twice the model's input side."""

MAX_ASPECT = 16
"""Largest ratio of the longer to the shorter side of an image, for models that use only its middle.

The ends of a longer image are cropped before it is resized, because resizing a one-pixel-wide image
of 100 kB would take gigabytes."""

T = TypeVar("T")


class Embedder(Protocol):
    """An embedder turns images and texts into vectors of one space.

    An embedder may also have a thread-safe `decode(data: bytes, max_pixels: int) -> np.ndarray`
    that is faster than `images.decode`. It returns the part of an image file that the embedder
    needs, as an image that `embed_images` accepts, and raises BadImage like `images.decode`.
    """

    dim: int

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B images (H, W, 3) uint8 RGB of any sizes."""
        ...

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B texts."""
        ...


def open_embedder(config: EmbedConfig) -> Embedder:
    """Return the embedder that `embed.model` names.

    Raises:
        ConfigError: there is no such embedder, or a plug-in returns something else.
        CheckpointError, InputError: its weights cannot be loaded, or its device is missing.
    """
    needs = ("dim", "embed_images", "embed_texts")
    embedder: Embedder = made("embedder", config.model, EMBEDDERS, config, needs)
    return embedder


def decoder_of(embedder: Embedder, max_pixels: int = MAX_PIXELS) -> Callable[[bytes], np.ndarray]:
    """Return the embedder's `decode`, or `images.decode` if it has none, for up to `max_pixels`.

    The function maps the bytes of an image file to (H, W, 3) uint8 RGB.
    """
    return partial(getattr(embedder, "decode", decode), max_pixels=max_pixels)


def in_padded_batches(
    items: Sequence[T], size: int, forward: Callable[[list[T]], np.ndarray], dim: int
) -> np.ndarray:
    """Return the vectors of all items, (len(items), dim) float32.

    `forward` gets batches of exactly `size` items. A shorter last batch is padded with copies of
    its last item.
    """
    rows = [np.empty((0, dim), np.float32)]
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        padded = batch + batch[-1:] * (size - len(batch))
        rows.append(forward(padded)[: len(batch)])
    return np.concatenate(rows)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) or (D,) as float32 of the same shape, with unit L2 norm."""
    vectors = np.asarray(vectors, np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


class OpenClip:
    """An embedder around an open_clip model, with the model's own preprocessing and tokenizer.

    `precision` is the precision of the networks; auto is bf16 on a GPU and float32 on a CPU. Norms,
    softmax and the vectors stay in float32. On a CPU, the residual sums between the blocks of a
    vision transformer stay in float32 as well.

    Differs: open_clip decodes a JPEG at full size. Here libjpeg shrinks a large JPEG while decoding
    it, but never below twice the model's input side. The image is then resized as in open_clip. If
    the model's preprocessing starts with a plain resize, torch's kernel replaces Pillow's. It takes
    a fifth of the time, and 3 in 1,000 values of a photo differ, by at most 2 of 256 levels.
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
        ).transforms  # `_normalized` replaces the last two, ToTensor and Normalize
        self._fits_tensors = isinstance(fit[0], Resize)
        self._fit = [
            v2.Resize(step.size, step.interpolation) if isinstance(step, Resize) else step
            for step in fit
        ]
        self._sees_middle = preprocessing.resize_mode == "shortest"
        size = preprocessing.size  # an int, or a pair (height, width)
        self._size = (size, size) if isinstance(size, int) else tuple(size)
        self.mean, self.std = (
            torch.tensor(channels, device=device).view(1, 3, 1, 1)
            for channels in (preprocessing.mean, preprocessing.std)
        )
        self.dim: int = self.embed_texts([""]).shape[1]

    def decode(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Return the image at the model's input size (S, S), as (S, S, 3) uint8 RGB.

        Raises:
            BadImage: the file cannot be decoded; see `images.decode`.
        """
        least_side = DECODE_OVERSAMPLING * max(self._size)
        return self._fitted(decode_coarse(data, least_side, max_pixels))

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return (B, D) float32, unit L2 norm, of B images (H, W, 3) uint8 RGB of any sizes."""
        import torch

        batch = torch.from_numpy(np.stack([self._fitted(image) for image in images]))
        with self._inference():
            vectors = self.model.encode_image(self._normalized(batch.to(self._device)))
        return unit(vectors.float().cpu().numpy())

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        if image.shape[:2] == self._size:
            return image
        visible = _middle(image) if self._sees_middle else image
        picture: Any = _tensor(visible) if self._fits_tensors else Image.fromarray(visible)
        for step in self._fit:
            picture = step(picture)
        return picture.permute(1, 2, 0).numpy() if self._fits_tensors else np.asarray(picture)

    def _normalized(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a (B, H, W, 3) uint8 batch as (B, 3, H, W) float32, normalized as in open_clip."""
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
        """Return (B, D) float32, unit L2 norm, of B texts, truncated to the context length."""
        with self._inference():
            vectors = self.model.encode_text(self._tokenizer(texts).to(self._device))
        return unit(vectors.float().cpu().numpy())


def _tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image as (3, H, W) uint8, without a copy if it is writable and in C order."""
    import torch

    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)


def _middle(image: np.ndarray) -> np.ndarray:
    """Return the image with its longer side cropped to at most `MAX_ASPECT` times the shorter."""
    height, width = image.shape[:2]
    longest = MAX_ASPECT * min(height, width)
    top, left = (max(0, (side - longest) // 2) for side in (height, width))
    return image[top : height - top, left : width - left]


def load_clip_folder(folder: Path, device: torch.device, precision: str = "auto") -> OpenClip:
    """Return the embedder of a folder with `clip.json`, `clip.safetensors` and `bpe.txt.gz`.

    `clip.json` is an open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`). The merges of
    the tokenizer are in open_clip's own format. The weights may be stored in half precision; the
    model runs in `precision`.

    Raises:
        CheckpointError: a file is missing or broken, or the files do not fit together.
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
        config = json.loads(config_path.read_bytes())
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
"""File names in a folder that `load_clip_folder` reads: model config, weights, tokenizer merges."""


def _miniworld(config: EmbedConfig) -> OpenClip:
    default = resources.files("namedmask.miniworld").joinpath("weights")
    device = torch_device(config.device, "embed")
    return load_clip_folder(Path(config.weights or str(default)), device, config.precision)


def _open_clip(config: EmbedConfig) -> OpenClip:
    import open_clip

    device = torch_device(config.device, "embed")
    name = config.model.partition(":")[2]
    weights = f"embed.weights '{config.weights}' of {name}"
    with hub(weights) if asks_hub(config) else nullcontext():
        model = create_open_clip(config)
        tokenizer = open_clip.get_tokenizer(name)
    return OpenClip(model, tokenizer, device, config.precision)


EMBEDDERS: dict[str, Callable[[EmbedConfig], Embedder]] = {
    "miniworld": _miniworld,
    "open_clip:": _open_clip,  # the model's name follows: open_clip:ViT-L-14
}
"""Factory of each embedder, by its name or by the prefix of its name in `embed.model`."""
