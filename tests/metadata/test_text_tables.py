"""Text tables: rows in are lines in the file; every kind is read, or refused with the way out."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask import schema
from namedmask.errors import InputError, SchemaError
from namedmask.metadata import text_tables
from namedmask.metadata.sources import read_place
from tests.tables import read, urls


def counted(table):
    return schema.counts_by_status(table["status"].to_pylist())


def save(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def broken_lines(separator, quoted):
    """Return 20,000 lines, of which 40 have a caption that begins with a quote without an end."""
    broken = set(np.random.default_rng(0).choice(19_990, 40, replace=False).tolist())
    for number, url in enumerate(urls(20_000)):
        caption = f"a cat, number {number}" if quoted else f"a cat number {number}"
        cut = f'"{caption[:12].replace(",", "")}'
        yield f"{url}{separator}{cut if number in broken else f'{quoted}{caption}{quoted}'}"


@pytest.mark.parametrize(
    ("separator", "quoted", "expected"),
    [
        ("\t", "", {"ok": 20_000}),
        ("\t", '"', {"ok": 20_000}),
        (",", '"', {"ok": 19_960, "bad_row": 40}),
        (";", '"', {"ok": 19_960, "bad_row": 40}),
    ],
)
def test_text_table_with_broken_quotes_has_as_many_rows_as_lines(
    tmp_path, separator, quoted, expected
):
    lines = list(broken_lines(separator, quoted))
    name = "a.tsv" if separator == "\t" else "a.csv"
    path = save(tmp_path / name, "\n".join([f"url{separator}caption", *lines, ""]))
    table = read(path)
    assert counted(table) == expected
    bad = [row for row in table.to_pylist() if row["status"] == "bad_row"]
    assert [row["url"] for row in bad] == [line for line in lines if line.count('"') == 1][
        : len(bad)
    ]
    good = table.filter([status == "ok" for status in table["status"].to_pylist()])
    fields = [line.split(separator) for line in lines]
    if separator == "\t":
        assert good["caption"].to_pylist() == [caption for _, caption in fields]
    assert set(good["url"].to_pylist()) | {row["url"].split(separator)[0] for row in bad} == {
        url for url, *_ in fields
    }


def test_text_table_csv_that_ends_in_an_open_quote_is_refused_before_its_first_row(tmp_path):
    lines = list(broken_lines(",", ""))
    path = save(tmp_path / "a.csv", "\n".join(["url,caption", *lines]))
    last = max(number for number, line in enumerate(lines, 2) if '"' in line)
    tables = read_place(str(path))
    with pytest.raises(InputError, match=rf"a\.csv', line {last:,}: .* never closed.*TSV"):
        next(tables)


ROWS = [("http://a.com/1.jpg", "a café"), ("http://a.com/2.jpg", ""), ("http://a.com/3.jpg", "c")]
SEPARATED = {
    "a.csv": "url,caption\n{}", "A.CSV": "url,caption\n{}", "a.tsv": "url\tcaption\n{}",
    "a.tab": "URL\tTEXT\n{}", "semicolon.csv": "url;caption\n{}", "tab.csv": "url\tcaption\n{}",
    "bar.csv": "url|caption\n{}",
}  # fmt: skip


@pytest.mark.parametrize("name", SEPARATED)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_table_any_encoding_and_line_end_is_the_same(tmp_path, name, encoding, end):
    header = SEPARATED[name].split("\n")[0]
    separator = next(mark for mark in ",;\t|" if mark in header)
    text = "\n".join([header, *(separator.join(row) for row in ROWS)]) + "\n"
    path = save(tmp_path / name, text.replace("\n", end), encoding)
    packed = save(tmp_path / f"{name}.GZ", gzip.compress(path.read_bytes()))
    for one in (path, packed):
        table = read(one)
        assert (
            list(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)) == ROWS
        )
        assert counted(table) == {"ok": 3}


def test_text_table_packed_without_the_suffix_is_read_all_the_same(tmp_path):
    assert read(save(tmp_path / "a.csv", gzip.compress(b"url\nhttp://a.com/1\n"))).num_rows == 1
    assert read(save(tmp_path / "b.csv.gz", b"url\nhttp://a.com/1\n")).num_rows == 1


@pytest.mark.parametrize(
    ("header", "place"),
    [
        ('"URL","TEXT"', (0, 1)), (" Url , Text ", (0, 1)), ("caption,url", (1, 0)),
        ("x,url,URL,caption", (1, 3)), ("url,url,caption,text", (0, 2)),
        ('"a\nb",img_url,alt', (1, 2)), ("id,image_url,alt_text,", (1, 2)),
    ],
)  # fmt: skip
def test_text_table_columns_are_found_by_their_first_position(tmp_path, header, place):
    cells = [f"http://a.com/{number}" for number in range(header.count(",") + 1)]
    table = read(save(tmp_path / "a.csv", f"{header}\n{','.join(cells)}\n"))
    assert table["url"].to_pylist() == [cells[place[0]]]
    assert table["caption"].to_pylist() == [cells[place[1]]]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt", "a.csv.gz"])
@pytest.mark.parametrize("text", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_text_table_without_a_line_is_refused(tmp_path, name, text):
    data = gzip.compress(text) if name.endswith("gz") else text
    with pytest.raises(InputError, match="is empty"):
        read(save(tmp_path / name, data))


@pytest.mark.parametrize("text", ["url,caption", "url,caption\n", "\nurl,caption\r\n\n"])
def test_text_table_with_a_header_only_has_no_rows(tmp_path, text):
    assert read(save(tmp_path / "a.csv", text)).num_rows == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "link,text\nhttp://a.com/1,a\n", "no column of urls.*link, text"),
        ("a.csv", "http://a.com/1,a\nhttp://a.com/2,b\n", "first line must hold the names"),
        ("a.tsv", '"url"\t"text"\nhttp://a.com/1\ta\n', "names, unquoted"),
        ("a.jsonl", '{"link": "x"}\n{"text": "y"}\n', "no column of urls.*text"),
    ],
)
def test_text_table_without_a_url_column_says_what_it_has(tmp_path, name, text, message):
    with pytest.raises(SchemaError, match=message):
        read(save(tmp_path / name, text))


@pytest.mark.parametrize("text", ['[{"url": "x"},\n{"url": "y"}]', '{\n"url": "x"\n}', "url\nx\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson"])
def test_text_table_json_that_is_not_in_lines_is_refused(tmp_path, name, text):
    with pytest.raises(InputError, match="one object per line"):
        read(save(tmp_path / name, text))


def test_text_table_json_lines_are_read_with_their_dirt(tmp_path):
    rows = [
        {"URL": "http://a.com/1", "text": "é", "width": 300, "nsfw": True},
        {"caption": "b", "image_url": "http://a.com/2", "height": "20", "width": None},
        {"url": "http://a.com/3", "caption": ["a", 1], "width": "n/a", "nsfw": 0.2},
        {"caption": "no url"},
    ]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [
        b'{"url": "http://a.com/4", "caption": "ol\xe9"}', b"",
        b'{"url": "http://a.com/5", "caption": "\\ud83d"}', b'{"url": "http://a.com',
        b"[1]", b"[" * 100_000, b'{"url": ' + b"9" * 5000 + b"}",
    ]  # fmt: skip
    table = read(save(tmp_path / "a.jsonl", b"\n".join(lines)), max_punsafe=0.5)
    assert table["status"].to_pylist() == [
        "unsafe", "ok", "ok", "bad_url", "ok", "ok", "bad_row", "bad_row", "bad_row", "bad_row",
    ]  # fmt: skip
    captions = ["é", "b", '["a", 1]', "no url", "ol\ufffd", "\ufffd\ufffd\ufffd"]
    assert table["caption"].to_pylist()[:6] == captions
    assert table["width"].to_pylist()[:3] == [300, 0, 0]
    assert table["height"].to_pylist()[1] == 20


def test_text_table_list_has_one_url_per_line(tmp_path):
    path = save(
        tmp_path / "urls.txt", "http://a.com/1\r\n\r\n http://a.com/2 \r\nhttp://b\tx\r\n#\r\n"
    )
    table = read(path)
    assert table["status"].to_pylist() == ["ok", "ok", "bad_row", "bad_url"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "iso-8859-15"])
def test_text_table_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path, caplog, encoding):
    path = save(tmp_path / "a.csv", "url,caption\nhttp://a.com/1,a £\nhttp://a.com/2,b\n".encode(
        encoding, "replace").replace(b"?", b"\x81"))  # fmt: skip
    table = read(path)
    assert counted(table) == {"ok": 2}
    table.validate(full=True)
    assert table["caption"].to_pylist() == ["a \ufffd", "b"]
    assert (
        "a.csv': bytes that are not UTF-8 are replaced in this number of texts: 1." in caplog.text
    )
    caplog.clear()
    assert read(path, max_rows=1).num_rows == 1
    assert "not UTF-8" in caplog.text


def test_text_table_fields_with_line_ends_are_told(tmp_path, caplog):
    path = save(tmp_path / "a.csv", 'url,caption\nhttp://a.com/1,"a\nb\nc"\nhttp://a.com/2,"d"\n')
    assert read(path)["caption"].to_pylist() == ["a\nb\nc", "d"]
    assert "1 rows have line ends in a field, and 3 lines" in caplog.text


def test_text_table_huge_row_is_a_row_and_batches_are_bounded_by_bytes(tmp_path, monkeypatch):
    image = "data:image/png;base64," + "A" * 3_000_000
    lines = ["url,caption", f'"{image}",x', f"http://a.com/1,{'y' * 70_000}", "http://a.com/2,z"]
    path = save(tmp_path / "a.csv", "\n".join(lines))
    table = read(path)
    assert table["status"].to_pylist() == ["bad_url", "ok", "ok"]
    assert [len(text) for text in table["url"].to_pylist()] == [65_536, 14, 14]
    assert [len(text) for text in table["caption"].to_pylist()] == [1, 65_536, 1]
    path = save(tmp_path / "b.csv", "url\n" + f'"{image}"\n' * 40)
    sizes = [table.nbytes for table in read_place(str(path))]
    assert len(sizes) > 3
    assert max(sizes) < 1.2 * text_tables.BATCH_BYTES


def test_text_table_max_rows_counts_bad_rows(tmp_path):
    path = save(tmp_path / "a.tsv", "url\tcaption\nx\nhttp://a.com/1\ta\nhttp://a.com/2\tb\n")
    assert read(path, max_rows=2)["status"].to_pylist() == ["bad_row", "ok"]


def test_text_table_bad_rows_are_no_repeats(tmp_path):
    path = save(
        tmp_path / "a.tsv", "url\tcaption\nhttp://a.com/1\nhttp://a.com/1\nhttp://a.com/1\ta\n"
    )
    assert read(path)["status"].to_pylist() == ["bad_row", "bad_row", "ok"]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["a.tsv", "a.txt", "a.jsonl"]),
)
def test_text_table_rows_in_are_lines_in_the_file(tmp_path_factory, lines, end, name):
    first = {"a.tsv": b"url\tcaption", "a.txt": b"http://a.com/", "a.jsonl": b'{"url": ""}'}[name]
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(end.encode().join([first, *lines]))
    table = read(path)
    filled = sum(bool(line.strip(b"\r\n")) for line in lines)
    assert table.num_rows == filled + (name != "a.tsv")
    table.validate(full=True)
    if name == "a.tsv":
        split = [line.strip(b"\r").count(b"\t") == 1 for line in lines if line.strip(b"\r\n")]
        assert [status != "bad_row" for status in table["status"].to_pylist()] == split


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.txt", "a.csv.gz"]))
def test_text_table_any_bytes_are_read_or_refused(tmp_path_factory, data, name):
    path = save(tmp_path_factory.mktemp("any") / name, b"url,x\n" * (name == "a.csv") + data)
    try:
        read(path).validate(full=True)
    except InputError as error:
        assert str(path) in str(error)
