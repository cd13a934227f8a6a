"""An embedder from outside the tree: SqueezeNet's 1000 ImageNet classes as the vector space.

Named in a run file as `model = "tests.real.squeezenet:squeezenet"`. The image side is the softmax,
the text side the one-hot of the class whose name the text holds, both of unit length. It answers
only texts with an ImageNet name: a stand-in where no CLIP weights are to be had.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torchvision.models import squeezenet1_1

from namedmask.categories import imagenet_names
from namedmask.config import EmbedConfig
from namedmask.errors import InputError
from namedmask.images.codec import center_crop, resize_shorter_side

BGR_MEAN = np.array([104.0, 117.0, 123.0], np.float32)


class SqueezeNet:
    """An Embedder of 1000 dimensions."""

    dim = 1000

    def __init__(self, path: str) -> None:
        self._model = squeezenet1_1()
        self._model.load_state_dict(torch.load(path, weights_only=True))
        self._model.eval()
        self._class_of = dict[str, int]()
        for index, name in enumerate(imagenet_names()):
            self._class_of.setdefault(name.lower(), index)
        longest_first = sorted(self._class_of, key=len, reverse=True)
        names = "|".join(re.escape(name) for name in longest_first)
        self._name = re.compile(rf"(?<!\w)(?:{names})(?!\w)")

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Return (B, 1000) float32, unit L2 norm, of B images (H, W, 3) uint8 RGB."""
        crops = [center_crop(resize_shorter_side(image, 256), 227) for image in images]
        blob = np.stack(crops)[..., ::-1].astype(np.float32) - BGR_MEAN
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(blob).permute(0, 3, 1, 2).contiguous())
        vectors = logits.softmax(dim=1).numpy()
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Return (B, 1000) float32 one-hot vectors of the longest ImageNet name in each text."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            found = self._name.findall(text.lower())
            if not found:
                raise InputError(f"'{text}' holds no ImageNet name; expected one of 1000.")
            vectors[row, self._class_of[max(found, key=len)]] = 1
        return vectors


def squeezenet(config: EmbedConfig) -> SqueezeNet:
    """Return the embedder of `embed.weights`."""
    return SqueezeNet(config.weights)
