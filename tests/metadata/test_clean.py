"""Metadata as it comes: types, dirt, safety, filters, duplicates, waves."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from namedmask import schema
from namedmask.metadata.clean import waves
from namedmask.metadata.urls import normalize_url
from tests.tables import read, urls, write


def test_read_metadata_parquet_gives_schema_and_order(tmp_path):
    path = write(tmp_path / "a.parquet", {"URL": urls(3), "TEXT": ["a", None, "c"]})
    table = read(path)
    assert table.schema == schema.METADATA
    assert table["url"].to_pylist() == urls(3)
    assert table["caption"].to_pylist() == ["a", "", "c"]
    assert table["status"].to_pylist() == ["ok"] * 3
    assert table["width"].to_pylist() == [0] * 3
    assert table["similarity"].null_count == table["punsafe"].null_count == 3


def test_read_metadata_dirty_values_become_unknown(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "url": urls(6),
            "WIDTH": [0.0, float("nan"), -3.0, 1e12, None, 640.7],
            "HEIGHT": ["", "x", "-1", "1e3", None, " 480 "],
            "similarity": [6016.0, float("nan"), None, -1.0, 1.0, float("inf")],
            "punsafe": pa.array([2.0, -0.1, None, float("nan"), 0.5, 1.0], pa.float32()),
        },
    )
    table = read(path, max_punsafe=1.0, min_side=100)
    assert table["width"].to_pylist() == [0, 0, 0, 0, 0, 640]
    assert table["height"].to_pylist() == [0, 0, 0, 1000, 0, 480]
    assert table["similarity"].to_pylist() == [None, None, None, -1.0, 1.0, None]
    assert table["punsafe"].to_pylist() == [None, None, None, None, 0.5, 1.0]
    assert table["status"].to_pylist() == ["ok"] * 6


def test_read_metadata_sizes_filter_both_ways_round(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {"url": urls(5), "width": [50, 500, 400, 100, 0], "height": [500, 50, 100, 400, 9]},
    )
    words = read(path, min_side=64, max_aspect=3.0)["status"].to_pylist()
    assert words == ["too_small", "too_small", "bad_aspect", "bad_aspect", "ok"]
    assert read(path, max_aspect=4.0)["status"].to_pylist()[2:] == ["ok"] * 3


def test_read_metadata_unsafe_by_score_or_tag(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "url": urls(8),
            "punsafe": [0.5, 0.51, None, None, None, None, 0.1, 0.9],
            "NSFW": ["UNSURE", None, "NSFW", "UNLIKELY", "UNSURE", None, " nsfw", "UNLIKELY"],
        },
    )
    kept = read(path, unknown_punsafe="keep")["status"].to_pylist()
    assert kept == ["ok", "unsafe", "unsafe", "ok", "ok", "ok", "unsafe", "unsafe"]
    dropped = read(path, unknown_punsafe="drop")["status"].to_pylist()
    assert dropped == ["ok", "unsafe", "unsafe", "ok", "unsafe", "unsafe", "unsafe", "unsafe"]


def test_read_metadata_unknown_safety_without_columns_follows_the_rule(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(2)})
    assert read(path)["status"].to_pylist() == ["ok"] * 2
    assert read(path, unknown_punsafe="drop")["status"].to_pylist() == ["unsafe"] * 2


def test_read_metadata_similarity_outside_the_range_is_marked_and_unknown_passes(tmp_path):
    path = write(
        tmp_path / "a.parquet", {"url": urls(6), "similarity": [0.2, 0.3, 0.9, None, 6016.0, 1.0]}
    )
    assert read(path)["status"].to_pylist() == ["ok"] * 6
    within = read(path, min_similarity=0.28, max_similarity=0.95)["status"].to_pylist()
    bad = "bad_similarity"
    assert within == [bad, "ok", "ok", "ok", "ok", bad]


def test_read_metadata_hashes_are_lower_case_digits_or_null(tmp_path):
    md5, sha256 = "0123456789ABCDEF" * 2, "0123456789abcdef" * 4
    path = write(
        tmp_path / "a.parquet",
        {
            "url": urls(6),
            "MD5": [md5, f" {md5} ", None, "", md5[:-1], md5[:-1] + "g"],
            "sha256": [sha256.upper(), sha256.encode().decode(), md5, None, sha256 + "0", "None"],
        },
    )
    table = read(path)
    assert table["md5"].to_pylist() == [md5.lower()] * 2 + [None] * 4
    assert table["sha256"].to_pylist() == [sha256] * 2 + [None] * 4
    assert table["status"].to_pylist() == ["ok"] * 6


def test_read_metadata_watermark_filter_is_off_by_default(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(3), "pwatermark": [0.99, 0.7, None]})
    assert read(path)["status"].to_pylist() == ["ok"] * 3
    assert read(path, max_pwatermark=0.8)["status"].to_pylist() == ["watermark", "ok", "ok"]


def test_read_metadata_duplicate_urls_across_files_are_marked(tmp_path):
    write(
        tmp_path / "1.parquet", {"url": ["http://a.com/x", "http://A.com:80/x#y", "http://a.com/z"]}
    )
    write(tmp_path / "2.parquet", {"url": ["http://a.com/z", "http://a.com/w"]})
    table = read(tmp_path / "*.parquet")
    dup = "duplicate_url"
    assert table["status"].to_pylist() == ["ok", dup, "ok", dup, "ok"]
    ids = table["sample_id"].to_pylist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_read_metadata_clean_row_does_not_revive_an_unsafe_url(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {"url": ["http://a.com/x"] * 3, "punsafe": [0.9, None, 0.9], "width": [9] * 3},
    )
    assert read(path)["status"].to_pylist() == ["unsafe", "duplicate_url", "unsafe"]


def test_read_metadata_bad_urls_pass_as_tombstones(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": [None, "", "a.jpg", "a.jpg", "http://a.com/1"]})
    table = read(path)
    assert table["status"].to_pylist() == ["bad_url"] * 4 + ["ok"]
    assert table["sample_id"].null_count == table["url"].null_count == 0


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_read_metadata_url_types_are_cast(tmp_path, kind):
    values = pa.array(urls(3)).cast(kind) if not pa.types.is_dictionary(kind) else pa.array(
        urls(3)
    ).dictionary_encode()  # fmt: skip
    table = read(write(tmp_path / "a.parquet", {"url": values}))
    assert table["url"].to_pylist() == urls(3)


def test_read_metadata_max_rows_cuts_over_all_sources(tmp_path):
    write(tmp_path / "1.parquet", {"url": urls(3)})
    write(tmp_path / "2.parquet", {"url": urls(3, 3)})
    assert read(tmp_path / "*.parquet", max_rows=4)["url"].to_pylist() == urls(4)
    assert read(tmp_path / "*.parquet", max_rows=9).num_rows == 6


def test_read_metadata_empty_table_gives_no_rows(tmp_path):
    assert read(write(tmp_path / "a.parquet", {"url": pa.array([], pa.string())})).num_rows == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_waves_any_chunks_give_exact_sizes_in_order(sizes, rows):
    starts = np.cumsum([0, *sizes]).tolist()
    tables = [pa.table({"i": pa.array(range(a, a + n), pa.int64())})
              for a, n in zip(starts, sizes, strict=False)]  # fmt: skip
    out = list(waves(iter(tables), rows))
    assert [i for table in out for i in table["i"].to_pylist()] == list(range(sum(sizes)))
    assert all(table.num_rows == rows for table in out[:-1])
    assert not out or 0 < out[-1].num_rows <= rows


def test_read_metadata_real_urls_all_get_ids(real_data):
    table = read(real_data / "metadata" / "web_urls_10000.parquet")
    assert table.num_rows == 10_000
    words = schema.counts_by_status(table["status"].to_pylist())
    assert words == {"ok": 9998, "bad_url": 1, "duplicate_url": 1}
    bad = table["url"].to_pylist()[table["status"].to_pylist().index("bad_url")]
    assert bad == "UNLIKELY"  # a row of the source with its columns shifted
    ids = table["sample_id"].to_pylist()
    assert len(set(ids)) == 9999
    assert all(len(one) == 20 for one in ids)
    normal = [normalize_url(url) for url in table["url"].to_pylist()]
    assert normal.count("") == 1
    assert [normalize_url(one) for one in normal] == normal
    assert all(one.isascii() for one in normal)


def test_read_metadata_real_photo_folder_lists_every_photo(real_data):
    table = read(real_data / "imagenet50")
    assert table.num_rows == 50
    assert "goldfish" in " ".join(table["caption"].to_pylist())
    with Image.open(table["url"][0].as_py().removeprefix("file://")) as image:
        assert image.size[0] > 0
