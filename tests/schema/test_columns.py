"""The helpers that keep every row in its place."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from namedmask import schema
from namedmask.errors import SchemaError


@pytest.fixture
def table() -> pa.Table:
    return pa.table(
        {
            "sample_id": ["a", "b", "c"],
            "status": ["ok", "http_404", "ok"],
            "image": pa.array([b"1", b"2", b"3"], pa.binary()),
        }
    )


def test_conform_orders_casts_and_drops_columns(table: pa.Table) -> None:
    wide = table.append_column("width", pa.array([1.0, 2.0, 3.0])).append_column(
        "extra", pa.array([0, 0, 0])
    )
    out = schema.conform(wide, schema.schema_of("width", "sample_id"), "here")
    assert out.schema == schema.schema_of("width", "sample_id")
    assert out["width"].to_pylist() == [1, 2, 3]


def test_conform_missing_column_names_place_and_columns(table: pa.Table) -> None:
    with pytest.raises(SchemaError, match=r"'url' missing at fetch; columns are sample_id, status"):
        schema.conform(table, schema.schema_of("sample_id", "url"), "fetch")


def test_conform_value_that_does_not_fit_is_refused(table: pa.Table) -> None:
    wrong = table.append_column("width", pa.array([2**40, 0, 0]))
    with pytest.raises(SchemaError, match="does not fit"):
        schema.conform(wrong, schema.schema_of("width"), "metadata")


def test_require_columns_missing_says_stage_and_way_out(table: pa.Table) -> None:
    schema.require_columns(table, ("image",), "faces")
    with pytest.raises(SchemaError, match=r"'mask' missing before stage 'bilateral'.*adds 'mask'"):
        schema.require_columns(table, ("image", "mask"), "bilateral")


def test_alive_gives_ok_rows_in_order(table: pa.Table) -> None:
    assert schema.alive(table).tolist() == [0, 2]
    assert schema.alive(table.slice(0, 0)).tolist() == []


def test_update_new_and_old_columns_leave_the_input_alone(table: pa.Table) -> None:
    before = table.to_pylist()
    out = schema.update(table, np.array([2]), {"num_faces": [4], "status": ["has_face"]})
    assert out["num_faces"].to_pylist() == [None, None, 4]
    assert out["status"].to_pylist() == ["ok", "http_404", "has_face"]
    assert out.schema.field("num_faces").type == pa.int32()
    assert table.to_pylist() == before


def test_update_wrong_number_of_values_is_refused(table: pa.Table) -> None:
    with pytest.raises(ValueError, match="zip"):
        schema.update(table, np.array([0, 2]), {"status": ["ok"]})


def test_bury_dead_rows_lose_heavy_columns_only(table: pa.Table) -> None:
    out = schema.bury(table, ("image", "mask"))
    assert out["image"].to_pylist() == [b"1", None, b"3"]
    assert out["sample_id"].to_pylist() == ["a", "b", "c"]
    assert table["image"].to_pylist() == [b"1", b"2", b"3"]


def test_bury_table_of_dead_rows_keeps_its_types(table: pa.Table) -> None:
    dead = table.slice(1, 1)
    assert schema.bury(dead, ("image",)).schema == table.schema


def test_counts_by_status_puts_ok_first_then_by_count() -> None:
    statuses = ["b"] * 3 + ["a"] * 2 + ["c"] * 2 + ["ok"]
    assert list(schema.counts_by_status(statuses).items()) == [
        ("ok", 1), ("b", 3), ("a", 2), ("c", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "boundary",
    [schema.METADATA, schema.EMBEDDINGS, schema.ROW_TOMBSTONES, schema.CANDIDATES, schema.IMAGES,
     schema.ARCHIVE, schema.REFINED],
)  # fmt: skip
def test_boundary_schema_survives_parquet(boundary: pa.Schema, tmp_path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "empty.parquet"
    pq.write_table(boundary.empty_table(), path)
    assert pq.read_table(path).schema.equals(boundary)


def test_ignore_id_fits_the_label_type() -> None:
    assert np.array([schema.IGNORE], schema.LABEL_DTYPE)[0] == schema.IGNORE
