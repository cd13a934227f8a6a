"""Tolerances that follow from the arithmetic, not from a processor.

A sum of n float32 products, in any order, fused or not, is off by at most n · 2⁻²⁴ times the sum of
their magnitudes; for two unit vectors that sum is at most 1 (Cauchy and Schwarz).
"""

from __future__ import annotations

UNIT_ROUNDOFF = 2.0**-24


def of_dot_product(width: int) -> float:
    """Return a bound on the error of a float32 dot product of two unit vectors of that width.

    Four more roundings are allowed: that of the result, and of a vector brought to unit length.
    """
    return (width + 4) * UNIT_ROUNDOFF
