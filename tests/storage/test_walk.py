"""Walks over folders: one rule of hidden names, links once, names of any bytes, errors told."""

import os
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.storage.walk import Walk, existing_form, is_hidden
from tests import unprivileged

HIDDEN = [
    "._a.jpg", ".DS_Store", ".Trash-1000", ".Trashes", ".ipynb_checkpoints", ".thumbnails",
    "@eaDir", "#recycle", "__MACOSX", "Thumbs.db", "desktop.ini", "lost+found", "$RECYCLE.BIN",
    "System Volume Information", ".a", "@EADIR", "THUMBS.DB", "#snapshot", "@Recycle",
]  # fmt: skip
SHOWN = ["a.jpg", "a", "_a", "~a.jpg", "#a.jpg", "$a", "lost", "macosx", "thumbs.jpg", "…a"]


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names_in(root):
    return [os.path.relpath(found.path, root) for found in Walk(root)]


@pytest.mark.parametrize("name", HIDDEN)
def test_walk_system_names_are_hidden(name):
    assert is_hidden(name)


@pytest.mark.parametrize("name", SHOWN)
def test_walk_other_names_are_shown(name):
    assert not is_hidden(name)


def test_walk_hidden_files_and_folders_are_left_out_and_counted(tmp_path):
    make(tmp_path, "a/1.jpg", *(f"a/{name}/2.jpg" for name in HIDDEN), ".b.jpg")
    walk = Walk(tmp_path)
    assert [Path(found.path).name for found in walk] == ["1.jpg"]
    assert walk.hidden == len(HIDDEN) + 1


def test_walk_hidden_root_is_entered(tmp_path):
    make(tmp_path, ".cache/a.jpg")
    assert names_in(tmp_path / ".cache") == ["a.jpg"]


def test_walk_order_is_that_of_the_parts_of_paths(tmp_path):
    make(tmp_path, "a/z.jpg", "a.jpg", "a b/c.jpg", "b.jpg", "a/B.jpg", "a/b/c.jpg")
    expected = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [Path(found.path) for found in Walk(tmp_path)] == expected


def test_walk_linked_folders_are_entered_once_and_cycles_end(tmp_path):
    make(tmp_path, "elsewhere/x.jpg", "photos/sub/a.jpg")
    photos = tmp_path / "photos"
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "linked_again").symlink_to(tmp_path / "elsewhere")
    for name in ("up", "up2", "sub/up", "sub/up2"):
        (photos / name).symlink_to(photos)
    (photos / "self").symlink_to("self")
    (photos / "dead.jpg").symlink_to("nowhere.jpg")
    (photos / "link.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    found = {os.path.relpath(one.path, photos): one.real_path for one in Walk(photos)}
    assert found == {
        "dead.jpg": str(photos / "nowhere.jpg"),
        "link.jpg": str(tmp_path / "elsewhere/x.jpg"),
        "linked/x.jpg": str(tmp_path / "elsewhere/x.jpg"),
        "self": str(photos / "self"),
        "sub/a.jpg": str(photos / "sub/a.jpg"),
    }


def test_walk_deep_folders_are_entered(tmp_path):
    deep = tmp_path
    while len(str(deep)) < 3900:  # the longest path has 4,096 bytes, Python's recursion 1,000 calls
        deep /= "d"
        deep.mkdir()
    make(deep, "a.jpg")
    assert [Path(found.path).name for found in Walk(tmp_path)] == ["a.jpg"]
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # pytest cannot


def test_walk_folder_that_may_not_be_read_is_found_with_its_error(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    (tmp_path / "b").chmod(0)
    out = unprivileged.run(
        "from namedmask.storage.walk import Walk; import os\n"
        f"for one in Walk({str(tmp_path)!r}): print(os.path.basename(one.path), one.error)"
    )
    (tmp_path / "b").chmod(0o755)
    assert out.splitlines()[0] == "1.jpg None"
    assert out.splitlines()[1].startswith("b [Errno 13]")
    assert out.splitlines()[2] == "3.jpg None"


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(deadline=None, max_examples=300)
@given(st.lists(NAMES, max_size=6), st.lists(NAMES, min_size=1, max_size=3))
def test_walk_names_of_any_bytes_are_found(tmp_path_factory, names, folders):
    root = tmp_path_factory.mktemp("any")
    deep = root
    for name in folders:
        deep /= os.fsdecode(name)
        deep.mkdir()
    for name in set(names):
        (deep / os.fsdecode(name)).write_bytes(b"")
    shown = {os.fsdecode(name) for name in names if not is_hidden(os.fsdecode(name))}
    if any(is_hidden(os.fsdecode(name)) for name in folders):
        shown = set()
    assert {os.path.basename(found.path) for found in Walk(root)} == shown
    assert all(os.path.exists(found.real_path) for found in Walk(root))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_walk_existing_form_finds_the_file_in_either_normal_form(tmp_path, form, asked):
    name = "Bücher/é鳥가.jpg"
    make(tmp_path, unicodedata.normalize(form, name))
    found = existing_form(tmp_path / unicodedata.normalize(asked, name), tmp_path)
    assert found == tmp_path / unicodedata.normalize(form, name)


def test_walk_existing_form_of_no_file_is_the_path_itself(tmp_path):
    assert existing_form(tmp_path / "é.jpg", tmp_path) == tmp_path / "é.jpg"
    assert existing_form(tmp_path / "\udce9.jpg", tmp_path) == tmp_path / "\udce9.jpg"
