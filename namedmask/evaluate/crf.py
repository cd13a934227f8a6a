"""A dense CRF, which aligns label probabilities with the edges of the image by mean field.

Every pixel is connected to every other by two Gaussian kernels, one over positions and one over
positions and colors. A *permutohedral lattice* (Adams, Baek, Davis 2010) computes the sums over all
pairs: the values of the pixels are distributed over the corners of simplices ("splatting"), the
corners are blurred along the axes of the lattice, and the pixels are interpolated from the corners
("slicing").

Method: the refinement of ReCo with its constants. Details that ReCo does not give are those of the
public densecrf (Krähenbühl, Koltun 2011): a Potts model; both kernels are divided on both sides by
the square root of their own row sums; a pixel is connected to itself as well.
Cost on one core (Xeon, 2.8 GHz): 1.7 s per photo of 375 × 500 pixels with 21 labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from namedmask.errors import InputError

ITERATIONS = 10
"""Number of mean-field iterations. Method: 10."""

PLACE_WEIGHT, PLACE_SIGMA = 3.0, 1.0
"""Weight and sigma in pixels of the kernel over positions. Method: 3 and 1."""

COLOR_WEIGHT, COLOR_PLACE_SIGMA, COLOR_SIGMA = 4.0, 67.0, 3.0
"""Weight, sigma in pixels and sigma in gray levels of the kernel over positions and colors.

Method: 4, 67 and 3.
"""

LEAST_PROBABILITY = 1e-5
"""Lower bound of a probability before its logarithm. Method: that of the public densecrf."""


def dense_crf(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the marginals of each label, (K, H, W) float32; they sum to 1 at each pixel.

    `image` is (H, W, 3) uint8 RGB. `probabilities` is (K, H, W) float32 and also sums to 1 at each
    pixel.

    Raises:
        InputError: image and probabilities have different sizes or wrong types, or the image is
            too large for the lattice.
    """
    count, *size = probabilities.shape
    if image.dtype != np.uint8 or image.shape != (*size, 3) or not probabilities.size:
        raise InputError(
            "the dense CRF takes an (H, W, 3) uint8 image and (K, H, W) probabilities; got an "
            f"image {image.shape} {image.dtype} and probabilities {probabilities.shape}."
        )
    unary = np.log(np.maximum(probabilities.reshape(count, -1).T, LEAST_PROBABILITY))
    kernels = [
        (PLACE_WEIGHT, Kernel.over(place_features(*size))),
        (COLOR_WEIGHT, Kernel.over(color_features(image))),
    ]
    marginals = mean_field(unary.astype(np.float32), kernels)
    return np.ascontiguousarray(marginals.T).reshape(probabilities.shape)


def mean_field(
    unary: np.ndarray, kernels: Sequence[tuple[float, Callable[[np.ndarray], np.ndarray]]]
) -> np.ndarray:
    """Return the marginals after `ITERATIONS` steps of mean field, (N, K) float32.

    Args:
        unary: (N, K) float32, log probabilities.
        kernels: pairs of a weight and a function from marginals, (N, K), to the messages that each
            pixel receives, (N, K). As in a Potts model, a message supports only its own label.
    """
    marginals = softmax(unary)
    for _ in range(ITERATIONS):
        messages = sum(weight * kernel(marginals) for weight, kernel in kernels)
        marginals = softmax(unary + messages)
    return marginals


def place_features(height: int, width: int) -> np.ndarray:
    """Return x and y of every pixel in units of sigma, (H·W, 2) float32."""
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    return np.stack((x, y), axis=1) / np.float32(PLACE_SIGMA)


def color_features(image: np.ndarray) -> np.ndarray:
    """Return x, y and the three colors of every pixel in units of sigma, (H·W, 5) float32."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].reshape(2, -1).astype(np.float32)
    colors = image.reshape(-1, 3)[:, ::-1].astype(np.float32)  # Method: the order is BGR
    positions = np.stack((x, y), axis=1) / np.float32(COLOR_PLACE_SIGMA)
    return np.concatenate((positions, colors / np.float32(COLOR_SIGMA)), axis=1)


@dataclass(frozen=True)
class Kernel:
    """A Gaussian kernel over all pairs of N points; its rows and columns sum to about 1."""

    lattice: Lattice
    scale: np.ndarray  # (N, 1) float32

    @classmethod
    def over(cls, features: np.ndarray) -> Kernel:
        """Return the kernel of points (N, d) float32, in units of sigma."""
        lattice = build_lattice(features)
        sums = lattice.filter(np.ones((len(features), 1), np.float32))
        return cls(lattice, 1 / np.sqrt(sums + 1e-20))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return for each point the kernel-weighted sum of all `values`, both (N, K) float32."""
        result: np.ndarray = self.scale * self.lattice.filter(self.scale * values)
        return result


@dataclass(frozen=True)
class Lattice:
    """The V occupied corners of a permutohedral lattice in d dimensions, for N points."""

    splat: sparse.csr_matrix  # (V, N) float32: share of each point that goes to each corner
    slice: sparse.csr_matrix  # (N, V) float32: transpose of `splat`, scaled to make a Gaussian
    blurs: tuple[sparse.csr_matrix, ...]  # d + 1 of (V, V) float32: [1 2 1] / 2 along each axis

    def filter(self, values: np.ndarray) -> np.ndarray:
        """Return for each point the sum of all `values` (N, K), weighted by a Gaussian of distance.

        The result is (N, K) float32.
        """
        corners = self.splat @ values
        for blur in self.blurs:
            corners = blur @ corners
        filtered: np.ndarray = self.slice @ corners
        return filtered


def build_lattice(features: np.ndarray) -> Lattice:
    """Return the lattice of N points (N, d) float32, in units of sigma.

    A corner has d + 1 integer coordinates, which sum to 0 and are equal modulo d + 1. The lattice
    has only corners of simplices that contain points; blurring drops values for other corners.

    Raises:
        InputError: the points are too far apart, such as tens of thousands of pixels.
    """
    count, dims = features.shape
    corners, shares = _simplices(_elevate(features))
    if np.ptp(corners) >= 1 << _bits(dims + 1):
        raise InputError(
            f"the image spans {np.ptp(corners):,} steps of the dense CRF's lattice; expected less "
            f"than {1 << _bits(dims + 1):,}. Use a smaller image."
        )
    keys, vertex_of = np.unique(_codes(corners), return_inverse=True)
    rows = np.repeat(np.arange(count), dims + 1)
    shape = (len(keys), count)
    splat = sparse.csr_matrix((shares.ravel(), (vertex_of.ravel(), rows)), shape=shape)
    first = np.empty(len(keys), np.intp)
    first[vertex_of.ravel()] = np.arange(vertex_of.size)
    occupied = corners.reshape(-1, dims + 1)[first]
    blurs = tuple(_blur(occupied, keys, axis) for axis in range(dims + 1))
    gain = np.float32(1 / (1 + 2.0**-dims))
    return Lattice(splat, (gain * splat.T).tocsr(), blurs)


def _elevate(features: np.ndarray) -> np.ndarray:
    """Return the points on the plane where d + 1 numbers sum to 0, (N, d + 1) float64.

    They are scaled so that splatting, blurring and slicing together are a Gaussian of sigma 1.
    """
    dims = features.shape[1]
    axis = np.arange(1, dims + 1)
    scaled = features * (np.sqrt(2 / 3) * (dims + 1) / np.sqrt(axis * (axis + 1)))
    after = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]  # the sum of an axis and all later ones
    elevated = np.zeros((len(features), dims + 1))
    elevated[:, :-1] = after
    elevated[:, 1:] -= axis * scaled
    return elevated


def _simplices(elevated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each point's simplex: (N, d + 1, d + 1) int32 corners, (N, d + 1) float32 shares."""
    size = elevated.shape[1]
    base = np.rint(elevated / size).astype(np.int32)
    excess = base.sum(axis=1, dtype=np.int32)[:, None]
    order = np.argsort(-(elevated - base * size), axis=1, kind="stable")
    rank = np.empty_like(base)
    np.put_along_axis(rank, order, np.arange(size, dtype=np.int32)[None], axis=1)
    rank += excess  # a corner off the plane steps back along the axes rounded the most
    wraps = (rank < 0).astype(np.int32) - (rank >= size)
    rank, base = rank + wraps * size, base + wraps
    base *= size
    offset = (elevated - base) / size
    sorted_offset = np.empty_like(offset)
    np.put_along_axis(sorted_offset, rank, offset, axis=1)
    shares = np.empty((len(elevated), size), np.float32)
    shares[:, 1:] = (sorted_offset[:, :-1] - sorted_offset[:, 1:])[:, ::-1]
    shares[:, 0] = 1 + sorted_offset[:, -1] - sorted_offset[:, 0]
    steps = np.arange(size, dtype=np.int32)[:, None]
    corners = base[:, None] + steps - size * (rank[:, None] > size - 1 - steps)
    return corners.astype(np.int32), shares


def _codes(corners: np.ndarray) -> np.ndarray:
    """Return one int64 per corner (..., d + 1); the last coordinate follows from the others."""
    shifts = _bits(corners.shape[-1]) * np.arange(corners.shape[-1] - 1)
    codes: np.ndarray = corners[..., :-1].astype(np.int64) @ (np.int64(1) << shifts)
    return codes


def _bits(size: int) -> int:
    """Return the number of bits per coordinate in the code of a corner with `size` coordinates."""
    return 62 // (size - 1)


def _blur(corners: np.ndarray, keys: np.ndarray, axis: int) -> sparse.csr_matrix:
    """Return the blur along one axis; `keys` (V,) are the sorted codes of `corners` (V, d + 1)."""
    count, size = corners.shape
    step = np.full(size, -1)
    step[axis] = size - 1
    next_keys = _codes(corners) + int(_codes(step[None])[0])
    neighbors = np.searchsorted(keys, next_keys).clip(max=count - 1)
    linked = np.flatnonzero(keys[neighbors] == next_keys)
    half = np.full(len(linked), 0.5, np.float32)
    links = sparse.csr_matrix((half, (linked, neighbors[linked])), shape=(count, count))
    return (sparse.identity(count, np.float32, "csr") + links + links.T).tocsr()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of `logits` (N, K) over the last axis, (N, K) float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32)
    result: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return result
