"""Paths with wildcards: what a shell finds, without hidden names, cycles and silence."""

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.storage.patterns import expand
from tests import unprivileged

FILES = (
    "a/1.csv", "a/[x].csv", "a/b/2.csv", "a/b/c/3.csv", "b/1.csv", "a/100%.csv", "é/\udce9.csv",
)  # fmt: skip
PATTERNS = [
    "a/*.csv", "*/1.csv", "**/*.csv", "a/**/*.csv", "a/**", "**", "?/[12].csv", "a/[[]x].csv",
    "*/*/*", "a/b/**/3.csv", "none/*.csv", "none/**/*.csv", "a/1.csv/*", "a/*%*", "é/*",
    "**/b/*.csv", "[!b]/1.*",
]  # fmt: skip


def make(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("is_relative", [False, True])
def test_patterns_find_the_files_that_glob_finds(tmp_path, monkeypatch, pattern, is_relative):
    make(tmp_path, FILES)
    monkeypatch.chdir(tmp_path)
    source = pattern if is_relative else f"{tmp_path}/{pattern}"
    files = [path for path in glob.glob(source, recursive=True) if os.path.isfile(path)]
    assert expand(source) == sorted(set(files))


def test_patterns_leave_hidden_and_system_names_out_unless_they_are_asked_for(tmp_path):
    make(tmp_path, ["a.csv", "._a.csv", "@eaDir/b.csv", "__MACOSX/c.csv", ".x/d.csv", "s/._e.csv"])
    for pattern, names in {
        "*.csv": ["a.csv"], "**/*.csv": ["a.csv"], "*/*.csv": [], "@eaDir/*.csv": ["@eaDir/b.csv"],
        ".*.csv": ["._a.csv"], ".x/*": [".x/d.csv"], "__MACOSX/**/*.csv": ["__MACOSX/c.csv"],
    }.items():  # fmt: skip
        assert expand(f"{tmp_path}/{pattern}") == [f"{tmp_path}/{name}" for name in names], pattern


def test_patterns_cycles_of_links_end_and_dead_links_are_found(tmp_path):
    make(tmp_path, ["data/1.csv", "other/2.csv"])
    for name in ("up", "up2", "up3"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data")
    (tmp_path / "data/linked").symlink_to(tmp_path / "other")
    (tmp_path / "data/dead.csv").symlink_to("gone.csv")
    os.mkfifo(tmp_path / "data/pipe.csv")
    found = expand(f"{tmp_path}/data/**/*.csv")
    assert [Path(path).name for path in found] == ["1.csv", "dead.csv", "2.csv"]


@pytest.mark.parametrize("pattern", ["**/*.csv", "*/*.csv", "b/*"])
def test_patterns_folder_that_may_not_be_read_is_told(tmp_path, pattern):
    make(tmp_path, ["a/1.csv", "b/2.csv"])
    (tmp_path / "b").chmod(0)
    out = unprivileged.run(
        "from namedmask.storage.patterns import expand; from namedmask.errors import InputError\n"
        f"try: print(expand({f'{tmp_path}/{pattern}'!r}))\n"
        "except InputError as error: print(error)"
    )
    (tmp_path / "b").chmod(0o755)
    assert "/b" in out
    assert "cannot be read: Permission denied" in out


NAMES = st.text(st.sampled_from("a*?[].%é b"), min_size=1, max_size=6).filter(lambda n: n[0] != ".")


@settings(deadline=None, max_examples=300)
@given(st.lists(NAMES, min_size=1, max_size=5), NAMES)
def test_patterns_any_names_match_as_in_glob(tmp_path_factory, names, pattern):
    root = tmp_path_factory.mktemp("any")
    make(root, set(names))
    source = f"{root}/{pattern}"
    expected = sorted(path for path in glob.glob(source) if Path(path).is_file())
    assert expand(source) == expected
    assert expand(f"{root}/*") == sorted(f"{root}/{name}" for name in set(names))


def test_patterns_missing_folder_matches_nothing(tmp_path):
    assert expand(f"{tmp_path}/none/**/*.csv") == expand(f"{tmp_path}/none/*/x.csv") == []
