"""Parquet files: equal bytes however the rows come, row groups bounded by bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask import schema
from namedmask.storage.files import (
    TableWriter,
    blob_bytes,
    read_group,
    read_parquet,
    row_groups,
    write_parquet,
)


def images(count: int, low: int, high: int, seed: int = 0) -> pa.Table:
    """Rows of a store of fetched images; every seventh has no image."""
    rng = np.random.default_rng(seed)
    blobs = [rng.bytes(int(rng.integers(low, high))) for _ in range(count)]
    columns = {
        "sample_id": [f"{row:020d}" for row in range(count)],
        "url": [f"http://a.example/{row}" for row in range(count)],
        "caption": ["a caption"] * count,
        "image": pa.array([None if row % 7 == 3 else blob for row, blob in enumerate(blobs)]),
        "image_height": [2] * count,
        "image_width": [3] * count,
        "status": [schema.OK] * count,
    }
    return pa.table(columns).cast(schema.FETCHED)


def in_parts(table: pa.Table, path: Path, seed: int, group_bytes: int) -> bytes:
    rng, start = np.random.default_rng(seed), 0
    with TableWriter(path, table.schema, group_rows=50, group_bytes=group_bytes) as writer:
        while start < table.num_rows:
            count = int(rng.integers(1, 40))
            writer.write(table.slice(start, count))
            start += count
    return path.read_bytes()


@pytest.mark.parametrize("group_bytes", [1, 5000, 1 << 40])
@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 200])
def test_files_of_equal_rows_have_equal_bytes_however_the_rows_come(
    tmp_path: Path, count: int, group_bytes: int
) -> None:
    table = images(count, 1, 400)
    contents = {in_parts(table, tmp_path / "a", seed, group_bytes) for seed in range(4)}
    assert len(contents) == 1
    assert read_parquet(tmp_path / "a").equals(table)
    assert pa.concat_tables(row_groups(tmp_path / "a")).equals(table)


def test_files_row_group_ends_with_the_row_that_reaches_the_bytes(tmp_path: Path) -> None:
    table = images(300, 100, 900)
    in_parts(table, tmp_path / "a", 1, 4000)
    sizes = [blob_bytes(group) for group in row_groups(tmp_path / "a")]
    assert len(sizes) > 5
    for size in sizes[:-1]:
        assert len(size) == 50 or size.sum() >= 4000 > size[:-1].sum()
    assert read_group(tmp_path / "a", 1, ["sample_id"])["sample_id"][0].as_py() == (
        f"{len(sizes[0]):020d}"
    )


def test_files_have_blobs_as_binary_and_tables_as_large_binary(tmp_path: Path) -> None:
    write_parquet(images(20, 1, 400), tmp_path / "a")
    assert pq.read_schema(tmp_path / "a").field("image").type == pa.binary()
    table = read_parquet(tmp_path / "a")
    assert table["image"].type == schema.TYPES["image"] == pa.large_binary()
    assert table.combine_chunks().take([5, 6]).num_rows == 2


def test_files_writer_that_is_left_by_an_error_completes_no_file(tmp_path: Path) -> None:
    table = images(20, 1, 400)
    with pytest.raises(ZeroDivisionError), TableWriter(tmp_path / "a", table.schema) as writer:
        writer.write(table)
        raise ZeroDivisionError
    assert pq.ParquetFile(tmp_path / "a").metadata.num_rows == 0
