"""ReCo, a baseline that finds positions similar to what the images of a category have in common.

The best images of a category are compared position by position. The *seed* of an image is the
position with the highest mean similarity to its best matches in all images. The mean of the seeds
is the vector of the category. The product of a pixel is its similarity to that vector times its
similarity to the category's name according to CLIP.

Method: `networks/reco.py` and `utils/crf.py` of ReCo with their constants. Not known: how the paper
turned the product, which is at most 0.73, into a probability with a threshold of 0.9. The released
code feeds the product itself to softmax and CRF. With 20 names and no negative cosine, marginals
then reach at most 0.14 (test_reco.py). Here the product is therefore multiplied by 100 first, as
MaskCLIP's cosines are (`baselines.scale`, `post`). Differs: a position's affinities to one image
are used only for that image, whereas an indexing mistake of the original mixes in those of later
images; the images are those of the run's archives, checked and without near duplicates, whereas
the original retrieves its own from ImageNet; the user must provide the weights of the encoder
(DeiT-S/16, trained on stylized ImageNet); context words are the categories in the archives of
`baselines.context`, none by default.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from namedmask import images
from namedmask.archive.store import Archive
from namedmask.config import BaselinesConfig
from namedmask.config.registry import resolve, torch_device
from namedmask.errors import CheckpointError, InputError, unknown_name
from namedmask.evaluate.crf import dense_crf
from namedmask.evaluate.maskclip import DenseClip, fit
from namedmask.segmenter.backbone import TinyResNet
from namedmask.segmenter.checkpoint import MINIWORLD_BACKBONE
from namedmask.storage import place_of
from namedmask.weights.catalog import path_of
from namedmask.weights.tensors import load_strict, read_tensors

THRESHOLD = 0.9
"""Probability below which a pixel is background. Method: 0.9, the best on VOC2012 train."""

SETTINGS = (
    "model", "weights", "shorter_side", "normalization", "encoder", "encoder_weights", "images",
    "crop", "context", "post", "scale",
)  # fmt: skip
"""Keys of `[baselines]` that ReCo uses."""

SHARPNESS = 10.0
"""Factor on the cosine with a text before the sigmoid. Method: 10."""

BATCH = 10
"""Number of images of an archive per forward pass."""


class Encoder(Protocol):
    """A torch module whose features ReCo compares; ReCo puts the module into eval mode."""

    stride: int

    def __call__(self, batch: Tensor) -> Tensor:
        """Return features, (B, E, H / stride, W / stride), of images (B, 3, H, W) float32.

        The images are normalized with ImageNet's mean and deviation.
        """
        ...


class TinyEncoder(nn.Module):
    """The mini world's backbone as an encoder.

    Raises:
        CheckpointError: the weights are missing or do not fit.
    """

    stride = 8

    def __init__(self, config: BaselinesConfig) -> None:
        super().__init__()
        self.backbone = TinyResNet()
        path = path_of(config.encoder_weights or str(MINIWORLD_BACKBONE))
        load_strict(self.backbone, read_tensors(path), path, config.encoder)

    def forward(self, batch: Tensor) -> Tensor:
        """Return features, see `Encoder`."""
        out: Tensor = self.backbone(batch)["out"]
        return out


class TimmEncoder(nn.Module):
    """A timm ResNet that returns its last feature map, or a timm ViT that returns its last patches.

    The patches are normalized by the ViT's last layer norm.

    Raises:
        ConfigError: timm has no such model.
        CheckpointError: the weights are missing or do not fit.
    """

    def __init__(self, config: BaselinesConfig) -> None:
        super().__init__()
        name = config.encoder.partition(":")[2]
        if not timm.is_model(name):
            raise unknown_name("timm model", name, timm.list_models(f"*{name.partition('_')[0]}*"))
        options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
        model: Any = timm.create_model(name, **options)
        if isinstance(model, timm.models.VisionTransformer):
            model = timm.create_model(name, **options, dynamic_img_size=True)
        _load(model, config)
        self.stride = int(model.feature_info[-1]["reduction"])
        self._features = partial(
            model.forward_intermediates,
            indices=1, norm=True, output_fmt="NCHW", intermediates_only=True,
        )  # fmt: skip
        self.model = model

    def forward(self, batch: Tensor) -> Tensor:
        """Return features, see `Encoder`."""
        last: Tensor = self._features(batch)[-1]
        return last


def _load(model: nn.Module, config: BaselinesConfig) -> None:
    """Load an encoder's weights; their file may also hold a classifier, which is left out."""
    path = config.encoder_weights
    try:
        if not path_of(path).is_file():
            raise ValueError("it does not exist")
        state = load_state_dict(str(path_of(path)))
        lacking = model.load_state_dict(state, strict=False).missing_keys
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking[:3])}")
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, EOFError,
            pickle.UnpicklingError, SafetensorError) as error:  # fmt: skip
        # torch's own message advises loading the file with its code, so it is not shown
        reason = "it holds code, which is never run" if "weights_only" in str(error) else error
        raise CheckpointError(
            f"baselines.encoder_weights '{path}' cannot be loaded: {reason}. Expected a checkpoint "
            f"file of {config.encoder}."
        ) from error


ENCODERS: dict[str, Callable[[BaselinesConfig], Any]] = {
    "miniworld": TinyEncoder,
    "timm:": TimmEncoder,  # a prefix, as in timm:deit_small_distilled_patch16_224
}
"""Encoders by name; a name that ends in a colon is a prefix."""


class Places:
    """The two networks of ReCo, which give features and CLIP's attention at every position.

    Raises:
        ConfigError, CheckpointError, InputError: as `DenseClip` and the encoders.
    """

    def __init__(self, config: BaselinesConfig, device: str, templates: Sequence[str]) -> None:
        self.clip = DenseClip(config, device)
        self._config, self._templates = config, templates
        self._device = torch_device(device, "evaluate")
        encoder = resolve("encoder", config.encoder, ENCODERS)(config)
        self.encoder = encoder.eval().requires_grad_(False).to(self._device)

    def texts(self, queries: Sequence[str]) -> Tensor:
        """Return one vector per query, (C, D) float32, unit L2 norm."""
        return self.clip.texts(queries, self._templates)

    def features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Return the encoder's features, (B, E, h, w) float32.

        `pictures` are B images (H, W, 3) uint8 RGB of one size.
        """
        stride = self.encoder.stride
        fitted = [fit(picture, 0, stride) for picture in pictures]
        with torch.inference_mode():
            features: Tensor = self.encoder(images.to_tensor(fitted).to(self._device))
        return features.float()

    def attention(self, pictures: Sequence[np.ndarray], texts: Tensor) -> Tensor:
        """Return CLIP's similarity of every position to each text, (B, C, h, w) float32 in [0, 1].

        `pictures` are B images (H, W, 3) uint8 RGB of one size, `texts` vectors (C, D) float32.
        """
        fitted = [fit(picture, 0, self.clip.stride) for picture in pictures]
        vectors, _ = self.clip.features(fitted)
        return torch.sigmoid(SHARPNESS * torch.einsum("bdhw,cd->bchw", vectors, texts))

    def class_vector(
        self, encoded: Sequence[bytes], query: str, context: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the vector of a category, (E,) float32, unit L2 norm.

        Args:
            encoded: encoded images of the category, the best first.
            query: text that CLIP compares with each position of the images.
            context: vectors (E,) of context words; positions similar to them count less.
        """
        texts, parts = self.texts([query]), []
        pictures = [crop(images.decode(data), self._config.crop) for data in encoded]
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            features = self.features(batch)
            weights = _interpolate(self.attention(batch, texts), features.shape[2:])[:, 0]
            for vector in context.values():
                weights = weights * (1 - torch.sigmoid(_cosines(features, vector[None])[:, 0]))
            parts.append((features, weights))
        features, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        return cosegment(features, weights)


def crop(image: np.ndarray, side: int) -> np.ndarray:
    """Return the center of the image resized to a shorter side of `side`, (side, side, 3) uint8."""
    return images.center_crop(images.resize_shorter_side(image, side), side)


def cosegment(features: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of the images' seeds, (E,) float32, unit L2 norm.

    The score of a position is its best weighted cosine with the positions of an image, averaged
    over all images. The seed of an image is its position with the highest score.

    Args:
        features: (N, E, h, w) float32 of N images.
        weights: (N, h, w) float32, per position of an image, the factor of all cosines with it.
    """
    count, _, height, width = features.shape
    vectors = features.flatten(2)  # (N, E, P)
    unit = F.normalize(vectors, dim=1)
    scores = torch.zeros(count, height * width, device=features.device)
    for image, weight in zip(unit, weights.flatten(1), strict=True):
        cosines = torch.einsum("nep,eq->npq", unit, image)
        scores += (cosines * weight).amax(dim=2) / count
    seeds = vectors[torch.arange(count), :, scores.argmax(dim=1)]
    return F.normalize(seeds.mean(dim=0), dim=0)


class ClassVectors:
    """A callable that maps a category to its vector, computed from the archives of a run."""

    def __init__(
        self, archive: Archive, config: BaselinesConfig, device: str, templates: Sequence[str]
    ) -> None:
        self._archive, self._count = archive, config.images
        self._places = Places(config, device, templates)
        self._context: dict[str, Tensor] = {}
        if config.context:
            context = Archive.open(place_of(config.context))
            for word in context.categories:  # each vector depends on those before it
                vector = self._vector(context, word.name, word.query)
                self._context[word.name] = vector

    def __call__(self, category: tuple[str, str]) -> np.ndarray:
        """Return the vector of a category, (E,) float32, unit L2 norm.

        `category` is a pair of name and query. Method: a category that is also a context word has
        the vector of the context word.

        Raises:
            InputError: the archive has no image of the category.
        """
        name, query = category
        known = self._context.get(name)
        vector = self._vector(self._archive, name, query) if known is None else known
        return np.asarray(vector.cpu().numpy(), np.float32)

    def _vector(self, archive: Archive, name: str, query: str) -> Tensor:
        encoded = archive.entries(name)["image"].slice(0, self._count).to_pylist()
        if not encoded:
            raise InputError(
                f"archive {archive.folder} has no image of '{name}'; ReCo needs at least one. "
                "Build an archive of this category."
            )
        return self._places.class_vector(encoded, query, self._context)


class ReCo:
    """The ReCo baseline, which maps an image to the probability of each category per pixel."""

    def __init__(
        self, places: Places, queries: Sequence[str], vectors: np.ndarray, config: BaselinesConfig
    ) -> None:
        self._places, self._config = places, config
        self._texts = places.texts(queries)
        self._vectors = torch.from_numpy(vectors).to(self._texts.device)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return the probabilities of each category, (C, H, W) float32, without background.

        `image` is (H, W, 3) uint8 RGB. If `post` is "none", the results are the products, which do
        not sum to 1.
        """
        size, config = image.shape[:2], self._config
        small = fit(image, config.shorter_side, 1)
        likeness = torch.sigmoid(_cosines(self._places.features([small]), self._vectors))
        attention = self._places.attention([small], self._texts)
        product = _interpolate(likeness, size)[0] * _interpolate(attention, size)[0]
        if config.post == "none":
            return product
        probabilities = (config.scale * product).softmax(dim=0)
        if config.post == "softmax":
            return probabilities
        return torch.from_numpy(dense_crf(image, probabilities.cpu().numpy()))


def _cosines(features: Tensor, vectors: Tensor) -> Tensor:
    """Return the cosines (N, C, h, w) of features (N, E, h, w) and unit vectors (C, E)."""
    return torch.einsum("nehw,ce->nchw", F.normalize(features, dim=1), vectors)


def _interpolate(maps: Tensor, size: Iterable[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
