"""Sources: every schema that is published, found by alias and cast; kinds of files; bad sources."""

import functools
import http.server
import socket
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import MetadataConfig
from namedmask.errors import ConfigError, InputError, SchemaError
from namedmask.metadata.aliases import ALIASES
from namedmask.metadata.clean import read_metadata
from namedmask.metadata.sources import read_place
from tests.raw_server import RawServer, head
from tests.tables import read, urls, write

TEXTS = ["a crane", "NSFW words", "a horse", None]
MD5S = [None, "D41D8CD98F00B204E9800998ECF8427E", "d41d8cd98f00b204e9800998ecf8427e", ""]

# Four rows as each set has them: a good one, an unsafe one, one with a width of nothing and a
# similarity of 6016, and one that is null wherever it may be.
LAION_400M = {
    "SAMPLE_ID": pa.array([1, 2, 3, None], pa.int64()),
    "URL": pa.array(urls(4)),
    "TEXT": pa.array(TEXTS),
    "HEIGHT": pa.array([300, 301, 302, None], pa.int32()),
    "WIDTH": pa.array([400, 401, 0, None], pa.int32()),
    "LICENSE": pa.array(["?", "", None, None], pa.string()),
    "NSFW": pa.array(["UNLIKELY", "NSFW", "UNSURE", None]),
    "similarity": pa.array([0.31, 0.32, 6016.0, None], pa.float64()),
}
LANGUAGE = {"LANGUAGE": pa.array(["en", "de", "nolang", None])}
JOINED = {
    "URL": LAION_400M["URL"],
    "TEXT": LAION_400M["TEXT"],
    "WIDTH": LAION_400M["WIDTH"],
    "HEIGHT": LAION_400M["HEIGHT"],
    "similarity": LAION_400M["similarity"],
    "hash": pa.array([-(2**62), 1, 2, None], pa.int64()),
    "punsafe": pa.array([0.01, 0.97, None, None], pa.float32()),
    "pwatermark": pa.array([0.1, 0.2, None, None], pa.float32()),
}
DOUBLE = {
    name: JOINED[name].cast(pa.float64()) for name in ("WIDTH", "HEIGHT", "punsafe", "pwatermark")
}
SCORE = pa.array([6.1, 6.2, 5.1, None], pa.float32())
LOWER = {name.lower().replace("text", "caption"): column for name, column in JOINED.items()}
IMG2DATASET = {
    "similarity": LAION_400M["similarity"],
    "NSFW": LAION_400M["NSFW"],
    "LICENSE": LAION_400M["LICENSE"],
    "caption": LAION_400M["TEXT"],
    "url": LAION_400M["URL"],
    "key": pa.array(["000000000", "000000001", "000000002", "000000003"]),
    "status": pa.array(["success", "success", "failed_to_download", "failed_to_resize"]),
    "error_message": pa.array([None, None, "HTTP Error 404", "image decoding error"]),
    "width": pa.array([384, 384, None, None], pa.int32()),
    "height": pa.array([288, 288, None, None], pa.int32()),
    "original_width": pa.array([400, 401, 0, None], pa.int32()),
    "original_height": pa.array([300, 301, 302, None], pa.int32()),
    "exif": pa.array(["{}", "{}", None, None]),
    "md5": pa.array(MD5S),
}
SCHEMAS = {
    "laion400m": LAION_400M,
    "laion400m, ids as doubles": LAION_400M | {"SAMPLE_ID": pa.array([1.0, 2.0, 3.0, None])},
    "laion2B-en": LAION_400M,
    "laion2B-multi": LAION_400M | LANGUAGE,
    "laion1B-nolang": LAION_400M,
    "laion2B-en-joined": JOINED,
    "laion2B-multi-joined": JOINED | LANGUAGE,
    "laion2B-en-md5": JOINED | {"md5": pa.array(MD5S)},
    "aesthetic, 2B": JOINED | {"AESTHETIC_SCORE": SCORE} | DOUBLE,
    "aesthetic, with an index": JOINED
    | DOUBLE
    | {"aesthetic": SCORE.cast(pa.float64()), "__index_level_0__": pa.array([7, 5, 9, 1])},
    "relaion2B-en": JOINED,
    "relaion2B-en, lower case": LOWER,
    "img2dataset": IMG2DATASET,
    "clip-retrieval": {"image_path": pa.array(["0", "1", "2", "3"])} | IMG2DATASET,
}


@pytest.mark.parametrize("columns", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_sources_published_schema_is_read_with_its_dirt(tmp_path, columns, kind):
    path = tmp_path / f"part-00000.{kind}"
    write(path, columns) if kind == "parquet" else pacsv.write_csv(pa.table(columns), path)
    table = read(path, min_side=64, max_pwatermark=0.8, min_similarity=0.28)
    assert table["url"].to_pylist() == urls(4)
    assert table["caption"].to_pylist() == ["a crane", "NSFW words", "a horse", ""]
    assert table["width"].to_pylist() == [400, 401, 0, 0]
    assert table["height"].to_pylist() == [300, 301, 302, 0]
    np.testing.assert_allclose(table["similarity"].to_pylist()[:2], [0.31, 0.32], rtol=1e-6)
    assert table["similarity"].to_pylist()[2:] == [None, None]
    has_score = "punsafe" in {name.lower() for name in columns}
    scores = [None if one is None else round(one, 4) for one in table["punsafe"].to_pylist()]
    assert scores == ([0.01, 0.97, None, None] if has_score else [None] * 4)
    assert table["md5"].to_pylist() == [
        one and one.lower() for one in ([*MD5S[:3], None] if "md5" in columns else [None] * 4)
    ]
    assert table["status"].to_pylist() == ["ok", "unsafe", "ok", "ok"]


NUMBERS = st.sampled_from(
    [pa.int8(), pa.int16(), pa.uint32(), pa.int64(), pa.float16(), pa.float32(), pa.float64(),
     pa.decimal128(24, 3), pa.string(), pa.large_string()]
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_sources_any_case_order_and_numeric_type_mean_the_same(tmp_path_factory, data):
    values = {"url": urls(3), "width": [100, 2, 100], "height": [90, 90, 1], "caption": ["a"] * 3}
    columns = {}
    for name, column in values.items():
        alias = data.draw(st.sampled_from(ALIASES[name]))
        spelled = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in alias)
        array = pa.array(column)
        is_number = name in ("width", "height")
        columns[spelled] = array.cast(data.draw(NUMBERS)) if is_number else array
    strange = data.draw(st.lists(st.text(min_size=1, max_size=6).map("x_".__add__), max_size=3))
    columns |= {name: pa.array([[1], None, [2]]) for name in strange}
    order = data.draw(st.permutations(list(columns)))
    path = tmp_path_factory.mktemp("any") / "a.parquet"
    table = read(write(path, {name: columns[name] for name in order}), min_side=10)
    assert {name: table[name].to_pylist() for name in values} == values
    assert table["status"].to_pylist() == ["ok", "too_small", "too_small"]


@pytest.mark.parametrize(
    "names",
    [
        ("URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "punsafe", "pwatermark"),
        (
            "url",
            "caption",
            "original_width",
            "original_height",
            "SIMILARITY",
            "PUNSAFE",
            "Pwatermark",
        ),
        ("Url", "Alt_Text", "Width", "Height", "Similarity", "pUnsafe", "pwatermark"),
    ],
)
def test_sources_aliases_in_any_case_are_found(tmp_path, names):
    values = (urls(1), ["text"], [300.0], ["200"], [0.5], [0.25], [0.1])
    table = read(write(tmp_path / "a.parquet", dict(zip(names, values, strict=True))))
    row = table.to_pylist()[0]
    assert (row["caption"], row["width"], row["height"]) == ("text", 300, 200)
    assert (row["similarity"], row["punsafe"], row["status"]) == (0.5, 0.25, "ok")


def test_sources_better_alias_wins(tmp_path):
    path = write(tmp_path / "a.parquet", {"width": [1], "url": urls(1), "original_width": [99]})
    assert read(path)["width"].to_pylist() == [99]


def test_aliases_are_lower_case_and_belong_to_one_name():
    every = [alias for aliases in ALIASES.values() for alias in aliases]
    assert len(every) == len(set(every))
    assert every == [alias.lower() for alias in every]


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.csv.gz", ","), ("A.CSV.GZ", ";")])
def test_sources_csv_reads_dirt_as_text(tmp_path, name, comma):
    path = tmp_path / name
    rows = [["URL", "TEXT", "WIDTH", "other"], *([u, "a b", "300", "1"] for u in urls(200))]
    rows += [["http://b.com/x", '"two\nlines"', "n/a", ""], ["", "", "12.5", "x"]]
    text = "\n".join(comma.join(row) for row in rows)
    with pa.output_stream(str(path), compression="gzip" if name[-1] in "zZ" else None) as file:
        file.write(text.encode())
    table = read(path)
    assert table.num_rows == 202
    assert table["caption"].to_pylist()[-2] == "two\nlines"
    assert table["width"].to_pylist()[-3:] == [300, 0, 12]
    assert table["status"].to_pylist()[-2:] == ["ok", "bad_url"]


def test_sources_csv_equals_parquet(tmp_path):
    columns = {"url": urls(50), "text": [f"t{i}" for i in range(50)], "similarity": [0.25] * 50}
    write(tmp_path / "a.parquet", columns)
    pacsv.write_csv(pa.table(columns), tmp_path / "a.csv")
    assert read(tmp_path / "a.parquet").equals(read(tmp_path / "a.csv"))


@pytest.fixture
def served(tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_sources_table_over_http_is_read(tmp_path, served):
    write(tmp_path / "web.parquet", {"url": urls(5)})
    (tmp_path / "web.csv").write_text("url\nhttp://a.com/1\n", encoding="utf-8")
    assert read(f"{served}/web.parquet").equals(read(tmp_path / "web.parquet"))
    assert read(f"{served}/web.csv?x=1").num_rows == 1
    with pytest.raises(InputError, match=r"cannot be downloaded.*404"):
        read(f"{served}/none.parquet")


@pytest.mark.parametrize("heading", ["Content-Length: 60", "Transfer-Encoding: chunked"])
def test_sources_table_that_breaks_off_on_its_way_is_refused(heading):
    rows = b"url\nhttp://a.com/1\nhttp://a.com/2\n"

    def broken(talk):
        chunk = b"%x\r\n" % 60 if heading.endswith("chunked") else b""
        talk.say(head(heading), chunk + rows)
        talk.connection.shutdown(socket.SHUT_RDWR)

    with (
        RawServer({"/web.csv": broken}) as server,
        pytest.raises(InputError, match=r"web\.csv' cannot be downloaded"),
    ):
        read(f"{server.url}/web.csv")


def test_sources_image_folder_gives_file_urls(tmp_path):
    for name in ("crane bird/0001.jpg", "crane bird/0002.PNG", "tower_crane.webp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not read here")
    table = read(tmp_path)
    assert table["status"].to_pylist() == ["ok"] * 3
    assert table["caption"].to_pylist() == ["crane bird", "crane bird", "tower crane"]
    assert table["url"][0].as_py() == (tmp_path / "crane bird/0001.jpg").as_uri()


def test_sources_no_url_column_says_missing_and_found(tmp_path):
    path = write(tmp_path / "a.parquet", {"link": urls(1), "TEXT": ["a"]})
    with pytest.raises(SchemaError, match=r"a\.parquet' has no column of urls.*link, TEXT"):
        read(path)


def test_sources_nested_column_is_a_schema_error(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(1), "similarity": [[0.1]]})
    with pytest.raises(SchemaError, match="'similarity' is of type list"):
        read(path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_sources_corrupt_parquet_names_the_file(tmp_path, damage):
    path = write(tmp_path / "a.parquet", {"url": urls(5000)})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[100:400] = bytes(300)
    path.write_bytes({"empty": b"", "text": b"hello", "cut": bytes(data[:-100])}.get(damage, data))
    with pytest.raises(InputError, match=r"a\.parquet"):
        read(path)


def test_sources_csv_with_ragged_rows_counts_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("url,text\nhttp://a.com/1,a\nhttp://a.com/2,b,c\nhttp://a.com/3\n", "utf-8")
    table = read(path)
    assert table["status"].to_pylist() == ["ok", "bad_row", "bad_row"]
    assert table["url"].to_pylist()[1:] == ["http://a.com/2,b,c", "http://a.com/3"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.parquet", "does not exist"),
        ("*.parquet", "matches no file"),
        ("", "contains no image"),
    ],
)
def test_sources_missing_source_is_a_config_error(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / source)


def test_sources_missing_source_fails_before_the_first_row(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(1)})
    with pytest.raises(ConfigError):
        read_metadata(MetadataConfig(source=(str(path), str(tmp_path / "b.parquet"))))
    with pytest.raises(ConfigError, match=r"metadata\.source is empty"):
        read_metadata(MetadataConfig())


def test_sources_parquet_is_not_kept_in_memory_as_it_is_read(tmp_path):
    words = np.random.default_rng(0).bytes(20_000 * 100).hex()
    texts = [words[200 * i : 200 * i + 200] for i in range(20_000)]
    table = pa.table({"url": urls(20_000), "text": texts})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=500)
    del table, texts
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_place(str(path)):
        most = max(most, pa.total_allocated_bytes() - before)
    assert 0 < most < path.stat().st_size / 4
