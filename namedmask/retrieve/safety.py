"""Unsafe or violent, told by an image's CLIP vector: LAION's two filters in their published forms.

The safety head is a small network from a vector to one number, `unsafe` above a threshold. Its file
is one of two kinds:

* `.npz`: what Keras' `get_weights()` returns, in order (CLIP ViT-L/14 and B/32; docs/guide.md has
  the line that makes it from the published zip): mean and variance of the
  input and their count where it is normalised first, then kernel and bias of each dense layer.
  ReLU between them, a sigmoid at the end.
* `.pth` or `.pt`: the state dict of torch's `Sequential` (OpenCLIP ViT-H/14). Layers whose numbers
  follow one another directly have nothing between them, others a ReLU; the end is linear.

Keras' own formats (SavedModel, HDF5) are not read: they want TensorFlow.

The violence detector is two prompts in a `.npy`, (2, D) float32: an image nearer to the second is
`violent`.

Method: both as in the seed's retrieval page, with 0.5 as the threshold of every safety head.
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
from namedmask.weights.catalogue import place_named

Filter = Callable[[np.ndarray], np.ndarray]
"""Vectors (N, D) float32 of unit length → (N,) bool: those to be dropped."""

_BATCH_ROWS = 1024
"""Vectors in one forward, always this many, so that a score does not depend on the others."""

_SAME = 0.02
"""How far from unit length a prompt may be."""


@dataclass(frozen=True)
class Layer:
    """x @ kernel + bias, then ReLU unless the next layer follows directly or there is none."""

    kernel: np.ndarray  # (I, O) float32
    bias: np.ndarray  # (O,) float32
    relu: bool


@dataclass(frozen=True)
class SafetyHead:
    """A network from vectors to one number each."""

    mean: np.ndarray  # (D,) float32; zeros where the input is taken as it is
    scale: np.ndarray  # (D,) float32; ones likewise
    layers: tuple[Layer, ...]
    sigmoid: bool

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Return the score of each of (N, D) float32 vectors, (N,) float32."""
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
    """Return the tests that the config asks for, each with the status it gives.

    Raises:
        CheckpointError: a file is missing or broken, or made for vectors of another width.
    """
    tests: list[tuple[str, Filter]] = []
    if file := config.safety_head:
        head = load_safety_head(file)
        _require_width(f"retrieve.safety_head '{file}'", len(head.mean), width)
        tests.append((UNSAFE, partial(_is_above, head, config.safety_score)))
    if file := config.violence_prompts:
        prompts = load_prompts(file)
        _require_width(f"retrieve.violence_prompts '{file}'", prompts.shape[1], width)
        tests.append((VIOLENT, partial(_is_nearer_to_second, prompts)))
    return tests


def load_safety_head(file: str) -> SafetyHead:
    """Return the head in a file; see above for its forms.

    Raises:
        CheckpointError: the file is missing, of another kind, or holds no such network.
    """
    loaders = {".npz": _from_keras, ".pth": _from_torch, ".pt": _from_torch}
    place = place_named(file)
    if place.suffix not in loaders:
        raise CheckpointError(
            f"retrieve.safety_head '{file}' ends in '{place.suffix}'; expected .npz, .pth or .pt. "
            "Keras' own files are turned into an .npz by the line in docs/guide.md."
        )
    try:
        with fetched(place) as path:
            return loaders[place.suffix](path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError,
            RuntimeError, StopIteration, CheckpointError, zipfile.BadZipFile) as error:  # fmt: skip
        raise CheckpointError(
            f"retrieve.safety_head '{file}' cannot be read as a safety head: {error}. Expected "
            "LAION's, as docs/guide.md tells."
        ) from error


def load_prompts(file: str) -> np.ndarray:
    """Return the two prompts in a file, (2, D) float32, unit L2 norm.

    Raises:
        CheckpointError: it is missing, or holds something else.
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
            "expected (2, D): the prompt of what may stay, and that of violence."
        )
    prompts = prompts.astype(np.float32)
    norms = np.linalg.norm(prompts, axis=1, keepdims=True)
    if not (np.abs(norms - 1) < _SAME).all():
        raise CheckpointError(
            f"retrieve.violence_prompts '{file}' has norms {norms.ravel()}; expected unit length."
        )
    return prompts / norms


def _is_above(head: SafetyHead, score: float, vectors: np.ndarray) -> np.ndarray:
    return head(vectors) > score


def _is_nearer_to_second(prompts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    near: np.ndarray = (vectors @ prompts.T).argmax(axis=1) == 1
    return near


def _require_width(place: str, found: int, width: int) -> None:
    if found != width:
        raise CheckpointError(
            f"{place} is made for vectors {found} wide; those here are {width} wide. Take "
            "the file made for the model in embed.model, or leave the key empty."
        )


def _from_keras(path: Path) -> SafetyHead:
    with np.load(path, allow_pickle=False) as file:
        arrays = [file[name] for name in file.files]
    first = next((n for n, pair in enumerate(pairwise(arrays)) if _is_dense(*pair)), None)
    if first is None:
        raise ValueError("it has no kernel followed by its bias")
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
    found = (re.search(r"(\d+)\.weight$", key) for key in state)
    numbers = sorted(int(match[1]) for match in found if match)
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
    """Return `head` if its parts fit one another.

    Raises:
        ValueError: they do not, or a number in them is not finite.
    """
    widths: Sequence[int] = [len(head.mean), *(len(layer.bias) for layer in head.layers)]
    shapes = [layer.kernel.shape for layer in head.layers]
    expected = list(pairwise(widths))
    if shapes != expected or widths[-1] != 1 or head.scale.shape != head.mean.shape:
        raise ValueError(f"layers of {shapes} with biases of {widths[1:]}, ending in one number")
    parts = [head.mean, head.scale, *(p for one in head.layers for p in (one.kernel, one.bias))]
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("a number in it is not finite")
    return head
