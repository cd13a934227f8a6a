"""The embedders: open_clip's models, the mini world's tiny CLIP, and the registry of both.

Every forward runs at one padded batch shape, so a vector does not depend on its neighbors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from namedmask.config import EmbedConfig
from namedmask.config.registry import torch_device
from namedmask.embed.clip_weights import add_in_float32, create_open_clip, loading
from namedmask.errors import CheckpointError
from namedmask.images.codec import decode
from namedmask.images.jpegs import decode_coarse

if TYPE_CHECKING:
    import torch


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
