"""The baseline ReCo: places like what the images of a category have in common.

A category's best images are compared place by place; in each image the place that all the others
have something like is its *seed*, and the mean of the seeds is the category's vector. A pixel's
product is how like that vector it is, times how like the category's name CLIP finds it.

Method: `networks/reco.py` and `utils/crf.py` of ReCo with their constants. Not known: what made of
the product, which 0.73 bounds, a probability whose threshold is 0.9. Its released code feeds the
product to softmax and CRF as it is; over 20 names, no cosine negative, marginals then end at 0.14
(test_reco.py), so here the product is multiplied by 100 first, as MaskCLIP's cosines are
(`baselines.scale`, `post`). Differs: a place's affinities to one image stay with that image, where
a slip of an index lets those of later ones in; the images are those of the run's archives, checked
and without near duplicates, where the original retrieves from ImageNet for itself; its encoder
(DeiT-S/16, trained on stylized ImageNet) is a file to give; context words are what
`baselines.context` has archives of, none by default.
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
from namedmask.weights.catalogue import path_of
from namedmask.weights.tensors import load_strict, read_tensors

THRESHOLD = 0.9
"""Background below it. Method: 0.9, the best on VOC2012 train."""

SETTINGS = (
    "model", "weights", "shorter_side", "normalization", "encoder", "encoder_weights", "images",
    "crop", "context", "post", "scale",
)  # fmt: skip
"""Keys of `[baselines]` that ReCo follows."""

SHARPNESS = 10.0
"""A cosine with a text goes into the sigmoid times this. Method: 10."""

BATCH = 10
"""Images of an archive in one forward."""


class Encoder(Protocol):
    """What ReCo compares places by; a torch module, which it puts into eval mode."""

    stride: int

    def __call__(self, batch: Tensor) -> Tensor:
        """Return features (B, D, H / stride, W / stride) of (B, 3, H, W), ImageNet-normalized."""
        ...


class TinyEncoder(nn.Module):
    """The mini world's backbone."""

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
    """A ViT or ResNet of timm: its last features, of a ViT the normalized patch tokens."""

    def __init__(self, config: BaselinesConfig) -> None:
        super().__init__()
        name = config.encoder.partition(":")[2]
        if not timm.is_model(name):
            raise unknown_name("timm model", name, timm.list_models(f"*{name.partition('_')[0]}*"))
        made: dict[str, Any] = {"pretrained": False, "num_classes": 0}
        model: Any = timm.create_model(name, **made)
        if isinstance(model, timm.models.VisionTransformer):
            model = timm.create_model(name, **made, dynamic_img_size=True)
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
    """Load an encoder's file, which may hold a classifier besides."""
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
        # torch's own text advises to load the file with code and all, so it is not passed on
        reason = "it holds code, which is never run" if "weights_only" in str(error) else error
        raise CheckpointError(
            f"baselines.encoder_weights '{path}' cannot be loaded: {reason}. Expected a checkpoint "
            f"file of {config.encoder}."
        ) from error


ENCODERS: dict[str, Callable[[BaselinesConfig], Any]] = {
    "miniworld": TinyEncoder,
    "timm:": TimmEncoder,  # the model's name follows: timm:deit_small_distilled_patch16_224
}


class Places:
    """Images to the features of their places, and what CLIP says of each."""

    def __init__(self, config: BaselinesConfig, device: str, templates: Sequence[str]) -> None:
        self.clip = DenseClip(config, device)
        self._config, self._templates = config, templates
        self._device = torch_device(device, "evaluate")
        encoder = resolve("encoder", config.encoder, ENCODERS)(config)
        self.encoder = encoder.eval().requires_grad_(False).to(self._device)

    def texts(self, queries: Sequence[str]) -> Tensor:
        """Return one vector a query, (C, D) float32, unit L2 norm."""
        return self.clip.texts(queries, self._templates)

    def features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Return the encoder's features (B, E, h, w) of (H, W, 3) uint8 RGB of one size."""
        stride = self.encoder.stride
        fitted = [fit(picture, 0, stride) for picture in pictures]
        with torch.inference_mode():
            found: Tensor = self.encoder(images.to_tensor(fitted).to(self._device))
        return found.float()

    def attention(self, pictures: Sequence[np.ndarray], texts: Tensor) -> Tensor:
        """Return how like each text CLIP finds every place, (B, C, h, w) float32, in [0, 1]."""
        fitted = [fit(picture, 0, self.clip.stride) for picture in pictures]
        vectors, _ = self.clip.features(fitted)
        return torch.sigmoid(SHARPNESS * torch.einsum("bdhw,cd->bchw", vectors, texts))

    def class_vector(
        self, encoded: Sequence[bytes], query: str, context: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the vector of a category by its best images, (E,) float32, unit L2 norm."""
        texts, parts = self.texts([query]), []
        pictures = [crop(images.decode(data), self._config.crop) for data in encoded]
        for start in range(0, len(pictures), BATCH):
            batch = pictures[start : start + BATCH]
            features = self.features(batch)
            weights = _grow(self.attention(batch, texts), features.shape[2:])[:, 0]
            for vector in context.values():
                weights = weights * (1 - torch.sigmoid(_cosines(features, vector[None])[:, 0]))
            parts.append((features, weights))
        features, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        return cosegment(features, weights)


def crop(image: np.ndarray, side: int) -> np.ndarray:
    """Return the center of an image whose shorter side is `side`, (side, side, 3) uint8."""
    return images.center_crop(images.resize_shorter_side(image, side), side)


def cosegment(features: Tensor, weights: Tensor) -> Tensor:
    """Return what the images have in common, (E,) float32, unit L2 norm.

    A place is worth, in the mean over all images, the best weighted cosine that it has with a place
    of each; the place of an image worth most is its seed.

    Args:
        features: (N, E, h, w) of N images.
        weights: (N, h, w), how much a place counts when others look for one like them.
    """
    count, _, height, width = features.shape
    places = features.flatten(2)  # (N, E, P)
    unit = F.normalize(places, dim=1)
    worth = torch.zeros(count, height * width, device=features.device)
    for image, weight in zip(unit, weights.flatten(1), strict=True):
        cosines = torch.einsum("nep,eq->npq", unit, image)
        worth += (cosines * weight).amax(dim=2) / count
    seeds = places[torch.arange(count), :, worth.argmax(dim=1)]
    return F.normalize(seeds.mean(dim=0), dim=0)


class ClassVectors:
    """Categories to their vectors, by the archives of a run."""

    def __init__(
        self, archive: Archive, config: BaselinesConfig, device: str, templates: Sequence[str]
    ) -> None:
        self._archive, self._count = archive, config.images
        self._places = Places(config, device, templates)
        self._context: dict[str, Tensor] = {}
        if config.context:
            context = Archive.open(place_of(config.context))
            for line in context.categories:  # each in view of those before it
                found = self._vector(context, line.name, line.query)
                self._context[line.name] = found

    def __call__(self, category: tuple[str, str]) -> np.ndarray:
        """Return the vector of a category, its name and query, (E,) float32, unit L2 norm.

        One that is context as well has the vector that it has there. Method.
        """
        name, query = category
        known = self._context.get(name)
        vector = self._vector(self._archive, name, query) if known is None else known
        return np.asarray(vector.cpu().numpy(), np.float32)

    def _vector(self, archive: Archive, name: str, query: str) -> Tensor:
        encoded = archive.entries(name)["image"].slice(0, self._count).to_pylist()
        if not encoded:
            raise InputError(f"archive {archive.folder} has no image of '{name}'; ReCo needs some.")
        return self._places.class_vector(encoded, query, self._context)


class ReCo:
    """The baseline: image in, probability of every category at every pixel out."""

    def __init__(
        self, places: Places, queries: Sequence[str], vectors: np.ndarray, config: BaselinesConfig
    ) -> None:
        self._places, self._config = places, config
        self._texts = places.texts(queries)
        self._vectors = torch.from_numpy(vectors).to(self._texts.device)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Return the probabilities of each category, (C, H, W) float32, without background.

        With `post` "none" they are products, and do not sum to 1.
        """
        size, config = image.shape[:2], self._config
        small = fit(image, config.shorter_side, 1)
        likeness = torch.sigmoid(_cosines(self._places.features([small]), self._vectors))
        attention = self._places.attention([small], self._texts)
        product = _grow(likeness, size)[0] * _grow(attention, size)[0]
        if config.post == "none":
            return product
        found = (config.scale * product).softmax(dim=0)
        if config.post == "softmax":
            return found
        return torch.from_numpy(dense_crf(image, found.cpu().numpy()))


def _cosines(features: Tensor, vectors: Tensor) -> Tensor:
    """Return (N, C, h, w) cosines of features (N, E, h, w) and vectors (C, E) of unit length."""
    return torch.einsum("nehw,ce->nchw", F.normalize(features, dim=1), vectors)


def _grow(maps: Tensor, size: Iterable[int]) -> Tensor:
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
