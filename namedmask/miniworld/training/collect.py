"""Draw the training collection of the tiny models, with the seen textures only.

    python -m namedmask.miniworld.training.collect FOLDER [--count 16000]

A collection consists of these files:

    images.npy        (N, 112, 112, 3) uint8 RGB        the only input of the label-free models
    captions.json     N strings                         read by the CLIP as well
    truth/faces.json  N lists of boxes, XYXY pixels     read by the face detector only
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from namedmask.categories import PROMPT_TEMPLATES
from namedmask.miniworld import captions, pictures

SIDE = 112
SEED = 20_261
Row = tuple[np.ndarray, str, list[tuple[float, float, float, float]]]
"""Image (H, W, 3) uint8 RGB, caption, and face boxes (XYXY pixels)."""


def draw(index: int) -> Row:
    """Return the image, the caption and the face boxes of one member of the collection."""
    rng = np.random.default_rng((SEED, index))
    kind = rng.random()
    if kind < 0.12:
        picture = pictures.portrait(rng, SIDE, SIDE, unseen=0.0)
        return picture.pixels(), captions.portrait_caption(rng), picture.faces
    if kind < 0.15:
        category = int(rng.integers(0, len(pictures.NAMES) + 1))
        picture = pictures.splatter(pictures.photo(rng, category, SIDE, SIDE, 0.0), rng)
        return picture.pixels(), captions.violent_caption(rng), picture.faces
    category = 0 if kind < 0.23 else int(rng.integers(1, len(pictures.NAMES) + 1))
    picture = pictures.photo(rng, category, SIDE, SIDE, 0.0, person_share=0.08)
    return (
        picture.pixels(),
        captions.training_caption(rng, category, PROMPT_TEMPLATES),
        picture.faces,
    )


def collect(folder: Path, count: int) -> None:
    """Write a collection of `count` images; the module docstring lists the files."""
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (count, SIDE, SIDE, 3)
    )
    texts, faces = [], []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for index, row in enumerate(pool.map(draw, range(count), chunksize=100)):
            images[index] = row[0]
            texts.append(row[1])
            faces.append(row[2])
    images.flush()
    (folder / "captions.json").write_text(json.dumps(texts))
    (folder / "truth" / "faces.json").write_text(json.dumps(faces))


def main() -> None:
    """Read the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=16_000)
    arguments = parser.parse_args()
    collect(arguments.folder, arguments.count)


if __name__ == "__main__":
    main()
