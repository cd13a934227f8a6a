"""Upper bounds on dot products, which show which (row, query) pairs may score above a floor.

The bounds are cheaper than the exact dot products. A pair is excluded if its bound is not above the
floor of its query. Each bound is proven to be valid. A loose bound therefore costs time but never
changes an answer.

1. `Int8Bounds` uses an int8 matrix product, three to four times as fast as float32.
2. `FloatBounds` uses a float32 matrix product.

Rounding: let u = 2**-24. The float32 dot product of two vectors of D numbers, in any order of
summation and with or without fused multiply-add, has an error of at most
D·u/(1 − D·u) · |q|·|x|; underflow adds at most D·2**-149. `_rounding` returns about four times the
factor D·u of |q|·|x|. This margin also covers a second such sum and the few operations that compute
the bounds themselves.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import torch

INT8_SWITCH = "NAMEDMASK_INT8"
"""Environment variable. If it is `off`, every scan uses float32 products, with equal answers."""

_CLIPS = (3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 24.0)
"""Candidate quantization ranges, in multiples of the root mean square of the values."""

_TINY = 1e-16
"""Upper bound on the error of a norm whose squared terms underflow (below 2**-126)."""


def int8_is_fast(width: int) -> bool:
    """Return whether int8 products are exact and fast on this CPU, and not switched off."""
    return os.environ.get(INT8_SWITCH, "auto") != "off" and _int_mm_is_exact(width)


def int8_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """Write the product of two int8 matrices, (B, D) and (D, C), into `out`, (B, C) int32.

    The product is exact on every CPU. If the CPU has no int8 instruction, or one that saturates,
    the product is computed in int32, which is many times slower.
    """
    if _int_mm_is_exact(left.shape[1]):
        torch._int_mm(left, right, out=out)
    else:
        torch.matmul(left.int(), right.int(), out=out)


@functools.cache
def _int_mm_is_exact(width: int) -> bool:
    """Return whether `torch._int_mm` is exact and fast for vectors of `width` numbers."""
    if not torch.cpu._is_vnni_supported():  # without VNNI a sum may saturate
        return False
    if width >= 1 << 17:  # a sum may not fit into int32
        return False
    extremes = torch.tensor([[127], [-127]], dtype=torch.int8).repeat(1, width)
    expected = torch.tensor([[1, -1], [-1, 1]], dtype=torch.int32) * (127**2 * width)
    return torch.equal(torch._int_mm(extremes, extremes.T), expected)  # torch 2.14 fails at width 1


class FloatBounds:
    """Bounds from the float32 product P: every dot product is at most P + |q|·|x|·_rounding."""

    def __init__(self, queries: np.ndarray, norms: np.ndarray) -> None:
        self._queries, self._norms = queries, norms

    def pairs(self, block: np.ndarray, max_norm: float, floors: np.ndarray) -> np.ndarray:
        """Return (P,) int64, ascending: row · C + query of each pair whose bound exceeds its floor.

        Args:
            block: (B, D) float32.
            max_norm: at least the largest L2 norm of a row, up to float32 rounding.
            floors: (C,) float32, finite.
        """
        margins = self._norms * (max_norm * _rounding(block.shape[1])) + _TINY**2
        limits = floors.astype(np.float64) - margins
        # round down to float32, so that rounding never excludes a pair
        lower = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        return np.flatnonzero(block @ self._queries.T > lower)


class Int8Bounds:
    """Bounds from the product of vectors quantized to int8.

    Let m be a center. Write q = q' + e and x − m = y = y' + r, where q' and y' are integers in
    [−127, 127] times a scale, and e and r are the residuals of the quantization:

        q·x = q·m + q'·y' + e·y' + q·r  ≤  q·m + q'·y' + |e|·|y'| + |q|·|r|     (Cauchy–Schwarz)

    q'·y' is exact in int32, and the norms are measured. For |y'|, the bounds of all rows use the
    block's maximum. For |r|, they use 1.1 times the block's median if |r| is at most that, and the
    block's maximum otherwise. The rounding of y, of r, of the norms and of the dot product itself
    is below |q|·(|x| + |m|)·_rounding (see the module docstring). The bounds are valid for any
    center and any scales. Image embeddings share a large mean. Without it, the values to quantize
    are smaller and the bounds are tighter.
    """

    def __init__(self, queries: np.ndarray, norms: np.ndarray, block_rows: int) -> None:
        self._norms = norms
        self._queries = queries.astype(np.float64)
        quantized, self._scales, self._errors = _quantize(self._queries)
        self._quantized_queries = torch.from_numpy(quantized).T
        self._center: torch.Tensor | None = None
        self._scale = self._center_norm = 0.0
        self._center_products = np.zeros(len(queries))
        count, width = queries.shape
        self._residuals = torch.empty((block_rows, width))
        self._quantized = torch.empty((block_rows, width))
        self._int8_rows = torch.empty((block_rows, width), dtype=torch.int8)
        self._products = torch.empty((block_rows, count), dtype=torch.int32)
        self._above = np.empty((block_rows, count), bool)

    def reset(self) -> None:
        """Fit the center and the scale again to the next block."""
        self._center = None

    def pairs(self, block: np.ndarray, max_norm: float, floors: np.ndarray) -> np.ndarray:
        """Return (P,) int64, ascending: row · C + query of each pair whose bound exceeds its floor.

        Args:
            block: (B, D) float32.
            max_norm: at least the largest L2 norm of a row, up to float32 rounding.
            floors: (C,) float32, finite.
        """
        if self._center is None:
            self._fit(block)
        assert self._center is not None
        count = len(block)
        residuals, quantized = self._residuals[:count], self._quantized[:count]
        int8_rows = self._int8_rows[:count]
        # `_center` is in units of the scale, so that one pass both scales and subtracts
        torch.add(self._center, torch.from_numpy(block), alpha=1 / self._scale, out=residuals)
        torch.round(residuals, out=quantized).clamp_(-127, 127)
        int8_rows.copy_(quantized)
        residuals.sub_(quantized)
        products = self._products[:count]
        int8_product(int8_rows, self._quantized_queries, products)

        norms = _row_norms(residuals)
        usual = 1.1 * float(np.median(norms))
        outliers = np.flatnonzero(norms > usual)
        maxima = max_norm, _row_norms(quantized).max()
        above = np.greater(
            products.numpy(), self._limits(floors, *maxima, usual), out=self._above[:count]
        )
        if len(outliers):
            limits = self._limits(floors, *maxima, norms.max())
            above[outliers] = products.numpy()[outliers] > limits
        return np.flatnonzero(above)

    def _limits(
        self, floors: np.ndarray, max_norm: float, max_quantized: float, max_residual: float
    ) -> np.ndarray:
        """Return (C,) int32 limits; a pair is excluded if its product is not above the limit.

        The maxima are of L2 norms. `max_quantized` and `max_residual` are in units of the scale.
        """
        rounding = _rounding(self._queries.shape[1])
        errors = (1 + rounding) * self._scale * self._errors * max_quantized
        errors += (1 + rounding) * self._scale * self._norms * max_residual
        errors += self._norms * ((max_norm + self._center_norm) * rounding + _TINY) + _TINY**2
        limits = (floors - self._center_products - errors) / (self._scales * self._scale)
        result: np.ndarray = np.clip(np.floor(limits) - 1, -(2.0**31), 2.0**31 - 1).astype(np.int32)
        return result

    def _fit(self, block: np.ndarray) -> None:
        """Set the center to the mean of the first rows, and the scale to the best of `_CLIPS`."""
        sample = block[:256].astype(np.float64)
        center = sample.mean(axis=0).astype(np.float32)
        centered = sample - center
        scales = [clip * (np.sqrt(np.mean(centered**2)) + _TINY) / 127 for clip in _CLIPS]
        errors = [np.quantile(_residual_norms(centered, scale), 0.9) for scale in scales]
        self._scale = float(np.float32(scales[int(np.argmin(errors))]))
        # the bounds must use the center as `pairs` subtracts it: rounded, in units of the scale
        negative = np.float32(-1 / self._scale) * center
        self._center = torch.from_numpy(negative)
        center64 = -self._scale * negative.astype(np.float64)
        self._center_products = self._queries @ center64
        self._center_norm = float(np.linalg.norm(center64))


def _quantize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return quantized vectors (N, D) int8 in [-127, 127], scales (N,) and residual norms (N,).

    Each of the `vectors`, (N, D) float64, gets the scale of `_CLIPS` with the smallest residual.
    """
    size = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True)) + _TINY
    scales = np.stack([clip * size / 127 for clip in _CLIPS])
    errors = np.stack([_residual_norms(vectors, scale) for scale in scales])
    best = errors.argmin(axis=0), np.arange(len(vectors))
    return _rounded(vectors, scales[best]).astype(np.int8), scales[best][:, 0], errors[best]


def _rounded(vectors: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(vectors / scales), -127, 127)


def _residual_norms(vectors: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(vectors - _rounded(vectors, scales) * scales, axis=1)
    return norms


def _row_norms(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.numpy()
    norms: np.ndarray = np.sqrt(np.einsum("nd,nd->n", array, array))
    return norms


def _rounding(width: int) -> float:
    """Return the relative rounding margin for vectors of `width` numbers (see the module)."""
    return 4 * (width + 8) * 2.0**-24
