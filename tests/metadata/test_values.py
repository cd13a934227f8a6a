"""Values: every Arrow type that holds a text or a number means the same; bad bytes are counted."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.errors import SchemaError
from namedmask.metadata.values import (
    REPLACED,
    TAGS,
    UNREAD_TAGS,
    numbers,
    tag_scores,
    texts,
)
from tests.tables import read, urls, write

KINDS = {
    "string": pa.string(), "large_string": pa.large_string(), "string_view": pa.string_view(),
    "binary": pa.binary(), "large_binary": pa.large_binary(), "binary_view": pa.binary_view(),
    "dictionary of string": pa.dictionary(pa.int16(), pa.string()),
    "dictionary of large_string": pa.dictionary(pa.int32(), pa.large_string()),
    "dictionary of binary": pa.dictionary(pa.int8(), pa.binary()),
}  # fmt: skip
RAW = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(),
       pa.string_view(): pa.binary_view()}  # fmt: skip


def array(values, kind):
    """Return bytes or nulls as an array of any text type, without a check of the bytes."""
    if pa.types.is_dictionary(kind):
        different = list(dict.fromkeys(value for value in values if value is not None))
        indices = [None if value is None else different.index(value) for value in values]
        return pa.DictionaryArray.from_arrays(
            pa.array(indices, kind.index_type), array(different, kind.value_type)
        )
    raw = pa.array(values, RAW.get(kind, kind))
    return raw.view(kind) if kind in RAW else raw


def chunked(values, kind):
    return pa.chunked_array([array(values[:2], kind), array(values[2:], kind)])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_values_texts_of_any_type_are_valid_and_bad_ones_counted(kind):
    tally = Counter()
    values = [b"ok", b"ol\xe9", None, "é鳥".encode(), b"\xed\xa0\x80", b"", b"ol\xe9"]
    found = texts(chunked(values, kind), "caption", "a.parquet", tally)
    found.validate(full=True)
    assert found.type == pa.string()
    assert found.to_pylist() == ["ok", "ol\ufffd", "", "é鳥", "\ufffd" * 3, "", "ol\ufffd"]
    assert tally == {REPLACED: 3}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_values_numbers_in_texts_of_any_type_are_read(kind):
    values = [b"640.5", b" +7 ", b"n/a", None, b"", b"1e400", b"\xe9", b"0x10", b"-3", b"1_0"]
    found = numbers(chunked(values, kind), "width", "a.parquet", Counter())
    nan = np.nan
    np.testing.assert_array_equal(found, [640.5, 7, nan, nan, nan, np.inf, nan, nan, -3, nan])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([True, None]), [1, np.nan]),
        (pa.array([1, None], pa.uint64()), [1, np.nan]),
        (pa.array([1.5, None], pa.float16()), [1.5, np.nan]),
        (pa.array([1, None], pa.decimal128(5, 2)), [1, np.nan]),
        (pa.nulls(2), [np.nan, np.nan]),
        (pa.array([2.5, None]).dictionary_encode(), [2.5, np.nan]),
        (pa.array(["2.5", None], pa.json_()), [2.5, np.nan]),
        (pa.array([b"12", None], pa.binary(2)), [12, np.nan]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_values_numbers_of_other_types_are_read(column, expected):
    found = numbers(pa.chunked_array([column]), "width", "a.parquet", Counter())
    np.testing.assert_array_equal(found, expected)


OTHERS = {
    "null": pa.nulls(2), "integer": pa.array([1, None]), "float": pa.array([0.5, None]),
    "bool": pa.array([True, None]), "timestamp": pa.array([0, None], pa.timestamp("s")),
    "date": pa.array([0, None], pa.date32()), "duration": pa.array([0, None], pa.duration("s")),
    "decimal": pa.array([1, None], pa.decimal128(5, 2)), "json": pa.array(["{}", None], pa.json_()),
    "fixed": pa.array([b"\xff\xfe", None], pa.binary(2)),
    "dictionary of integers": pa.array([5, None]).dictionary_encode(),
}  # fmt: skip
NESTED = {
    "list": pa.array([["a"], None]), "struct": pa.array([{"x": 1}, None]),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
}  # fmt: skip


@pytest.mark.parametrize("column", OTHERS.values(), ids=OTHERS)
def test_values_texts_of_other_types_are_texts(column):
    found = texts(pa.chunked_array([column]), "caption", "a.parquet", Counter())
    found.validate(full=True)
    assert found.to_pylist()[1] == ""
    assert bool(found.to_pylist()[0]) == (not pa.types.is_null(column.type))


@pytest.mark.parametrize("column", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("read_values", [texts, numbers, tag_scores])
def test_values_of_nested_types_are_a_schema_error(column, read_values):
    with pytest.raises(SchemaError, match=r"'a\.parquet': the column for 'width' is of type"):
        read_values(pa.chunked_array([column]), "width", "a.parquet", Counter())


def test_values_empty_column_has_no_values():
    for kind in KINDS.values():
        column = pa.chunked_array([], kind)
        assert len(texts(column, "url", "a", Counter())) == 0
        assert len(tag_scores(column, "nsfw", "a", Counter())) == 0


@pytest.mark.parametrize(
    ("column", "expected", "unread"),
    [
        (pa.array([True, False, None]), [1, 0, np.nan], 0),
        (pa.array([0.99, 0.0, None]), [0.99, 0, np.nan], 0),
        (pa.array([97.0, 0.5, np.nan]), [np.nan, 0.5, np.nan], 1),
        (pa.array([1, 0, None]), [1, 0, np.nan], 0),
        (pa.array(["NSFW", "UNLIKELY", "UNSURE"]), [1, 0, np.nan], 0),
        (pa.array([" true", "False", "yes"]), [1, 0, 1], 0),
        (pa.array(["0.99", "0", ""]), [0.99, 0, np.nan], 0),
        (pa.array(["porn", "7", "nan"]), [np.nan] * 3, 3),
        (pa.array([None, None, "sfw"]).dictionary_encode(), [np.nan, np.nan, 0], 0),
    ],
)
def test_values_tags_flags_and_scores_are_probabilities(column, expected, unread):
    tally = Counter()
    found = tag_scores(pa.chunked_array([column]), "nsfw", "a.parquet", tally)
    np.testing.assert_array_equal(found, expected)
    assert tally[UNREAD_TAGS] == unread
    assert tally[TAGS] == unread + np.sum(~np.isnan(expected))


@pytest.mark.parametrize(
    "column", [pa.array([True, False, None]), pa.array([0.99, 0.1, None]), ["true", "0", "x"]]
)
def test_values_flag_or_score_in_nsfw_rules_rows_out(tmp_path, caplog, column):
    path = write(tmp_path / "a.parquet", {"url": urls(3), "nsfw": column})
    assert read(path)["status"].to_pylist() == ["unsafe", "ok", "ok"]
    assert read(path, unknown_punsafe="drop")["status"].to_pylist() == ["unsafe", "ok", "unsafe"]
    assert ("1 of 3 values of the column 'nsfw' say nothing" in caplog.text) == ("x" in column)


BYTES = st.one_of(st.none(), st.binary(max_size=12), st.text(max_size=6).map(lambda t: t.encode(
    "utf-8", "surrogatepass")))  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.lists(BYTES, max_size=9), st.sampled_from(list(KINDS.values())), st.integers(0, 9))
def test_values_any_bytes_of_any_type_are_decoded_like_bytes(values, kind, cut):
    column = pa.chunked_array([array(values[:cut], kind), array(values[cut:], kind)], kind)
    tally = Counter()
    found = texts(column, "caption", "a", tally)
    found.validate(full=True)
    expected = [(value or b"").decode("utf-8", "replace") for value in values]
    assert found.to_pylist() == expected
    pairs = zip(values, expected, strict=True)
    assert tally[REPLACED] == sum(text.encode() != (value or b"") for value, text in pairs)
    numbers(column, "width", "a", tally)
    tag_scores(column, "nsfw", "a", tally)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_values_bad_bytes_in_any_column_of_a_file_cost_no_row(tmp_path_factory, data):
    names = ("url", "caption", "nsfw", "width", "height", "similarity", "punsafe", "md5", "sha256")
    chosen = ["url", *data.draw(st.lists(st.sampled_from(names[1:]), unique=True))]
    rows = data.draw(st.integers(1, 5))
    columns = {}
    for name in chosen:
        kind = data.draw(st.sampled_from(list(KINDS.values())))
        columns[name] = array(data.draw(st.lists(BYTES, min_size=rows, max_size=rows)), kind)
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    pq.write_table(pa.table(columns), path)
    table = read(path)
    table.validate(full=True)
    assert table.num_rows == rows
