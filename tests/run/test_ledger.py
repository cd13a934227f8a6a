"""The ledger: whole files or none, commits, resume, one writer, one config, equal bytes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from namedmask.config import Config, settings_of
from namedmask.errors import ConfigError, InputError
from namedmask.run import layout, ledger
from namedmask.run.ledger import open_run
from namedmask.run.verb_table import Work
from namedmask.storage import files as file_store

EMBED = Work(name="embed")
BUILD = Work(name="build", follows_categories=True, reuse_when_categories_change=True)
REDONE = Work(name="build", follows_categories=True)
LOOSE = Work(name="build", settings_hold_only_when_finished=True)


def table_of(*sample_ids: str) -> pa.Table:
    """A few rows with every column that counts for equality."""
    return pa.table(
        {
            "category": ["horse"] * len(sample_ids),
            "rank": pa.array(range(len(sample_ids)), pa.int32()),
            "sample_id": list(sample_ids),
            "image": pa.array([name.encode() * 50 for name in sample_ids], pa.large_binary()),
            "mask": pa.array([b"m" + name.encode() for name in sample_ids], pa.large_binary()),
        }
    )


def commit(run: ledger.Ledger, unit: str, *sample_ids: str) -> None:
    name = f"embeddings/wave-{unit}.parquet"
    ledger.write_unit(
        run.folder,
        "embeddings",
        unit,
        {name: table_of(*sample_ids)},
        rows=len(sample_ids),
        counts={"ok": 1},
    )


def test_ledger_commit_is_read_back_with_its_counts_and_hash(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        commit(run, "00000", "a", "b")
    with open_run(tmp_path / "run") as run:
        found = run.commits("embeddings")
        path = run.folder / "embeddings/wave-00000.parquet"
        assert file_store.read_parquet(path).equals(table_of("a", "b"))
    assert list(found) == ["00000"]
    assert found["00000"].rows == 2
    assert found["00000"].counts == {"ok": 1}
    assert found["00000"].files["embeddings/wave-00000.parquet"]["size"] == path.stat().st_size


def test_ledger_same_commit_in_two_folders_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with open_run(tmp_path / name) as run:
            run.start(EMBED, {"embed.model": "x"})
            commit(run, "00000", "a", "b", "c")
            run.finish("embed", {"rows_in": 3})
    files = sorted(
        path.relative_to(tmp_path / "one")
        for path in (tmp_path / "one").rglob("*")
        if path.is_file() and path.name != layout.LOCK
    )
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_ledger_files_without_a_record_are_swept_and_committed_ones_stay(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        commit(run, "00000", "a")
        (tmp_path / "embeddings/wave-00001.parquet").write_bytes(b"half")
        (tmp_path / "embeddings/.wave-00002.parquet.part").write_bytes(b"a quarter")
        (tmp_path / "refined").mkdir()
        (tmp_path / "refined/00001-horse.parquet").write_bytes(b"not this store's business")
        orphans = run.sweep("embeddings")
    assert orphans == ["embeddings/.wave-00002.parquet.part", "embeddings/wave-00001.parquet"]
    left = sorted(path.name for path in (tmp_path / "embeddings").iterdir())
    assert left == ["commit-00000.json", "wave-00000.parquet"]
    assert (tmp_path / "refined/00001-horse.parquet").exists()


def test_ledger_sweep_removes_no_file_whose_name_the_store_does_not_give(tmp_path: Path) -> None:
    strange = (
        "photo.jpg", "notes.txt", "wave-00000.parquet.bak", "wave-1.parquet", ".hidden", ".x.part",
        "tombstones-00001.csv", "commit-00009.json.old", "wave-00000.parquet~", "00001-horse.pt",
    )  # fmt: skip
    with open_run(tmp_path) as run:
        commit(run, "00000", "a")
        for store in layout.STORE_FILES:
            (tmp_path / store).mkdir(exist_ok=True)
            for name in strange:
                if not re.fullmatch(layout.STORE_FILES[store], name):
                    (tmp_path / store / name).write_bytes(b"somebody's")
        assert run.sweep(*layout.STORE_FILES) == []


@pytest.mark.parametrize("store", layout.STORE_FILES)
def test_ledger_sweep_through_a_link_removes_nothing(tmp_path: Path, store: str) -> None:
    """A store put on a big disk by a link holds whatever else lies on that disk."""
    disk, names = tmp_path / "disk", ("wave-00007.parquet", "a" * 20 + ".parquet", "shared.pt")
    disk.mkdir()
    for name in (*names, "00001-horse.parquet", ".wave-00002.parquet.part", "thesis.tex"):
        (disk / name).write_bytes(b"somebody's")
    before = sorted(path.name for path in disk.iterdir())
    with open_run(tmp_path / "run") as run:
        (tmp_path / "run" / store).symlink_to(disk)
        assert run.sweep(store) == []
    assert sorted(path.name for path in disk.iterdir()) == before


def test_ledger_sweep_leaves_a_file_that_is_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"somebody's")
    with open_run(tmp_path / "run") as run:
        (tmp_path / "run/embeddings").mkdir()
        link = tmp_path / "run/embeddings/wave-00003.parquet"
        link.symlink_to(elsewhere)
        assert run.sweep("embeddings") == []
    assert link.is_symlink() and elsewhere.exists()


def test_ledger_sweep_keeps_a_file_that_another_store_s_record_names(tmp_path: Path) -> None:
    files = {"refined/00001-horse.parquet": table_of("a"), "experts/00001-horse.pt": b"weights"}
    with open_run(tmp_path) as run:
        ledger.write_unit(run.folder, "refined", "00001-horse", files, rows=1, counts={"ok": 1})
        assert run.sweep("refined", "experts") == []


def test_ledger_writer_that_fails_half_way_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    def write_and_fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError):
        file_store.write_file(tmp_path / "weights.pt", write_and_fail)
    assert not (tmp_path / "weights.pt").exists()


def test_ledger_killed_writer_leaves_only_whole_files_behind(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        import pyarrow as pa
        from namedmask.run.ledger import open_run, write_unit

        table = pa.table({"image": [np.random.bytes(20_000) for _ in range(200)]})
        with open_run(Path(sys.argv[1])) as run:
            print("go", flush=True)
            for i in range(100_000):
                name = f"embeddings/wave-{i:05d}.parquet"
                write_unit(run.folder, "embeddings", f"{i:05d}", {name: table}, rows=200, counts={})
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "embeddings/wave-00002.parquet").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with open_run(tmp_path) as run:
        run.sweep("embeddings")
        commits = run.commits("embeddings")
    assert len(commits) >= 2
    files = sorted(path.name for path in (tmp_path / "embeddings").glob("*.parquet"))
    assert files == [f"wave-{unit}.parquet" for unit in commits]
    for file in files:
        assert file_store.read_parquet(tmp_path / "embeddings" / file).num_rows == 200


def test_ledger_second_writer_is_refused_with_the_first_one_s_pid(tmp_path: Path) -> None:
    with (
        open_run(tmp_path),
        pytest.raises(InputError, match=rf"in use by process {os.getpid()}\."),
        open_run(tmp_path),
    ):
        pass
    with open_run(tmp_path):
        pass


def test_ledger_lock_of_a_dead_process_does_not_hold(tmp_path: Path) -> None:
    code = (
        f"from namedmask.run.ledger import open_run\nfrom pathlib import Path\nimport os, signal\n\
with open_run(Path({str(tmp_path)!r})):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with open_run(tmp_path):
        assert (tmp_path / layout.LOCK).read_text() == str(os.getpid())


def test_ledger_lock_held_by_a_stranger_without_a_pid_says_unknown(tmp_path: Path) -> None:
    with (tmp_path / layout.LOCK).open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="process unknown"), open_run(tmp_path):
            pass


def test_ledger_finished_verb_returns_what_it_ended_with(tmp_path: Path) -> None:
    settings = {"embed.model": "x", "fetch.retries": 1}
    with open_run(tmp_path) as run:
        assert run.finished(EMBED, settings) is None
        run.start(EMBED, settings)
        assert run.finished(EMBED, settings) is None
        run.finish("embed", {"rows_in": 7})
    with open_run(tmp_path) as run:
        assert run.finished(EMBED, settings) == {"rows_in": 7}


def test_ledger_finished_verb_that_lost_a_record_has_work_again(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.start(EMBED, {})
        commit(run, "00000", "a")
        commit(run, "00001", "b")
        run.finish("embed", {"rows_in": 2}, "embeddings")
        assert run.finished(EMBED, {}) == {"rows_in": 2}
        (tmp_path / "embeddings/commit-00000.json").unlink()
        assert run.finished(EMBED, {}) is None


def test_ledger_other_settings_are_refused_key_by_key(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.start(EMBED, {"embed.model": "x", "fetch.retries": 1, "fetch.timeout_s": 2.0})
    with open_run(tmp_path) as run, pytest.raises(ConfigError) as caught:
        run.finished(EMBED, {"embed.model": "y", "fetch.retries": 1, "fetch.timeout_s": 3.0})
    message = str(caught.value)
    assert 'embed.model was "x", is "y"; fetch.timeout_s was 2.0, is 3.0.' in message
    assert "fetch.retries" not in message
    assert "another run.out" in message


def test_ledger_other_content_gives_work_again_and_keeps_what_is_bound(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.start(BUILD, {"retrieve.archive_size": 5}, categories_digest="two categories")
        run.finish("build", {"images_kept": 9})
        run.start(BUILD, {"retrieve.archive_size": 5}, categories_digest="two categories")
        assert run.finished(BUILD, {"retrieve.archive_size": 5}, "two categories") is not None
        assert run.finished(BUILD, {"retrieve.archive_size": 5}, "three categories") is None
        with pytest.raises(ConfigError, match="archive_size was 5, is 6"):
            run.finished(BUILD, {"retrieve.archive_size": 6}, "three categories")
        other = {"retrieve.archive_size": 6}
        assert run.finished(REDONE, other, "three categories") is None
        assert not run.is_begun(BUILD, "three categories")
        run.start(BUILD, other, categories_digest="three categories")
        assert run.is_begun(BUILD, "three categories")
        assert run.finished(BUILD, other, "three categories") is None


def test_ledger_loose_bond_holds_once_its_verb_is_finished(tmp_path: Path) -> None:
    few, many = {"retrieve.candidates": 5}, {"retrieve.candidates": 50}
    with open_run(tmp_path) as run:
        run.start(LOOSE, few)
        assert run.finished(BUILD, many) is None
        run.start(LOOSE, many)
        run.finish("build", {"images_kept": 9})
        with pytest.raises(ConfigError, match="candidates was 50, is 5"):
            run.finished(BUILD, few)
        run.unfinish("build")
        assert run.finished(BUILD, few) is None


def test_ledger_verb_that_wrote_nothing_yet_may_start_with_other_settings(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        assert run.finished(BUILD, {"retrieve.archive_size": 5}) is None
    with open_run(tmp_path) as run:
        assert run.finished(BUILD, {"retrieve.archive_size": 6}) is None


@pytest.mark.parametrize("name", ["run.json", "embeddings/commit-00000.json"])
def test_ledger_newer_format_is_refused(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path) as run:
        run.start(EMBED, {})
        commit(run, "00000", "a")
    record = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(InputError, match="format_version 99"), open_run(tmp_path) as run:
        run.commits("embeddings")


def test_ledger_committed_file_that_is_gone_names_the_record_to_remove(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        commit(run, "00000", "a")
        (tmp_path / "embeddings/wave-00000.parquet").unlink()
        with pytest.raises(InputError, match=r"it is missing\. Remove that record"):
            run.commits("embeddings")


def test_ledger_flipped_bit_in_a_stored_table_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file_store.write_parquet(table_of("abcdefgh"), path)
    data = bytearray(path.read_bytes())
    data[data.index(b"abcdefghabcdefgh") + 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as parquet"):
        file_store.read_parquet(path)


def test_ledger_corrupt_run_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"), open_run(tmp_path):
        pass


def test_ledger_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings" / "thesis.parquet").write_bytes(b"years of work")
    with pytest.raises(ConfigError, match=r"has no run\.json"), open_run(tmp_path):
        pass
    assert (tmp_path / "embeddings" / "thesis.parquet").exists()


def test_ledger_unwritable_folder_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    expected = pytest.raises(ConfigError, match=r"run\.out.*cannot be written")
    with expected, open_run(tmp_path / "file" / "run"):
        pass


def test_ledger_settings_hold_sections_and_keys_but_none_that_only_change_speed() -> None:
    config = Config.of({"run": {"out": "somewhere"}, "fetch": {"in_flight": 3}})
    settings = settings_of(config, ("fetch", "run.wave_rows"))
    assert settings["run.wave_rows"] == 2000
    assert settings["fetch.retries"] == 1
    assert "run.out" not in settings
    assert "fetch.in_flight" not in settings


def test_ledger_row_hashes_tell_any_changed_field_and_ignore_other_columns() -> None:
    table = table_of("a", "b")
    hashes = file_store.row_hashes(table)
    assert len(set(hashes)) == 2
    assert file_store.row_hashes(table.append_column("url", pa.array(["u", "v"]))) == hashes
    for name, value in [("rank", 9), ("mask", b"x"), ("image", None), ("category", "hors")]:
        index = table.schema.get_field_index(name)
        values = table[name].to_pylist()
        changed = table.set_column(
            index, name, pa.array([value, values[1]], table.schema.field(name).type)
        )
        assert file_store.row_hashes(changed)[0] != hashes[0]
        assert file_store.row_hashes(changed)[1] == hashes[1]


def test_ledger_row_hashes_keep_neighboring_fields_apart() -> None:
    one = pa.table({"category": ["ab"], "sample_id": ["c"]})
    two = pa.table({"category": ["a"], "sample_id": ["bc"]})
    assert file_store.row_hashes(one) != file_store.row_hashes(two)
    assert file_store.row_hashes(one.slice(0, 0)) == []


def test_ledger_digest_is_of_the_set_of_rows_not_their_order() -> None:
    hashes = file_store.row_hashes(table_of("a", "b", "c"))
    assert file_store.digest(hashes) == file_store.digest(reversed(hashes))
    assert file_store.digest(hashes) != file_store.digest(hashes[:2])
    assert file_store.digest(hashes) != file_store.digest([*hashes, hashes[0]])
