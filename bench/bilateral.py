"""Compare the bilateral solver with a plain SciPy version on real photos, on one thread.

    NAMEDMASK_REAL_DATA=... python bench/bilateral.py [photos]

The photos are from ECSSD, resized to a shorter side of 512 pixels. The input mask is the true mask,
averaged over 16 × 16 pixels and thresholded at one half, as a detector on a coarse grid would
predict it. The last line is JSON; `ratio` is the processor time of the plain version over ours.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg

from namedmask import images
from namedmask.bilateral import bilateral_solver

REPEATS = 3
"""Number of runs per photo and solver; the fastest counts."""


def plain_bilateral_solver(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the result of `bilateral_solver`, from sorting, sparse matrices and SciPy's `cg`.

    `image` is (H, W, 3) uint8 RGB, `mask` (H, W) bool; the result is (H, W) float64, about [0, 1].
    """
    height, width = mask.shape
    red, green, blue = (image[..., channel].astype(float) for channel in range(3))
    row, column = np.mgrid[:height, :width]
    axes = [
        (0.299 * red + 0.587 * green + 0.114 * blue) / 16,
        (-0.168736 * red - 0.331264 * green + 0.5 * blue + 128) / 8,
        (0.5 * red - 0.418688 * green - 0.081312 * blue + 128) / 8,
        column / 16,
        row / 16,
    ]
    strides = 4096 ** np.arange(5)
    keys = sum(
        axis.astype(int).ravel() * stride for axis, stride in zip(axes, strides, strict=True)
    )
    vertices, vertex_of = np.unique(keys, return_inverse=True)
    count, pixels = len(vertices), mask.size
    splat = sparse.csr_matrix((np.ones(pixels), (vertex_of, np.arange(pixels))), (count, pixels))

    blur = 10 * sparse.eye(count)
    for step in (*strides, *-strides):
        neighbor = np.searchsorted(vertices, vertices + step).clip(max=count - 1)
        has_neighbor = np.flatnonzero(vertices[neighbor] == vertices + step)
        ones = np.ones(len(has_neighbor))
        edges = has_neighbor, neighbor[has_neighbor]
        blur = blur + sparse.csr_matrix((ones, edges), (count, count))
    blur = blur.tocsr()

    counts = splat @ np.ones(pixels)
    scales = np.ones(count)
    for _ in range(10):
        scales = np.sqrt(scales * counts / (blur @ scales))
    masses = scales * (blur @ scales)

    weights = splat @ np.full(pixels, 0.999)
    target = splat @ (0.999 * mask.ravel())
    scale = sparse.diags(scales)
    system = 256 * (sparse.diags(masses) - scale @ blur @ scale) + sparse.diags(weights)
    jacobi = sparse.diags(1 / np.maximum(system.diagonal(), 1e-5))
    values, _ = cg(system, target, target / weights, rtol=1e-5, atol=0, maxiter=25, M=jacobi)
    result: np.ndarray = (splat.T @ values).reshape(height, width)
    return result


def photos(folder: Path, limit: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield an image (H, W, 3) uint8 RGB, a coarse mask (H, W) bool and a true mask (H, W) bool."""
    for path in sorted((folder / "ecssd" / "photos").iterdir())[:limit]:
        image = images.resize_shorter_side(images.decode(path.read_bytes()), 512)
        height, width = image.shape[:2]
        mask_bytes = (folder / "ecssd" / "masks" / f"{path.stem}.png").read_bytes()
        truth = images.resize(images.decode_gray(mask_bytes), height, width)
        coarse = images.resize(truth, height // 16, width // 16)
        yield image, images.resize(coarse, height, width, nearest=True) > 127, truth > 127


def fastest(solver: Callable[..., np.ndarray], *arrays: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the solver's result, and its processor time in seconds in the fastest run."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        result = solver(*arrays)
        times.append(time.process_time() - start)
    return result, min(times)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the intersection over union of two (H, W) bool masks."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def main() -> None:
    """Measure and print the result."""
    cv2.setNumThreads(1)
    folder = os.environ.get("NAMEDMASK_REAL_DATA")
    if not folder:
        sys.exit("bench/bilateral.py: set NAMEDMASK_REAL_DATA to the folder of real photos.")
    rows = []
    for image, coarse, truth in photos(Path(folder), int(sys.argv[1]) if sys.argv[1:] else 100):
        plain, plain_s = fastest(plain_bilateral_solver, image, coarse)
        soft, ours_s = fastest(bilateral_solver, image, coarse)
        agreement = iou(soft > 0.5, plain > 0.5)
        rows.append((plain_s, ours_s, agreement, iou(coarse, truth), iou(soft > 0.5, truth)))
    plain_s, ours_s, agreement, before, after = np.array(rows).mean(axis=0)
    result = {
        "bench": "bilateral",
        "photos": len(rows),
        "plain_ms": round(1e3 * plain_s, 1),
        "ours_ms": round(1e3 * ours_s, 1),
        "ratio": round(plain_s / ours_s, 2),
        "least_agreement_iou": round(min(row[2] for row in rows), 5),
        "mask_iou_before": round(before, 4),
        "mask_iou_after": round(after, 4),
    }
    print(f"plain {result['plain_ms']} ms, ours {result['ours_ms']} ms per photo, on one thread")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
