"""Masks from numbers that files give: drawn, or refused before code in C sees them."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from namedmask import images

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

HEIGHT, WIDTH = 14, 30
SQUARE = [2.0, 2, 20, 2, 20, 10, 2, 10]
RING = {"size": [HEIGHT, WIDTH], "counts": [14 * 3, 14 * 5, 14 * 22]}


def drawn(regions: Any) -> np.ndarray:
    return images.draw_regions(regions, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "numbers",
    [
        [math.nan] * 6, [1, 1, math.nan, 5, 5, 5], [1, 1, math.inf, 5, 5, 5], [-math.inf, *SQUARE],
        [5e7, 5e7, 1, 1, 5, 5], [1e300, 1, 5, 5, 9, 1], [10**400, 1, 5, 5, 9, 1], [1] * 7,
        [2e6, 1, 2e6, 5, 2e6, 9], ["a", 1, 2, 3, 4, 5], [None, 1, 2, 3, 4, 5], [[1, 2]] * 6,
        [{}, 1, 2, 3, 4, 5], [-9e5, 0, 9e5, 9] * 3,
    ],
)  # fmt: skip
def test_polygon_of_impossible_numbers_is_refused(numbers: list[Any]) -> None:
    for regions in ([numbers], [SQUARE, numbers]):
        with pytest.raises(ValueError, match="polygon"):
            drawn(regions)
        with pytest.raises(ValueError, match="polygon"):
            images.refuse_regions(regions, HEIGHT, WIDTH)


def test_polygon_of_two_points_beside_another_has_no_area() -> None:
    assert np.array_equal(drawn([[1, 1, 5, 5], SQUARE, []]), drawn([SQUARE]))
    assert drawn([SQUARE]).any()


@pytest.mark.parametrize(
    "numbers", [[-5, -5, 40, -5, 40, 40, -5, 40], [1e5, 0, -1e5, 0, 0, 9], [3] * 8, [0.5] * 6]
)
def test_polygon_beyond_the_edges_or_without_area_is_drawn_as_by_pycocotools(numbers: list) -> None:
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([numbers], HEIGHT, WIDTH)))
    assert np.array_equal(drawn([numbers]), expected.astype(bool))


@pytest.mark.parametrize(
    "regions",
    [
        {}, {"size": [HEIGHT, WIDTH]}, {"counts": [420]}, {"size": None, "counts": [420]},
        RING | {"counts": None}, RING | {"counts": 420}, RING | {"counts": []},
        RING | {"counts": [math.nan, 420]}, RING | {"counts": [2.5, 417.5]},
        RING | {"counts": [-5, 425]}, RING | {"counts": [2**64 + 420]}, RING | {"counts": [1e300]},
        RING | {"counts": ["x"]}, RING | {"counts": "ä\u20ac"}, RING | {"counts": ""},
        RING | {"counts": b"\xff\xfe"}, RING | {"counts": "oooooooooooo0"},
        RING | {"size": [math.nan, WIDTH]}, RING | {"size": ["14", "30"]}, RING | {"size": [420]},
        None, 5, "polygon", math.nan,
    ],
)  # fmt: skip
def test_rle_of_impossible_numbers_is_refused(regions: Any) -> None:
    with pytest.raises(ValueError, match=r"RLE|mask"):
        drawn(regions)
    with pytest.raises(ValueError, match=r"RLE|mask"):
        images.refuse_regions(regions, HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(10**9, 10**9), (-14, -30), (-1, 420), (2**31, 2**31)])
def test_mask_of_an_absurd_size_is_refused(size: tuple[int, int]) -> None:
    height, width = size
    pixels = height * width
    for regions in ([SQUARE], {"size": [height, width], "counts": [pixels]}):
        with pytest.raises(ValueError, match=r"mask|RLE"):
            images.draw_regions(regions, height, width)
    with pytest.raises(ValueError, match=r"mask|RLE"):
        images.decode_mask(images.encode_mask(np.zeros((4, 3), bool)), height, width)


def test_rle_whose_sum_overflows_is_refused() -> None:
    runs = np.full(2**12, 2**34, np.int64)
    compressed = coco_mask.frPyObjects({"size": [1, 1], "counts": [1]}, 1, 1)["counts"]
    assert images.decode_mask(compressed, 1, 1).shape == (1, 1)
    with pytest.raises(ValueError, match="fill"):
        images.masks._refuse_to_fill(runs.repeat(2**17 // 2**12), 1, 2**28)


ODD = (0, -1, 1e-300, 0.5, 13.999, 14, 30, 29.5, 1e3, -1e3, 1e5, 1e6, -1e6, 1.1e6, 5e7, -5e7, 2**31,
       2**33, 2**63, 1e18, 1e300, math.nan, math.inf, -math.inf, None, "1", "x", [], {},
       True)  # fmt: skip


def a_number(rng: np.random.Generator) -> Any:
    if rng.random() < 0.9:
        return float(rng.normal(10, 20))
    return ODD[rng.integers(len(ODD))]


def some_regions(rng: np.random.Generator) -> Any:
    if rng.random() < 0.7:
        lines = [
            [a_number(rng) for _ in range(int(rng.choice([0, 1, 4, 5, 6, 8, 20, 400])))]
            for _ in range(rng.integers(0, 4))
        ]
        return lines[0] if lines and rng.random() < 0.1 else lines
    size = [HEIGHT, WIDTH] if rng.random() < 0.8 else [a_number(rng), a_number(rng)]
    counts: Any = [a_number(rng) for _ in range(rng.integers(0, 6))]
    if rng.random() < 0.3:
        cuts = np.sort(rng.integers(0, HEIGHT * WIDTH, 4))
        counts = np.diff([0, *cuts, HEIGHT * WIDTH]).tolist()
    if rng.random() < 0.3:
        counts = bytearray(images.encode_mask(rng.random((HEIGHT, WIDTH)) < 0.5))
        for place in rng.integers(0, len(counts), rng.integers(0, 3)):
            counts[place] = int(rng.integers(0, 256))
        counts = bytes(counts) if rng.random() < 0.5 else counts.decode("latin-1")
    return {"size": size, "counts": counts}


def test_generated_regions_are_drawn_or_refused() -> None:
    drawn_ones = refused = 0
    for seed in range(3000):
        regions = some_regions(np.random.default_rng(seed))
        began = time.process_time()
        try:
            mask = drawn(regions)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match=r".+"):
                images.refuse_regions(regions, HEIGHT, WIDTH)
        else:
            drawn_ones += 1
            images.refuse_regions(regions, HEIGHT, WIDTH)
            assert mask.shape == (HEIGHT, WIDTH) and mask.dtype == bool
        assert time.process_time() - began < 2, regions
    assert min(drawn_ones, refused) > 300
