"""Metadata as it comes: aliases, dirt, safety, duplicates, sources, bad sources."""

import functools
import http.server
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from namedmask import schema
from namedmask.config import MetadataConfig
from namedmask.errors import ConfigError, InputError, SchemaError
from namedmask.metadata import ALIASES, read_metadata, waves
from namedmask.urls import normalize_url, sample_id


def read(*sources, **options):
    tables = list(read_metadata(MetadataConfig(source=tuple(map(str, sources)), **options)))
    return pa.concat_tables(tables) if tables else schema.METADATA.empty_table()


def write(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


def urls(count, start=0):
    return [f"https://example.com/{i}.jpg" for i in range(start, start + count)]


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        (" https://example.com:443/a b.jpg\n", "https://example.com/a%20b.jpg"),
        ("http://example.com:80/x?q=1#top", "http://example.com/x?q=1"),
        ("http://example.com:8080/X", "http://example.com:8080/X"),
        ("http://bücher.example/ü.jpg", "http://xn--bcher-kva.example/%C3%BC.jpg"),
        ("http://example.com/100%.jpg", "http://example.com/100%25.jpg"),
        ("http://example.com/%c3%bc", "http://example.com/%C3%BC"),
        ("http://User:Pa@Example.com/", "http://User:Pa@example.com/"),
        ("http://[::1]:80/", "http://[::1]/"),
        ("http://[2001:DB8::0:1]/", "http://[2001:db8::1]/"),
        ("http://a_b.example.com/", "http://a_b.example.com/"),
        ("file:///data/a b.jpg", "file:///data/a%20b.jpg"),
    ],
)
def test_normalize_url_gives_one_spelling(url, normal):
    assert normalize_url(url) == normal


@pytest.mark.parametrize(
    "url",
    [
        "", "a.jpg", "www.example.com/a.jpg", "//example.com/a", "ftp://example.com/a",
        "data:image/png;base64,AAAA", "javascript:alert(1)", "http://", "http:///a", "http://a:b/",
        "http://a:99999/", "http://[::1", "http://[fe80::1%25eth0]/", "http://ex ample.com/",
        "http://exa<mple.com/", "http://./", "http://a\\b/", "file://server/share/a.jpg",
        "http://" + "ü" * 80 + ".com/",
    ],
)  # fmt: skip
def test_normalize_url_no_url_gives_empty(url):
    assert normalize_url(url) == ""


@settings(deadline=None)
@given(
    st.one_of(st.text(), st.text().map("http://".__add__), st.text().map("https://a.b/".__add__))
)
def test_normalize_url_any_text_never_raises_and_is_idempotent(text):
    normal = normalize_url(text)
    assert normal.isascii()
    assert normalize_url(normal) == normal
    assert len(sample_id(text)) == 20


@settings(deadline=None)
@given(
    st.sampled_from(["http", "HTTPS"]),
    st.from_regex(r"[a-zA-Z0-9]{1,9}(\.[a-zA-Z0-9ü]{1,9}){1,3}", fullmatch=True),
    st.integers(0, 65535),
    st.text(st.characters(exclude_characters="?#"), max_size=20),
    st.text(max_size=20),
)
def test_normalize_url_spellings_of_one_url_share_an_id(scheme, host, port, path, fragment):
    url = f"{scheme}://{host}:{port}/{path}"
    if not normalize_url(url):
        return
    assert normalize_url(normalize_url(url)) == normalize_url(url)
    other = f" {scheme.lower()}://{host.upper().replace('Ü', 'ü')}:{port}/{path}x#{fragment}"
    assert sample_id(other) == sample_id(url + "x")


def test_sample_id_is_the_same_on_every_machine():
    assert sample_id("http://Example.com:80#x") == sample_id("http://example.com/")
    assert sample_id("http://example.com/") == "48caf8bc2eae80b6d393"


def test_read_metadata_parquet_gives_schema_and_order(tmp_path):
    path = write(tmp_path / "a.parquet", {"URL": urls(3), "TEXT": ["a", None, "c"]})
    table = read(path)
    assert table.schema == schema.METADATA
    assert table["url"].to_pylist() == urls(3)
    assert table["caption"].to_pylist() == ["a", "", "c"]
    assert table["status"].to_pylist() == ["ok"] * 3
    assert table["width"].to_pylist() == [0] * 3
    assert table["similarity"].null_count == table["punsafe"].null_count == 3


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
def test_read_metadata_aliases_in_any_case_are_found(tmp_path, names):
    values = (urls(1), ["text"], [300.0], ["200"], [0.5], [0.25], [0.1])
    table = read(write(tmp_path / "a.parquet", dict(zip(names, values, strict=True))))
    row = table.to_pylist()[0]
    assert (row["caption"], row["width"], row["height"]) == ("text", 300, 200)
    assert (row["similarity"], row["punsafe"], row["status"]) == (0.5, 0.25, "ok")


def test_read_metadata_better_alias_wins(tmp_path):
    path = write(tmp_path / "a.parquet", {"width": [1], "url": urls(1), "original_width": [99]})
    assert read(path)["width"].to_pylist() == [99]


def test_aliases_are_lower_case_and_belong_to_one_name():
    every = [alias for aliases in ALIASES.values() for alias in aliases]
    assert len(every) == len(set(every))
    assert every == [alias.lower() for alias in every]


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


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_read_metadata_csv_reads_dirt_as_text(tmp_path, name, comma):
    path = tmp_path / name
    rows = [["URL", "TEXT", "WIDTH", "other"], *([u, "a b", "300", "1"] for u in urls(200))]
    rows += [["http://b.com/x", '"two\nlines"', "n/a", ""], ["", "", "12.5", "x"]]
    text = "\n".join(comma.join(row) for row in rows)
    with pa.output_stream(str(path), compression="gzip" if name.endswith("gz") else None) as file:
        file.write(text.encode())
    table = read(path)
    assert table.num_rows == 202
    assert table["caption"].to_pylist()[-2] == "two\nlines"
    assert table["width"].to_pylist()[-3:] == [300, 0, 12]
    assert table["status"].to_pylist()[-2:] == ["ok", "bad_url"]


def test_read_metadata_csv_equals_parquet(tmp_path):
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


def test_read_metadata_table_over_http_is_read(tmp_path, served):
    write(tmp_path / "web.parquet", {"url": urls(5)})
    (tmp_path / "web.csv").write_text("url\nhttp://a.com/1\n", encoding="utf-8")
    assert read(f"{served}/web.parquet").equals(read(tmp_path / "web.parquet"))
    assert read(f"{served}/web.csv?x=1").num_rows == 1
    with pytest.raises(InputError, match=r"cannot be downloaded.*404"):
        read(f"{served}/none.parquet")


def test_read_metadata_image_folder_gives_file_urls(tmp_path):
    for name in ("crane bird/0001.jpg", "crane bird/0002.PNG", "tower_crane.webp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not read here")
    table = read(tmp_path)
    assert table["status"].to_pylist() == ["ok"] * 3
    assert table["caption"].to_pylist() == ["crane bird", "crane bird", "tower crane"]
    assert table["url"][0].as_py() == (tmp_path / "crane bird/0001.jpg").as_uri()


def test_read_metadata_max_rows_cuts_over_all_sources(tmp_path):
    write(tmp_path / "1.parquet", {"url": urls(3)})
    write(tmp_path / "2.parquet", {"url": urls(3, 3)})
    assert read(tmp_path / "*.parquet", max_rows=4)["url"].to_pylist() == urls(4)
    assert read(tmp_path / "*.parquet", max_rows=9).num_rows == 6


def test_read_metadata_empty_table_gives_no_rows(tmp_path):
    assert read(write(tmp_path / "a.parquet", {"url": pa.array([], pa.string())})).num_rows == 0


def test_read_metadata_no_url_column_says_missing_and_found(tmp_path):
    path = write(tmp_path / "a.parquet", {"link": urls(1), "TEXT": ["a"]})
    with pytest.raises(SchemaError, match=r"a\.parquet' has no column of urls.*link, TEXT"):
        read(path)


def test_read_metadata_nested_column_is_a_schema_error(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(1), "similarity": [[0.1]]})
    with pytest.raises(SchemaError, match="'similarity' is of type list"):
        read(path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_read_metadata_corrupt_parquet_names_the_file(tmp_path, damage):
    path = write(tmp_path / "a.parquet", {"url": urls(5000)})
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[100:400] = bytes(300)
    path.write_bytes({"empty": b"", "text": b"hello", "cut": bytes(data[:-100])}.get(damage, data))
    with pytest.raises(InputError, match=r"a\.parquet"):
        read(path)


def test_read_metadata_csv_with_ragged_rows_names_the_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("url,text\nhttp://a.com/1,a\nhttp://a.com/2,b,c\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.csv.*Expected 2 columns, got 3"):
        read(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [("none.parquet", "does not exist"), ("*.parquet", "matches no file"), ("", "holds no image")],
)
def test_read_metadata_missing_source_is_a_config_error(tmp_path, source, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / source)


def test_read_metadata_missing_source_fails_before_the_first_row(tmp_path):
    path = write(tmp_path / "a.parquet", {"url": urls(1)})
    with pytest.raises(ConfigError):
        read_metadata(MetadataConfig(source=(str(path), str(tmp_path / "b.parquet"))))
    with pytest.raises(ConfigError, match=r"metadata\.source is empty"):
        read_metadata(MetadataConfig())


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


def test_read_metadata_real_photo_folder_lists_every_photo(real_data):
    table = read(real_data / "imagenet50")
    assert table.num_rows == 50
    assert "goldfish" in " ".join(table["caption"].to_pylist())
    with Image.open(table["url"][0].as_py().removeprefix("file://")) as image:
        assert image.size[0] > 0
