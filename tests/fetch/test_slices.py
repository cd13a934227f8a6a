"""Fetched rows come in slices whose images are bounded in bytes, whatever the rows and sizes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import schema
from namedmask.config import FetchConfig
from namedmask.fetch.stage import Fetch
from namedmask.images.limits import Limits, within
from namedmask.storage.files import blob_bytes
from tests import toys

LIMIT = 400_000


def jpegs(folder: Path, sides: list[int]) -> pa.Table:
    """Rows with the urls of noise pictures of these sides; a side of 0 is a missing file."""
    rng, urls = np.random.default_rng(0), []
    for number, side in enumerate(sides):
        path = folder / f"{number}.jpg"
        if side:
            path.write_bytes(toys.jpeg(rng.integers(0, 255, (side, side, 3), dtype=np.uint8), 95))
        urls.append(path.as_uri())
    return pa.table({"url": urls, "status": [schema.OK] * len(urls)})


def fetch(folder: Path, limit: int = LIMIT) -> Fetch:
    stage = Fetch(FetchConfig(file_root=str(folder)))
    stage.limits = Limits(encoded_bytes=limit)
    return stage


@pytest.mark.parametrize(
    "sides",
    [[16] * 300, [300] * 12, [16] * 40 + [300] * 6 + [16] * 40, [0] * 50, [900, 16, 900], [16], []],
    ids=["small", "large", "mixed", "missing", "larger than the limit", "one", "none"],
)
def test_slices_are_all_rows_in_order_within_the_bytes(tmp_path: Path, sides: list[int]) -> None:
    table = jpegs(tmp_path, sides)
    slices = list(fetch(tmp_path).slices(table))
    joined = pa.concat_tables(slices)
    assert joined["url"].to_pylist() == table["url"].to_pylist()
    assert joined.equals(fetch(tmp_path, 1 << 30)(table))
    for part in slices:
        sizes = blob_bytes(part)
        assert part.num_rows <= 1 or sizes.sum() - sizes[-1] < LIMIT
    assert len(slices) >= min(table.num_rows, blob_bytes(joined).sum() / LIMIT)


def test_slices_of_the_web_are_cut_when_images_are_larger_than_expected(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sides = [16] * 60 + [260] * 60
    bodies = [toys.jpeg(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)) for side in sides]
    with toys.SmallWeb() as web:
        for number, body in enumerate(bodies):
            web.add(f"{number}.jpg", body)
        urls = [row["url"] for row in web.rows]
        table = pa.table({"url": urls, "status": [schema.OK] * len(urls)})
        stage = Fetch(FetchConfig(allow_loopback=True))
        stage.limits = Limits(encoded_bytes=LIMIT)
        slices = list(stage.slices(table))
    joined = pa.concat_tables(slices)
    assert joined["image"].to_pylist() == bodies
    assert max(int(blob_bytes(part).sum()) for part in slices) <= 1.2 * LIMIT
    assert len(slices) >= sum(map(len, bodies)) / LIMIT


def test_slices_within_a_running_event_loop_are_the_same(tmp_path: Path) -> None:
    table = jpegs(tmp_path, [40] * 30)

    async def inside() -> pa.Table:
        return pa.concat_tables(list(fetch(tmp_path, 10_000).slices(table)))

    assert asyncio.run(inside()).equals(fetch(tmp_path)(table))


def test_slices_that_nobody_wants_any_more_leave_nothing_open(tmp_path: Path) -> None:
    slices = fetch(tmp_path, 10_000).slices(jpegs(tmp_path, [40] * 30))
    next(slices)
    slices.close()
    assert list(slices) == []


def test_within_keeps_all_items_in_order_and_ends_a_list_at_the_limit() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = rng.integers(0, 30, rng.integers(0, 40)).tolist()
        limit = int(rng.integers(1, 60))
        parts = list(within(sizes, int, limit))
        assert [size for part in parts for size in part] == sizes
        assert all(sum(part[:-1]) < limit for part in parts)
        assert all(sum(part) >= limit for part in parts[:-1])
