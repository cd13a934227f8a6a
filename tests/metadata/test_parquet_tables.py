"""Parquet tables: columns by position, batches bounded by bytes, damage in one line."""

import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import MetadataConfig
from namedmask.errors import InputError
from namedmask.metadata import parquet_tables
from namedmask.metadata.clean import rows_of
from namedmask.metadata.sources import read_place
from namedmask.metadata.text_tables import BATCH_BYTES
from tests.tables import read, urls


def test_parquet_columns_of_one_name_are_told_apart(tmp_path):
    names = ["caption", "url", "x", "URL", "url", "url.x", "TEXT", "caption"]
    columns = [["first"], urls(1), [1], urls(1, 5), urls(1, 6), ["y"], ["text"], ["last"]]
    pq.write_table(pa.table([pa.array(one) for one in columns], names), tmp_path / "a.parquet")
    row = read(tmp_path / "a.parquet").to_pylist()[0]
    assert (row["url"], row["caption"]) == (urls(1)[0], "first")


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(["url", "URL", "Url ", "text", "caption", "Caption", "x", "url.x",
                                 "width", "\ufeffurl"]), max_size=9))  # fmt: skip
def test_parquet_any_columns_give_the_first_of_a_name(tmp_path_factory, others):
    names = [*others, "url"]
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    columns = [pa.array([f"http://{number}.com/"]) for number in range(len(names))]
    pq.write_table(pa.table(columns, names), path)
    plain = [name.strip("\ufeff ").lower() for name in names]
    captions = [plain.index(alias) for alias in ("caption", "text") if alias in plain]
    row = read(path).to_pylist()[0]
    assert row["url"] == f"http://{plain.index('url')}.com/"
    assert row["caption"] == (f"http://{captions[0]}.com/" if captions else "")


KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary_view()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parquet_batches_of_long_texts_are_bounded_by_bytes(tmp_path, kind):
    words = np.random.default_rng(0).bytes(1_500_000).hex()
    values = [f"{number}{words}" for number in range(60)]
    table = pa.table({"url": urls(60), "caption": pa.array(values).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    batches = list(read_place(str(tmp_path / "a.parquet")))
    assert sum(batch.num_rows for batch in batches) == 60
    assert max(batch.nbytes for batch in batches) < 2 * BATCH_BYTES + 50_000_000
    found = read(tmp_path / "a.parquet")["caption"].to_pylist()
    assert found == [value[:65_536] for value in values]


@pytest.mark.slow
def test_parquet_row_that_is_named_often_takes_little_memory(tmp_path):
    text = pa.array(["http://a.com/" + "x" * 2_000_000])
    indices = pa.array(np.zeros(2048, np.int32))
    column = pa.DictionaryArray.from_arrays(indices, text)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": urls(2048), "caption": column}), path)
    assert path.stat().st_size < 1_000_000
    code = (
        "import resource; from tests.tables import read; before = resource.getrusage("
        f"resource.RUSAGE_SELF).ru_maxrss; table = read({str(path)!r}); "
        "print(table.num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, grown = map(int, done.stdout.split())
    assert rows == 2048
    assert grown * resource.getpagesize() / 4096 < 400_000  # KiB; all texts would be 4 GB


@pytest.mark.parametrize("size", [10, 5_000])
def test_parquet_rows_by_index_are_those_of_the_whole(tmp_path, size):
    rng = np.random.default_rng(size)
    captions = [rng.bytes(size // 2).hex() for _ in range(5000 if size < 100 else 700)]
    table = pa.table({"url": urls(len(captions)), "caption": captions})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=300)
    whole = read(path)
    rows = np.sort(rng.choice(len(captions), 100, replace=False))
    assert rows_of(path, rows, MetadataConfig()).to_pylist() == whole.take(rows).to_pylist()


@pytest.mark.parametrize(
    "damage", [*range(20), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 300))]
)
def test_parquet_damaged_file_is_read_or_refused_with_its_name(tmp_path, damage):
    rng = np.random.default_rng(damage)
    path = tmp_path / "a.parquet"
    table = {
        "url": urls(200),
        "caption": [f"caption {n}" for n in range(200)],
        "width": [1.0] * 200,
    }
    pq.write_table(pa.table(table), path, row_group_size=50)
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 6)):
        # of two files, one is damaged in its footer, where the numbers steer the reader
        start = (
            rng.integers(0, len(data)) if damage % 2 else rng.integers(len(data) - 800, len(data))
        )
        data[start] = rng.integers(0, 256)
    path.write_bytes(data[: rng.integers(0, len(data))] if damage % 10 == 0 else data)
    try:
        read(path).validate(full=True)
    except InputError as error:
        assert "a.parquet" in str(error)


def test_parquet_name_that_is_no_utf8_is_read(tmp_path):
    path = tmp_path / "ol\udce9.parquet"
    with path.open("wb") as file:
        pq.write_table(pa.table({"url": urls(3)}), file)
    assert read(path).num_rows == 3
    assert read(tmp_path / "*.parquet").num_rows == 3


def test_parquet_constants_agree():
    assert parquet_tables.LONG_TEXT * parquet_tables.BATCH_ROWS <= BATCH_BYTES
