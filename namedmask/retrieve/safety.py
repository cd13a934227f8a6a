"""LAION's two safety filters on an image's CLIP vector, read from the published files.

The safety head is a small network that maps a vector to one number. An image is `unsafe` if the
number is above a threshold. The head's file has one of two forms:

* `.npz`: the arrays that Keras' `get_weights()` returns, in order (CLIP ViT-L/14 and B/32;
  docs/guide.md has the line that makes this file from the published zip). If the network normalizes
  its input, the mean, the variance and the count of the input come first. The kernel and the bias
  of each dense layer follow. There is a ReLU between layers and a sigmoid at the end.
* `.pth` or `.pt`: the state dict of a torch `Sequential` (OpenCLIP ViT-H/14). There is a ReLU
  between two layers, unless their numbers in the file are consecutive. The last layer is linear.

Keras' own formats (SavedModel, HDF5) are not supported, because they need TensorFlow.

The violence detector is a `.npy` file with two prompt vectors, (2, D) float32. An image whose
vector is nearer to the second prompt is `violent`.

Method: both filters are those of the authors' retrieval page; the threshold of all heads is 0.5.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from namedmask.config import RetrieveConfig
from namedmask.errors import CheckpointError
from namedmask.schema.status import UNSAFE, VIOLENT
from namedmask.storage import place_of
from namedmask.storage.place import fetched
from namedmask.weights.catalog import place_named

Filter = Callable[[np.ndarray], np.ndarray]
"""A function of vectors (N, D) float32, unit L2 norm; it returns (N,) bool, true to exclude."""

_BATCH_ROWS = 1024
"""Fixed number of vectors per forward pass, so that a score does not depend on its batch."""

_NORM_TOLERANCE = 0.02
"""Tolerance for the L2 norm of a prompt vector, which should be 1."""


@dataclass(frozen=True)
class Layer:
    """A dense layer: x @ kernel + bias, then a ReLU if `relu` is true."""

    kernel: np.ndarray  # (I, O) float32
    bias: np.ndarray  # (O,) float32
    relu: bool


@dataclass(frozen=True)
class SafetyHead:
    """A network that maps each vector to one number."""

    mean: np.ndarray  # (D,) float32; zeros if the network does not normalize its input
    scale: np.ndarray  # (D,) float32; ones if the network does not normalize its input
    layers: tuple[Layer, ...]
    sigmoid: bool

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the score of each vector, (N,) float32, for `vectors` (N, D) float32.

        The score is in [0, 1] for a head with a sigmoid.
        """
        scores = np.empty(len(vectors), np.float32)
        batch = np.zeros((_BATCH_ROWS, len(self.mean)), np.float32)
        for start in range(0, len(vectors), _BATCH_ROWS):
            part = vectors[start : start + _BATCH_ROWS]
            batch[: len(part)] = part
            scores[start : start + len(part)] = self._forward(batch)[: len(part)]
        return scores

    def _forward(self, x: np.ndarray) -> np.ndarray:
        x = (x - self.mean) / self.scale
        for layer in self.layers:
            x = x @ layer.kernel + layer.bias
            if layer.relu:
                x = np.maximum(x, 0)
        x = x[:, 0]
        return np.exp(-np.logaddexp(0, -x)) if self.sigmoid else x


def load_filters(config: RetrieveConfig, width: int) -> list[tuple[str, Filter]]:
    """Return the enabled filters, as pairs of a status and the filter that gives it.

    `width` is the number of elements per vector.

    Raises:
        CheckpointError: a file is missing, broken, or made for vectors of another width.
    """
    filters: list[tuple[str, Filter]] = []
    if file := config.safety_head:
        head = load_safety_head(file)
        _require_width(f"retrieve.safety_head '{file}'", len(head.mean), width)
        filters.append((UNSAFE, partial(_is_above, head, config.safety_score)))
    if file := config.violence_prompts:
        prompts = load_prompts(file)
        _require_width(f"retrieve.violence_prompts '{file}'", prompts.shape[1], width)
        filters.append((VIOLENT, partial(_is_nearer_to_second, prompts)))
    return filters


def load_safety_head(file: str) -> SafetyHead:
    """Return the safety head in a file; see the module docstring for the forms of the file.

    Raises:
        CheckpointError: the file is missing, has another form, or contains no such network.
    """
    loaders = {".npz": _from_keras, ".pth": _from_torch, ".pt": _from_torch}
    place = place_named(file)
    if place.suffix not in loaders:
        raise CheckpointError(
            f"retrieve.safety_head '{file}' ends in '{place.suffix}'; expected .npz, .pth or .pt. "
            "To convert Keras' own files into an .npz, use the line in docs/guide.md."
        )
    try:
        with fetched(place) as path:
            return loaders[place.suffix](path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError,
            RuntimeError, StopIteration, CheckpointError, zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(
            f"retrieve.safety_head '{file}' cannot be read as a safety head: {error}. Expected "
            "a safety head of LAION; see docs/guide.md."
        ) from error


def load_prompts(file: str) -> np.ndarray:
    """Return the two prompt vectors in a file, (2, D) float32, unit L2 norm.

    Raises:
        CheckpointError: the file is missing, or contains anything else.
    """
    try:
        with fetched(place_of(file)) as path:
            prompts = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"retrieve.violence_prompts '{file}' cannot be read: {error}"
        ) from error
    if not isinstance(prompts, np.ndarray) or prompts.ndim != 2 or len(prompts) != 2:
        raise CheckpointError(
            f"retrieve.violence_prompts '{file}' is {getattr(prompts, 'shape', 'no array')}; "
            "expected (2, D): the vector of a harmless prompt, then that of a violent prompt."
        )
    prompts = prompts.astype(np.float32)
    norms = np.linalg.norm(prompts, axis=1, keepdims=True)
    if not (np.abs(norms - 1) < _NORM_TOLERANCE).all():
        raise CheckpointError(
            f"retrieve.violence_prompts '{file}' has norms {norms.ravel()}; expected unit length."
        )
    result: np.ndarray = prompts / norms
    return result


def _is_above(head: SafetyHead, score: float, vectors: np.ndarray) -> np.ndarray:
    return head(vectors) > score


def _is_nearer_to_second(prompts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    is_violent: np.ndarray = (vectors @ prompts.T).argmax(axis=1) == 1
    return is_violent


def _require_width(place: str, own: int, width: int) -> None:
    if own != width:
        raise CheckpointError(
            f"{place} is made for vectors {own} wide; the vectors here are {width} wide. Name "
            "the file made for the model in embed.model, or leave the key empty."
        )


def _from_keras(path: Path) -> SafetyHead:
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[name] for name in file.files]
    first = next((n for n, pair in enumerate(pairwise(arrays)) if _is_dense(*pair)), None)
    if first is None:
        raise ValueError("it has no kernel that is followed by its bias")
    kernels, biases = arrays[first::2], arrays[first + 1 :: 2]
    width = kernels[0].shape[0]
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    if first:
        mean, variance = (array.ravel().astype(np.float32) for array in arrays[:2])
        scale = np.maximum(np.sqrt(variance), np.float32(1e-7))  # Keras' own epsilon
    last = len(kernels) - 1
    layers = [
        Layer(kernel.astype(np.float32), bias.astype(np.float32), relu=number < last)
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
    ]
    return _checked(SafetyHead(mean, scale, tuple(layers), sigmoid=True))


def _is_dense(kernel: np.ndarray, bias: np.ndarray) -> bool:
    return kernel.ndim == 2 and kernel.shape[1:] == bias.shape


def _from_torch(path: Path) -> SafetyHead:
    from namedmask.weights.tensors import read_tree

    state = read_tree(path)
    matches = (re.search(r"(\d+)\.weight$", key) for key in state)
    numbers = sorted(int(match[1]) for match in matches if match)
    prefix = next(key for key in state if key.endswith(f"{numbers[0]}.weight"))
    prefix = prefix.removesuffix(f"{numbers[0]}.weight")
    layers = []
    for number, following in zip(numbers, [*numbers[1:], numbers[-1] + 1], strict=True):
        kernel, bias = (
            state[f"{prefix}{number}.{name}"].float().numpy() for name in ("weight", "bias")
        )
        layers.append(Layer(np.ascontiguousarray(kernel.T), bias, relu=following > number + 1))
    width = layers[0].kernel.shape[0]
    mean, scale = np.zeros(width, np.float32), np.ones(width, np.float32)
    return _checked(SafetyHead(mean, scale, tuple(layers), sigmoid=False))


def _checked(head: SafetyHead) -> SafetyHead:
    """Return `head` if the shapes of its parts match.

    Raises:
        ValueError: the shapes do not match, or a number is not finite.
    """
    widths: Sequence[int] = [len(head.mean), *(len(layer.bias) for layer in head.layers)]
    shapes = [layer.kernel.shape for layer in head.layers]
    expected = list(pairwise(widths))
    if shapes != expected or widths[-1] != 1 or head.scale.shape != head.mean.shape:
        raise ValueError(
            f"it has kernels of {shapes} and biases of {widths[1:]}, which do not fit or do not "
            "end in one number"
        )
    parts = [
        head.mean,
        head.scale,
        *(p for layer in head.layers for p in (layer.kernel, layer.bias)),
    ]
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("a number in it is not finite")
    return head
