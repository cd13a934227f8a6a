"""The verb `fetch` on a small real web: bytes as served, adds up, resumes, stays light."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask import images, schema
from namedmask.cli.app import main
from namedmask.config.run_file import Config, to_toml
from namedmask.errors import ConfigError, TooManyFailuresError
from namedmask.images.codec import size_of
from namedmask.run.progress import SilentProgress
from namedmask.storage import files as file_store
from namedmask.verbs import collect
from tests import tables, toys
from tests.road import stored

SILENT = SilentProgress()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything fetched; tests read it and must leave it as it is."""
    out = tmp_path_factory.mktemp("finished")
    collect.fetch(config_of(source, out), SILENT)
    return out


def config_of(source: str, out: Path, *overrides: str) -> Config:
    tree: dict[str, Any] = {
        "run": {"out": str(out), "wave_rows": 16},
        "metadata": {"source": [source]},
        "fetch": {"timeout_s": 5.0, "retries": 0, "allow_loopback": True},
    }
    return Config.of(tree, overrides)


def rows_of(run: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted((run / "fetched").glob(f"{kind}-*.parquet"))
    return [row for path in paths for row in file_store.read_parquet(path).to_pylist()]


def test_collect_fetch_stores_bytes_as_served_and_counts_every_row(
    finished: Path, web: toys.SmallWeb, source: str
) -> None:
    result = collect.fetch(config_of(source, finished), SILENT)
    assert result["skipped"]
    counts = result["rows_by_status"]
    assert result["rows_in"] == sum(counts.values()) == len(web.rows)
    assert counts["http_404"] == 9 and counts["duplicate_url"] == 1 and counts["unsafe"] == 1
    good, others = rows_of(finished, "wave"), rows_of(finished, "tombstones")
    assert len(good) == counts["ok"] and len(others) == len(web.rows) - len(good)
    captions = {row["url"]: row["caption"] for row in web.rows}
    for row in good:
        assert row["image"] == web.files[row["url"].removeprefix(web.url)]
        assert (row["image_height"], row["image_width"]) == size_of(row["image"])
        assert row["caption"] == captions[row["url"]]
    assert all(row["status"] != schema.OK for row in others)


def test_collect_fetch_shrinks_what_is_larger_and_keeps_the_rest(
    source: str, web: toys.SmallWeb, finished: Path, tmp_path: Path
) -> None:
    side = 40
    collect.fetch(config_of(source, tmp_path, f"fetch.longest_side={side}"), SILENT)
    before = {row["sample_id"]: row for row in rows_of(finished, "wave")}
    found = rows_of(tmp_path, "wave")
    assert {row["sample_id"] for row in found} == before.keys()
    for row in found:
        whole = before[row["sample_id"]]
        longest = max(whole["image_height"], whole["image_width"])
        assert max(row["image_height"], row["image_width"]) == min(longest, side)
        assert (row["image"] == whole["image"]) == (longest <= side)
        assert size_of(row["image"]) == (row["image_height"], row["image_width"])


def test_collect_fetch_bytes_that_have_not_the_hash_of_the_metadata_are_told(
    web: toys.SmallWeb, finished: Path, tmp_path: Path
) -> None:
    good = rows_of(finished, "wave")[:6]
    md5 = [hashlib.md5(row["image"]).hexdigest() for row in good]
    md5[1], md5[4] = md5[4], md5[1]
    source = tmp_path / "hashed.parquet"
    pq.write_table(pa.table({"url": [row["url"] for row in good], "md5": md5}), source)
    config = config_of(str(source), tmp_path / "run")
    result = collect.fetch(config, SILENT)
    assert result["rows_by_status"] == {"ok": 4, "content_changed": 2}
    changed = {row["url"] for row in rows_of(tmp_path / "run", "tombstones")}
    assert changed == {good[1]["url"], good[4]["url"]}
    again = collect.fetch(config, SILENT, retry=("changed",))
    assert again["rows_by_status"] == {"ok": 4, "content_changed": 2}


def test_collect_fetch_killed_and_run_again_ends_with_equal_files(
    source: str, web: toys.SmallWeb, finished: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path / "run")
    run_file = tmp_path / "run.toml"
    run_file.write_text(to_toml(config))
    command = [sys.executable, "-m", "namedmask", "fetch", str(run_file), "--local", "--json"]
    second = tmp_path / "run" / "fetched" / "commit-00001.json"
    web.delay_s = 0.1
    try:
        with subprocess.Popen(command, cwd=ROOT) as process:
            while not second.exists():
                assert process.poll() is None, "ended before it could be killed"
                time.sleep(0.01)
            process.kill()
    finally:
        web.delay_s = 0.0
    committed = {name for name in stored(tmp_path / "run") if not name.endswith(".part")}
    assert committed < set(stored(finished))
    web.hits.clear()
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["rows_in"] == len(web.rows)
    assert stored(tmp_path / "run") == stored(finished)
    first = rows_of(tmp_path / "run", "wave")[0]["url"].removeprefix(web.url)
    assert web.hits and first not in web.hits, "a committed wave was fetched again"


def test_collect_fetch_other_settings_are_refused_and_embed_has_its_own(
    source: str, finished: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'fetch'.*fetch\.longest_side was 0, is 64"):
        collect.fetch(config_of(source, finished, "fetch.longest_side=64"), SILENT)
    faster = config_of(source, finished, "fetch.in_flight=64", "embed.batch_size=3")
    assert collect.fetch(faster, SILENT)["skipped"]


def test_collect_fetch_too_many_failures_end_it_and_keep_what_came(
    source: str, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, "run.max_failure_share=0.01")
    with pytest.raises(TooManyFailuresError, match="http_404"):
        collect.fetch(config, SILENT)
    assert (tmp_path / "fetched" / "commit-00000.json").exists()


def test_collect_fetch_loads_no_torch(source: str, tmp_path: Path) -> None:
    code = (
        "import sys; from namedmask.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or str({'torch', 'ray', 'scipy'} & set(sys.modules)))"
    )
    run_file = tmp_path / "run.toml"
    run_file.write_text(to_toml(config_of(source, tmp_path / "run", "metadata.max_rows=4")))
    command = [sys.executable, "-c", code, "fetch", str(run_file), "--local", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
    assert json.loads(done.stdout)["rows_in"] == 4


def test_collect_fetch_hash_of_the_metadata_is_kept_to_whatever_its_spelling(
    web: toys.SmallWeb, tmp_path: Path
) -> None:
    names = ["red-1.jpg", "red-2.jpg", "red-3.jpg"]
    right = [hashlib.md5(web.files[f"/{name}"]).hexdigest() for name in names]
    columns = {
        "URL": [f"{web.url}/{name}" for name in names],
        "MD5": [right[0].upper(), right[0], "unknown"],
    }
    source = str(tables.write(tmp_path / "md5.parquet", columns))
    counts = collect.fetch(config_of(source, tmp_path / "run"), SILENT)["rows_by_status"]
    assert counts == {"ok": 2, "content_changed": 1}
    assert [row["url"] for row in rows_of(tmp_path / "run", "tombstones")] == [columns["URL"][1]]


@pytest.mark.parametrize("verb", ["fetch", "embed", "curate"])
def test_run_without_a_good_row_exits_1_and_tells_the_commonest_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    with toys.SmallWeb() as web:
        for number in range(5):
            web.add(f"dead-{number}.jpg", None)
        web.add("page.jpg", b"<html>not a picture</html>")
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        plug_in = ('embed.model="tests.toys:embedder"', 'categories.names=["red"]')
        (tmp_path / "run.toml").write_text(to_toml(config_of(source, tmp_path / "run", *plug_in)))
        command = [verb, str(tmp_path / "run.toml"), "--local"]
        for _ in range(2):  # the second time, there is nothing left to do, and still no good row
            assert main(command) == 1
            assert "none of 6 rows is ok; the commonest status is 'http_404' (5)." in (
                capsys.readouterr().err
            )
        if verb == "curate":
            return
        web.files["/dead-0.jpg"] = toys.jpeg(toys.disk(toys.COLORS["red"], 0))
        assert main([*command, "--retry", "dead"]) == 0


def test_collect_fetch_counts_every_line_of_a_table_and_file_of_a_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo = images.encode_jpeg(np.zeros((40, 60, 3), np.uint8))
    for name in ("a.jpg", "b\udce9.jpg", "c.JFIF"):
        (photos / name).write_bytes(photo)
    (photos / "linked.jpg").symlink_to(tmp_path / "far.jpg")
    (tmp_path / "far.jpg").write_bytes(photo)
    (photos / "._a.jpg").write_bytes(b"left out")
    lines = [f'{(photos / "a.jpg").as_uri()}?{n}\t"cut off {n}' for n in range(60)]
    lines += ["no tab", "two\ttabs\tthere", "ftp://a.com/1\tx", f"{tmp_path.as_uri()}/x.jpg\ty"]
    table = tmp_path / "table.tsv"
    table.write_bytes("\n".join(["url\tcaption", *lines]).encode() + b"\nfile:///\xe9\tol\xe9\n")
    rules = (f"fetch.file_root={photos}", "run.max_failure_share=1")
    config = config_of(str(table), tmp_path / "run", *rules)
    counts = collect.fetch(config, SILENT)
    assert counts["rows_in"] == len(lines) + 1
    assert counts["rows_by_status"] == {
        "duplicate_url": 59, "bad_row": 2, "outside_root": 2, "ok": 1, "bad_url": 1,
    }  # fmt: skip
    config = config_of(str(photos), tmp_path / "run2", *rules)
    counts = collect.fetch(config, SILENT)
    assert counts["rows_in"] == 4
    assert counts["rows_by_status"] == {"ok": 3, "outside_root": 1}
