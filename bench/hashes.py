"""Measure the Hamming distances of perceptual hashes, for copies and for different photos.

    python bench/hashes.py FOLDER...

Each folder is searched for JPEG photos. The output gives, for each way of making a copy, the share
of the copies whose hash is within 0, 2, 4, … bits of that of the original; the same share over all
pairs of different photos; and the seconds per 1,000 hashes. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from namedmask.images.codec import decode, encode_jpeg, resize
from namedmask.images.hashes import hash_of

DISTANCES = (0, 2, 4, 6, 8, 10)
"""Hamming distances in bits for which the shares are printed."""


def cropped(image: np.ndarray, share: float) -> np.ndarray:
    """Return the image without this share of each side."""
    height, width = (round(side * share) for side in image.shape[:2])
    return image[height : image.shape[0] - height, width : image.shape[1] - width]


COPIES: dict[str, Callable[[np.ndarray], bytes]] = {
    "saved at quality 60": lambda image: encode_jpeg(image, 60),
    "saved at quality 20": lambda image: encode_jpeg(image, 20),
    "half the size": lambda image: encode_jpeg(
        resize(image, image.shape[0] // 2, image.shape[1] // 2)
    ),
    "a fifth brighter": lambda image: encode_jpeg(np.clip(image * 1.2, 0, 255).astype(np.uint8)),
    "2 % cut off each side": lambda image: encode_jpeg(cropped(image, 0.02)),
    "5 % cut off each side": lambda image: encode_jpeg(cropped(image, 0.05)),
    "mirrored": lambda image: encode_jpeg(np.ascontiguousarray(image[:, ::-1])),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = parser.parse_args().folders
    paths = sorted(path for folder in folders for path in folder.rglob("*.[jJ][pP]*[gG]"))
    bodies = [path.read_bytes() for path in paths]
    start = time.perf_counter()
    hashes = [hash_of(body) for body in bodies]
    seconds = (time.perf_counter() - start) / len(bodies) * 1000
    shares_of: dict[str, dict[int, float]] = {}
    for name, copy in COPIES.items():
        bits = [
            (original ^ hash_of(copy(decode(body)))).bit_count()
            for original, body in zip(hashes, bodies, strict=True)
        ]
        shares_of[name] = within(bits)
    different = [(a ^ b).bit_count() for a, b in itertools.combinations(hashes, 2)]
    shares_of["different photos"] = within(different)
    for name, shares in shares_of.items():
        print(f"{name:24}", *(f"{bits}: {share:.4f}" for bits, share in shares.items()))
    print(f"{len(bodies)} photos; closest different photos: {sorted(different)[:5]} bits apart")
    print(json.dumps({"seconds_per_1000": round(seconds, 3), "within": shares_of}))


def within(bits: list[int]) -> dict[int, float]:
    """Return the share of the distances that are at most each of `DISTANCES`."""
    return {limit: float(np.mean(np.array(bits) <= limit)) for limit in DISTANCES}


if __name__ == "__main__":
    main()
