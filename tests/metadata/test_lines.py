"""Lines of text files: every encoding, every line end, compressed or not, however long."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.metadata import lines
from namedmask.metadata.lines import as_bytes, as_text, read_lines

TEXT = "url,caption\nhttp://a.com/é,ein Vogel 鳥 🐦\n\nlast"


def texts(path):
    return [line if line is None else as_text(line) for line in read_lines(path)]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8-sig", b""),
        ("utf-16", b""),
        ("utf-32", b""),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-be", b"\0\0\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_any_encoding_gives_the_same_text(tmp_path, encoding, mark, end, packed):
    data = mark + TEXT.replace("\n", end).encode(encoding)
    (tmp_path / "a").write_bytes(gzip.compress(data) if packed else data)
    assert texts(tmp_path / "a") == TEXT.replace("\n", end).splitlines(keepends=True)


def test_lines_stray_return_does_not_end_a_line(tmp_path):
    (tmp_path / "a").write_bytes(b"url\nx\ry\r\nz\r")
    assert texts(tmp_path / "a") == ["url\n", "x\ry\r\n", "z\r"]


def test_lines_other_separators_of_unicode_end_no_line(tmp_path):
    text = "a\u2028b\x85c\x0bd\x0ce\x1ef\n"
    (tmp_path / "a").write_text(text, encoding="utf-8")
    assert texts(tmp_path / "a") == [text]


@pytest.mark.parametrize("data", [b"", gzip.compress(b""), b"\xef\xbb\xbf", b"\xff\xfe"])
def test_lines_file_without_text_has_none(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert texts(tmp_path / "a") == []


@pytest.mark.parametrize("tail", ["\n", ""])
@pytest.mark.parametrize("over", [-1, 0, 1, 100, 101, 250])
def test_lines_too_long_line_is_none_and_the_next_is_whole(tmp_path, monkeypatch, tail, over):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    (tmp_path / "a").write_text(f"first\n{'x' * (99 + over)}\nnext{tail}", encoding="utf-8")
    found = texts(tmp_path / "a")
    assert found == ["first\n", None if over > 0 else "x" * (99 + over) + "\n", f"next{tail}"]


@pytest.mark.parametrize("cut", [1, 9, 12, 30, -9, -1])
def test_lines_truncated_gzip_raises_an_error_that_readers_know(tmp_path, cut):
    (tmp_path / "a").write_bytes(gzip.compress(b"url\n" + b"http://a.com/1\n" * 50)[:cut])
    try:
        found = texts(tmp_path / "a")
    except (EOFError, OSError, zlib.error):
        return
    assert cut == 1 and found == ["\x1f"]


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80))
def test_lines_any_bytes_are_kept_or_replaced(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "a"
    path.write_bytes(b"url\n" + data)
    found = list(read_lines(path))
    assert "".join(found).encode("latin-1") == b"url\n" + data
    assert len(found) == 1 + data.count(b"\n") + bool(data and data[-1:] != b"\n")
    assert [as_text(as_bytes(as_text(line))) for line in found] == [as_text(one) for one in found]
