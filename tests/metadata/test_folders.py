"""Folders of images: a row for each image, whatever its name, place and permissions."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.config import FetchConfig
from namedmask.errors import ConfigError
from namedmask.fetch.stage import Fetch
from namedmask.images.names import SUFFIXES
from namedmask.storage.walk import is_hidden
from tests import unprivileged
from tests.tables import read


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read here")


def test_folder_every_suffix_of_the_decoder_is_a_row(tmp_path, caplog):
    names = [f"photo{suffix}" for suffix in SUFFIXES] + [
        f"B{suffix.upper()}" for suffix in SUFFIXES
    ]
    make(tmp_path, *names, "a.txt", "b.txt", "c.heic", "Makefile", "._a.jpg", "@eaDir/a.jpg")
    table = read(tmp_path)
    assert sorted(Path(url.as_py()).name for url in table["url"]) == sorted(names)
    assert "2 .txt, 1 .heic, 1 no suffix, 2 hidden left out" in caplog.text


def test_folder_of_photos_alone_says_nothing(tmp_path, caplog):
    make(tmp_path, "a.jpg")
    assert read(tmp_path).num_rows == 1
    assert not caplog.text


def test_folder_without_images_says_what_it_has(tmp_path):
    make(tmp_path, "a.parquet", "b.parquet", ".x.jpg")
    with pytest.raises(ConfigError, match=r"no image \(2 \.parquet, 1 hidden\).*\*\.parquet"):
        read(tmp_path)


def test_folder_named_like_an_image_is_no_image(tmp_path):
    make(tmp_path, "album.jpg/1.jpg")
    assert read(tmp_path)["caption"].to_pylist() == ["album.jpg"]


def test_folder_linked_photos_are_rows_with_the_name_of_the_link(tmp_path):
    make(tmp_path, "blobs/0123", "photos/sub/b.jpg", "far/c d.jpg")
    photos = tmp_path / "photos"
    (photos / "a_cat.jpg").symlink_to(tmp_path / "blobs/0123")
    (photos / "linked").symlink_to(tmp_path / "far")
    (photos / "dead.jpg").symlink_to("nowhere")
    (photos / "self.jpg").symlink_to("self.jpg")
    (photos / "sub/up").symlink_to(photos)
    table = read(photos)
    assert dict(zip(table["caption"].to_pylist(), table["url"].to_pylist(), strict=True)) == {
        "a cat": (tmp_path / "blobs/0123").as_uri(),
        "dead": (photos / "nowhere").as_uri(),
        "c d": (tmp_path / "far/c d.jpg").as_uri(),
        "self": (photos / "self.jpg").as_uri(),
        "b": (photos / "sub/b.jpg").as_uri(),
    }


def test_folder_that_is_a_link_has_the_urls_of_its_target(tmp_path):
    make(tmp_path, "photos/a.jpg")
    (tmp_path / "link").symlink_to("photos")
    assert read(tmp_path / "link").equals(read(tmp_path / "photos"))


def test_folder_file_that_is_linked_twice_is_used_once(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert read(tmp_path)["status"].to_pylist() == ["ok", "duplicate_url"]


def test_folder_that_may_not_be_read_is_a_row_with_a_status(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "b").chmod(0)
    code = f"from tests.tables import read; print(read({str(tmp_path)!r}).select(['url', 'status'])"
    out = unprivileged.run(f"{code}.to_pylist())")
    (tmp_path / "b").chmod(0o755)
    assert eval(out) == [
        {"url": (tmp_path / "a/1.jpg").as_uri(), "status": "ok"},
        {"url": (tmp_path / "b").as_uri(), "status": "no_permission"},
    ]
    (tmp_path / "b").chmod(0)
    out = unprivileged.run(
        "from tests.tables import read; from namedmask.errors import InputError\n"
        f"try: read({str(tmp_path / 'b')!r})\n"
        "except InputError as error: print(error)"
    )
    (tmp_path / "b").chmod(0o755)
    assert "/b' cannot be read: Permission denied" in out


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        (b"ol\xe9.jpg", "ol\ufffd"), (b"stra\xdfe/1.jpg", "stra\ufffde"), ("é.jpg".encode(), "é"),
        (b"a%20b.jpg", "a%20b"), (b"a?b#c.jpg", "a?b#c"), (b"a[1].jpg", "a[1]"),
        (b"a\nb.jpg", "a\nb"), (b"~a.jpg", "~a"), (b"-a__b-.jpg", "a b"),
        (b" a .jpg", "a"), (b"a\\b.jpg", "a\\b"), (b"%ff.jpg", "%ff"), (b"a;b&c.jpg", "a;b&c"),
        ("e\u0301.jpg".encode(), "e\u0301"), (b"a" * 200 + b".jpg", "a" * 200),
    ],
)  # fmt: skip
def test_folder_photo_of_any_name_is_fetched(tmp_path, photo, name, caption):
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(photo)
    table = read(tmp_path)
    assert table["caption"].to_pylist() == [caption]
    fetched = Fetch(FetchConfig(file_root=str(tmp_path)))(table)
    assert fetched["status"].to_pylist() == ["ok"]
    assert fetched["image"].to_pylist() == [photo]


@pytest.fixture(scope="module")
def photo():
    import numpy as np

    from namedmask import images

    return images.encode_jpeg(np.zeros((8, 8, 3), np.uint8), 90)


NAMES = st.binary(min_size=1, max_size=10).filter(lambda name: not set(name) & {0, ord("/")})


@settings(deadline=None, max_examples=300)
@given(st.lists(NAMES, min_size=1, max_size=4, unique=True), NAMES)
def test_folder_names_of_any_bytes_are_rows_and_files(tmp_path_factory, photo, names, folder):
    root = tmp_path_factory.mktemp("any")
    deep = root / os.fsdecode(b"x" + folder)
    deep.mkdir()
    shown = [name for name in names if not is_hidden(os.fsdecode(name + b".jpg"))]
    for name in names:
        (deep / os.fsdecode(name + b".jpg")).write_bytes(photo)
    if not shown:
        return
    table = read(root)
    table.validate(full=True)
    assert table.num_rows == len(shown)
    fetched = Fetch(FetchConfig(file_root=str(root)))(table)
    assert fetched["status"].to_pylist() == ["ok"] * len(shown)
