"""Rows and queries → the pairs whose dot product may be above a floor, for less than its price.

A screen bounds the dot product of every pair from above, and a pair whose bound is not above the
floor of its query is out. A bound is proven, never guessed: a screen that lets much through costs
time and no exactness.

1. `Int8Screen` multiplies whole numbers, three to four times as fast as float32.
2. `FloatScreen` multiplies float32.

Rounding: u = 2**-24. A dot product of D float32 numbers in any order of summation, fused or not, is
off by at most D·u/(1 − D·u) · |q|·|x|, and what underflows by D·2**-149. `_rounding` is four
times that: it also covers two such sums and the few operations named beside the bounds.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import torch

INT8_SWITCH = "NAMEDMASK_INT8"
"""Environment variable; `off` makes every scan use float32 products. The answers are the same."""

_CLIPS = (3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 12.0, 24.0)
"""Ranges of the whole numbers to choose from, in root mean squares."""

_TINY = 1e-16
"""More than what squares below 2**-126 can take from a norm when they vanish."""


def int8_is_fast(width: int) -> bool:
    """Return whether a scan gains by int8 products: exact and fast here, and not switched off."""
    return os.environ.get(INT8_SWITCH, "auto") != "off" and _int_mm_is_exact(width)


def int8_product(one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
    """Write the product of two int8 matrices, (B, D) and (D, C), into `out`, (B, C) int32.

    Exact on every processor: where the processor's own instruction is missing or saturates, the
    product is made in int32, many times slower.
    """
    if _int_mm_is_exact(one.shape[1]):
        torch._int_mm(one, other, out=out)
    else:
        torch.matmul(one.int(), other.int(), out=out)


@functools.cache
def _int_mm_is_exact(width: int) -> bool:
    """Return whether torch multiplies int8 vectors of that width exactly and in one step."""
    if not torch.cpu._is_vnni_supported():  # others may saturate within a sum
        return False
    if width >= 1 << 17:  # a sum may not fit into int32
        return False
    ends = torch.tensor([[127], [-127]], dtype=torch.int8).repeat(1, width)
    expected = torch.tensor([[1, -1], [-1, 1]], dtype=torch.int32) * (127**2 * width)
    return torch.equal(torch._int_mm(ends, ends.T), expected)  # torch 2.14 fails at width 1


class FloatBounds:
    """Bounds by the float32 product P: no dot product is above P + |q|·|x|·_rounding."""

    def __init__(self, queries: np.ndarray, norms: np.ndarray) -> None:
        self._queries, self._norms = queries, norms

    def pairs(self, block: np.ndarray, longest: float, floors: np.ndarray) -> np.ndarray:
        """Return row · C + query, ascending, of the pairs whose bound is above the floor.

        Args:
            block: (B, D) float32, no row longer than `longest` but for rounding.
            floors: (C,) float32, finite.
        """
        margins = self._norms * (longest * _rounding(block.shape[1])) + _TINY**2
        limits = floors.astype(np.float64) - margins
        # rounded down to float32, so that rounding lets pairs in and never out
        lower = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        return np.flatnonzero(block @ self._queries.T > lower)


class Int8Bounds:
    """Bounds by a product of whole numbers.

    With a center m, q = q' + e and x − m = y = y' + r, where q' and y' are whole numbers in
    [−127, 127] times a scale:

        q·x = q·m + q'·y' + e·y' + q·r  ≤  q·m + q'·y' + |e|·|y'| + |q|·|r|     (Cauchy–Schwarz)

    q'·y' is exact in int32. The norms are measured. The largest |y'| of a block serves for
    all its rows; so does the largest |r|, but for rows odd enough to get a larger one of their own.
    Rounding of y, of r, of the norms and of the dot product itself is below
    |q|·(|x| + |m|)·_rounding, see above. Center and scales may be anything; good ones make the
    bounds tight: embeddings of images share a large mean, and without it less is left to round.
    """

    def __init__(self, queries: np.ndarray, norms: np.ndarray, block_rows: int) -> None:
        self._norms = norms
        self._queries = queries.astype(np.float64)
        whole, self._scales, self._errors = _whole_numbers(self._queries)
        self._whole = torch.from_numpy(whole).T
        self._center: torch.Tensor | None = None
        self._scale = self._center_norm = 0.0
        self._middles = np.zeros(len(queries))
        count, width = queries.shape
        self._rest = torch.empty((block_rows, width))
        self._steps = torch.empty((block_rows, width))
        self._narrow = torch.empty((block_rows, width), dtype=torch.int8)
        self._products = torch.empty((block_rows, count), dtype=torch.int32)
        self._above = np.empty((block_rows, count), bool)

    def forget(self) -> None:
        """Choose center and scale anew at the next block."""
        self._center = None

    def pairs(self, block: np.ndarray, longest: float, floors: np.ndarray) -> np.ndarray:
        """Return row · C + query, ascending, of the pairs whose bound is above the floor.

        Args:
            block: (B, D) float32, no row longer than `longest` but for rounding.
            floors: (C,) float32, finite.
        """
        if self._center is None:
            self._fit(block)
        assert self._center is not None
        count = len(block)
        rest, steps, narrow = self._rest[:count], self._steps[:count], self._narrow[:count]
        # in units of the scale: one pass less than subtracting first
        torch.add(self._center, torch.from_numpy(block), alpha=1 / self._scale, out=rest)
        torch.round(rest, out=steps).clamp_(-127, 127)
        narrow.copy_(steps)
        rest.sub_(steps)
        products = self._products[:count]
        int8_product(narrow, self._whole, products)

        lengths = _lengths(rest)
        usual = 1.1 * float(np.median(lengths))
        odd = np.flatnonzero(lengths > usual)
        reach = longest, _lengths(steps).max()
        above = np.greater(
            products.numpy(), self._limits(floors, *reach, usual), out=self._above[:count]
        )
        if len(odd):
            own = self._limits(floors, *reach, lengths.max())
            above[odd] = products.numpy()[odd] > own
        return np.flatnonzero(above)

    def _limits(
        self, floors: np.ndarray, longest: float, longest_steps: float, longest_rest: float
    ) -> np.ndarray:
        """Return (C,) int32: a product not above it is of a pair that is out."""
        rounding = _rounding(self._queries.shape[1])
        errors = (1 + rounding) * self._scale * self._errors * longest_steps
        errors += (1 + rounding) * self._scale * self._norms * longest_rest
        errors += self._norms * ((longest + self._center_norm) * rounding + _TINY) + _TINY**2
        limits = (floors - self._middles - errors) / (self._scales * self._scale)
        return np.clip(np.floor(limits) - 1, -(2.0**31), 2.0**31 - 1).astype(np.int32)

    def _fit(self, block: np.ndarray) -> None:
        sample = block[:256].astype(np.float64)
        center = sample.mean(axis=0).astype(np.float32)
        rest = sample - center
        steps = [clip * (np.sqrt(np.mean(rest**2)) + _TINY) / 127 for clip in _CLIPS]
        left = [np.quantile(_left_over(rest, step), 0.9) for step in steps]
        self._scale = float(np.float32(steps[int(np.argmin(left))]))
        # the center that counts is the one that the scan really subtracts, in units of the scale
        negative = np.float32(-1 / self._scale) * center
        self._center = torch.from_numpy(negative)
        center64 = -self._scale * negative.astype(np.float64)
        self._middles = self._queries @ center64
        self._center_norm = float(np.linalg.norm(center64))


def _whole_numbers(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (N, D) int8 in [-127, 127], scales (N,) and the norms (N,) of what is left over.

    Of several scales the one that leaves the least, for each of the (N, D) float64 `vectors`.
    """
    size = np.sqrt(np.mean(vectors**2, axis=1, keepdims=True)) + _TINY
    steps = np.stack([clip * size / 127 for clip in _CLIPS])
    left = np.stack([_left_over(vectors, step) for step in steps])
    best = left.argmin(axis=0), np.arange(len(vectors))
    return _rounded(vectors, steps[best]).astype(np.int8), steps[best][:, 0], left[best]


def _rounded(vectors: np.ndarray, steps: np.ndarray | float) -> np.ndarray:
    return np.clip(np.rint(vectors / steps), -127, 127)


def _left_over(vectors: np.ndarray, steps: np.ndarray | float) -> np.ndarray:
    left: np.ndarray = np.linalg.norm(vectors - _rounded(vectors, steps) * steps, axis=1)
    return left


def _lengths(vectors: torch.Tensor) -> np.ndarray:
    array = vectors.numpy()
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", array, array))
    return lengths


def _rounding(width: int) -> float:
    return 4 * (width + 8) * 2.0**-24
