"""Rows tried again: those of a class, once in the store at any moment, as if they never failed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ray_jobs
from namedmask import engine, schema
from namedmask.cli.app import main
from namedmask.config.run_file import Config, to_toml
from namedmask.errors import ConfigError, InputError
from namedmask.run import ledger
from namedmask.run.job import VerbRun
from namedmask.run.progress import SilentProgress
from namedmask.run.retry import WaveRewriter, count_in_classes, rows_again
from namedmask.run.stages import load_stage
from namedmask.run.stores import EmbeddingStore, WaveWriter, file_of
from namedmask.schema.status import KEPT
from namedmask.storage import files as file_store
from namedmask.storage import place as storage
from namedmask.verbs import build as verbs
from namedmask.verbs import collect, refine, train
from tests import toys
from tests.road import StopAfter, config_of, digests
from tests.s3_server import BUCKET, S3_WARNINGS, Proxy, s3_server
from tests.waves import add_wave

pytestmark = S3_WARNINGS
SILENT = SilentProgress()
HASHED = ("sample_id", "url", "caption", "embedding", "status")
WAVES = ("run.wave_rows=8",)


@pytest.fixture(scope="module")
def served() -> Iterator[toys.SmallWeb]:
    with toys.filled_web() as web:
        web.rows.append(dict(web.rows[3]))  # a copy of a row that will be in trouble
        web.rows.append({"url": "no url", "caption": "", "punsafe": None})
        yield web


@pytest.fixture
def web(served: toys.SmallWeb) -> Iterator[toys.SmallWeb]:
    """The small web, in trouble: it fails to give every third picture, and refuses one."""
    paths = sorted(path for path in served.files if path.endswith(".jpg"))
    served.trouble = dict.fromkeys(paths[::3], 503) | {paths[1]: 403}
    yield served
    served.trouble = {}


@pytest.fixture(scope="module")
def source(served: toys.SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(served.write_metadata(tmp_path_factory.mktemp("web") / "metadata.parquet"))


@pytest.fixture(scope="module")
def healthy(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that never met trouble."""
    out = tmp_path_factory.mktemp("healthy")
    verbs.curate(config_of(source, out, *WAVES), SILENT)
    return out


def rows_of(out: storage.Place) -> list[str]:
    """Return a hash of each row in the store, in order: good ones by wave, then the dead."""
    hashes = []
    for kind in ("wave", "tombstones"):
        for commit in ledger.read_commits(out, "embeddings").values():
            table = file_store.read_parquet(out / file_of(commit, kind))
            hashes += file_store.row_hashes(table, HASHED)
    return hashes


def counts_of(out: storage.Place) -> Counter[str]:
    """Return the rows of a store by status, once they and its records are found to agree."""
    counted: Counter[str] = Counter()
    for commit in ledger.read_commits(out, "embeddings").values():
        found: Counter[str] = Counter()
        for kind in ("wave", "tombstones"):
            table = file_store.read_parquet(out / file_of(commit, kind), ["status"])
            found.update(table["status"].to_pylist())
        assert found == commit.counts
        assert found.total() == commit.rows
        counted += found
    return counted


def test_retry_of_healed_failures_ends_as_if_they_never_were(
    web: toys.SmallWeb, source: str, healthy: Path, tmp_path: Path
) -> None:
    web.trouble[min(web.trouble)] = toys.HANG
    config = config_of(source, tmp_path, *WAVES, "fetch.timeout_s=3")
    first = collect.embed(config, SILENT)
    down = len([status for status in web.trouble.values() if status != 403])
    troubled = first["rows_by_status"]
    assert troubled["timeout"] == 1
    assert troubled["http_503"] + troubled["timeout"] == down
    web.trouble = {path: status for path, status in web.trouble.items() if status == 403}
    web.hits.clear()
    again = collect.embed(config, SILENT, retry=("transient",))
    assert again["rows_by_status_before"] == troubled
    assert again["rows_tried_again"] == down == web.hits.total(), "only those rows"
    assert again["rows_by_status"]["http_403"] == 1
    assert sum(again["rows_by_status"].values()) == again["rows_in"] == len(web.rows)
    web.trouble = {}
    collect.embed(config, SILENT, retry=("forbidden",))
    assert web.hits.total() == down + 1
    assert rows_of(tmp_path) == rows_of(healthy)
    assert counts_of(tmp_path) == counts_of(healthy)
    assert len(list((tmp_path / "embeddings").glob("wave-*"))) == len(
        list((tmp_path / "embeddings").glob("commit-*"))
    ), "the old files are gone"
    verbs.build(config, SILENT)
    assert digests(tmp_path) == digests(healthy)


def test_retry_keeps_a_good_row_whose_url_is_there_again_in_its_wave(tmp_path: Path) -> None:
    with toys.filled_web(each=4) as web:
        first = web.rows[0]
        web.rows[1:1] = [dict(first), {**first, "punsafe": 0.9}]
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        config, healthy = (config_of(source, tmp_path / out, *WAVES) for out in ("again", "once"))
        collect.embed(healthy, SILENT)
        paths = [path for path in web.files if not first["url"].endswith(path)]
        web.trouble = dict.fromkeys(paths[::2], 503)
        collect.embed(config, SILENT)
        web.trouble = {}
        assert collect.embed(config, SILENT, retry=("transient",))["rows_tried_again"]
    assert counts_of(config.run.out) == counts_of(healthy.run.out)
    assert rows_of(config.run.out) == rows_of(healthy.run.out)


def test_retry_of_what_stays_dead_changes_nothing_and_leaves_the_archive_finished(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    web.trouble = {}
    config = config_of(source, tmp_path, *WAVES)
    verbs.curate(config, SILENT)
    before = digests(tmp_path)
    web.hits.clear()
    again = collect.embed(config, SILENT, retry=("dead", "not_an_image"))
    assert again["rows_tried_again"] == web.hits.total() == 9 + 1, "404s and a page, no bad_url"
    assert digests(tmp_path) == before
    assert verbs.build(config, SILENT)["skipped"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    nothing = collect.embed(config, SILENT, retry=("opted_out",))
    assert nothing["rows_tried_again"] == 0
    assert web.hits.total() == 9 + 1
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_retry_gives_a_finished_archive_work_with_the_new_vectors(
    web: toys.SmallWeb, source: str, healthy: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, *WAVES)
    verbs.curate(config, SILENT)
    refine.refine(config, SILENT)
    train.train(config, SILENT)
    assert train.train(config, SILENT)["skipped"]
    web.trouble = {}
    collect.embed(config, SILENT, retry=("transient", "forbidden"))
    with pytest.raises(InputError, match="no finished 'build'"):
        train.train(config, SILENT)
    for verb in (verbs.curate, refine.refine, train.train):
        assert "skipped" not in verb(config, SILENT)
    assert digests(tmp_path) == digests(healthy)


def test_retry_of_a_run_cut_off_does_what_is_left_as_well(
    web: toys.SmallWeb, source: str, healthy: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, *WAVES)
    with pytest.raises(KeyboardInterrupt):
        collect.embed(config, StopAfter(3))
    assert len(list(tmp_path.glob("embeddings/commit-*.json"))) == 3
    web.trouble = {}
    collect.embed(config, SILENT, retry=("transient", "forbidden"))
    assert rows_of(tmp_path) == rows_of(healthy)


def test_retry_unknown_reason_names_the_known(source: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no failure class 'temporary'; expected one of dead, transient"
    ):
        collect.embed(config_of(source, tmp_path), SILENT, retry=("temporary",))
    assert not (tmp_path / "run.json").exists()


def test_retry_changed_metadata_is_refused_and_nothing_is_lost(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    path = tmp_path / "metadata.parquet"
    table = pq.read_table(source)
    pq.write_table(table, path)
    config = config_of(str(path), tmp_path / "run", *WAVES)
    collect.embed(config, SILENT)
    before = rows_of(config.run.out)
    pq.write_table(table.slice(1), path)
    with pytest.raises(InputError, match="different rows for wave 00000"):
        collect.embed(config, SILENT, retry=("transient",))
    assert rows_of(config.run.out) == before
    assert collect.embed(config, SILENT)["skipped"]


class Killed(BaseException):
    """Stands for a SIGKILL between two writes."""


@pytest.mark.parametrize("write", range(1, 9))
def test_retry_cut_off_before_any_write_has_every_row_once_and_goes_on(
    web: toys.SmallWeb, source: str, healthy: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, write: int,
) -> None:  # fmt: skip
    config = config_of(source, tmp_path, *WAVES)
    collect.embed(config, SILENT)
    web.trouble = {}
    left = [write]
    whole = storage.replaced

    def replaced(place: storage.Place) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return whole(place)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(storage, "replaced", replaced)
        collect.embed(config, SILENT, retry=("transient", "forbidden"))
    assert counts_of(tmp_path).total() == len(web.rows)
    with ledger.open_run(tmp_path) as run:
        ids = [one for table, _ in EmbeddingStore(run).tables() for one in
               table["sample_id"].to_pylist()]  # fmt: skip
    assert len(ids) == len(set(ids))
    if write % 2:
        summary = collect.embed(config, SILENT)
        assert summary["rows_by_status"] == dict(counts_of(tmp_path).most_common())
    collect.embed(config, SILENT, retry=("transient", "forbidden"))
    assert rows_of(tmp_path) == rows_of(healthy)
    names = {path.name for path in (tmp_path / "embeddings").glob("*.parquet")}
    kept = [file for commit in ledger.read_commits(tmp_path, "embeddings").values() for file in
            commit.files]  # fmt: skip
    assert names == {name.rpartition("/")[2] for name in kept}


def rewritten(run: Path, unit: str, table: pa.Table) -> ledger.Commit:
    with WaveRewriter(run, "embeddings", unit) as writer:
        writer.add(table)
        return writer.commit()


def test_retry_wave_written_twice_ends_as_written_once(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, *WAVES)
    collect.embed(config, SILENT)
    unit, old = next(iter(ledger.read_commits(tmp_path, "embeddings").items()))
    with ledger.open_run(tmp_path) as run:
        wave = next(iter(engine.PLAIN_LOOP.metadata(VerbRun(config, run, SILENT))))
    table = rows_again(wave.read, tmp_path, old, ("transient", "forbidden"))
    web.trouble = {}
    for name in ("fetch", "embed"):
        table = load_stage(name, config)(table)
    once = rewritten(tmp_path, unit, table)
    assert once.counts["ok"] > old.counts["ok"]
    assert once.files.keys() != old.files.keys()
    rows = rows_of(tmp_path)
    assert rewritten(tmp_path, unit, table) == once
    assert rows_of(tmp_path) == rows
    counts_of(tmp_path)


@pytest.mark.parametrize("rows", [1, 3, 4, 12])
def test_retry_wave_in_slices_written_twice_has_all_rows_in_order(
    tmp_path: Path, rows: int
) -> None:
    healed = (0, 4, 5, 11)
    dead, again = ([schema.OK] * 12 for _ in range(2))
    for row in range(12):
        again[row] = schema.OK if row in healed else KEPT
        dead[row] = "timeout" if row in healed else schema.OK
    dead[7] = again[7] = "http_404"
    vectors = [[float(row), 1.0] for row in range(12)]
    table = pa.table(
        {
            "sample_id": [f"{row:020d}" for row in range(12)],
            "url": [f"http://a.example/{row}" for row in range(12)],
            "caption": ["a"] * 12,
            "image_height": pa.array([8] * 12, pa.int32()),
            "image_width": pa.array([8] * 12, pa.int32()),
            "embedding": pa.array(vectors, schema.TYPES["embedding"]),
        }
    )
    with ledger.open_run(tmp_path), WaveWriter(tmp_path, "embeddings", "00000", "digest") as writer:
        writer.add(table.append_column("status", pa.array(dead)))
        writer.commit()
    commits = []
    for _ in range(2):  # the second time as by a process that was wrongly thought dead
        with WaveRewriter(tmp_path, "embeddings", "00000") as rewriter:
            for start in range(0, 12, rows):
                rewriter.add(table.append_column("status", pa.array(again)).slice(start, rows))
            commits.append(rewriter.commit())
    assert commits[0] == commits[1] and commits[0].counts == {"ok": 11, "http_404": 1}
    stored = pq.read_table(tmp_path / next(name for name in commits[0].files if "wave" in name))
    expected = [row for row in range(12) if row != 7]
    assert stored["embedding"].to_pylist() == [vectors[row] for row in expected]


def test_retry_wave_that_has_lost_a_row_is_refused(tmp_path: Path) -> None:
    add_wave(tmp_path, "00000", 5)
    with (
        pytest.raises(InputError, match="has lost some of its rows"),
        WaveRewriter(tmp_path, "embeddings", "00000") as rewriter,
    ):
        rewriter.add(pa.table({"sample_id": ["f" * 20], "status": [KEPT]}))


def test_retry_of_fetched_images_ends_as_if_all_had_come(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    config, plain = (config_of(source, tmp_path / name, *WAVES) for name in ("again", "plain"))
    collect.fetch(config, SILENT)
    web.trouble = {}
    collect.fetch(plain, SILENT)
    again = collect.fetch(config, SILENT, retry=("transient", "forbidden"))
    assert again["rows_by_status"] == collect.fetch(plain, SILENT)["rows_by_status"]
    for one, other in zip(*(ledger.read_commits(run, "fetched").values() for run in
                            (config.run.out, plain.run.out)), strict=True):  # fmt: skip
        assert one.counts == other.counts
        for kind in ("wave", "tombstones"):
            files = (config.run.out / file_of(one, kind), plain.run.out / file_of(other, kind))
            assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with s3_server(tmp_path_factory.mktemp("scratch")) as proxy:
        yield proxy


def test_retry_on_a_failing_s3_ends_as_on_a_disk(
    web: toys.SmallWeb, source: str, healthy: Path, proxy: Proxy
) -> None:
    config = config_of(source, Path("x"), *WAVES)
    config = Config.of(config.tree() | {"run": config.tree()["run"] | {"out": f"s3://{BUCKET}/r"}})
    collect.embed(config, SILENT)
    web.trouble = {}
    proxy.reset(every=5)
    collect.embed(config, SILENT, retry=("transient", "forbidden"))
    assert any("PUT" in one for one in proxy.failed)
    proxy.reset()
    assert rows_of(config.run.out) == rows_of(healthy)
    assert counts_of(config.run.out) == counts_of(healthy)
    names = [name for name in storage.sizes_in(config.run.out / "embeddings") if "wave" in name]
    assert len(names) == len(ledger.read_commits(config.run.out, "embeddings"))


def test_retry_record_that_another_process_replaced_is_left_to_it(proxy: Proxy) -> None:
    record = storage.place_of(f"s3://{BUCKET}/record")
    record.write_bytes(b"theirs")
    with pytest.raises(InputError, match="was written by another process"):
        storage.replace(record, b"ours, old", b"ours, new")
    assert record.read_bytes() == b"theirs"
    storage.replace(record, b"theirs", b"ours, new")
    assert record.read_bytes() == b"ours, new"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_retry_on_ray_ends_as_in_the_plain_loop(
    web: toys.SmallWeb, source: str, healthy: Path, tmp_path: Path
) -> None:
    on_ray = ("ray.num_cpus=8", "ray.object_store_mb=200")
    config = config_of(source, tmp_path, *WAVES, *on_ray)
    with engine.executor_of(config) as executor:
        first = collect.embed(config, SILENT, executor)
        web.trouble = {}
        web.hits.clear()
        again = collect.embed(config, SILENT, executor, ("transient", "forbidden"))
        assert again["rows_by_status_before"] == first["rows_by_status"]
        assert again["rows_tried_again"] == web.hits.total() > 0
    assert rows_of(tmp_path) == rows_of(healthy)
    assert counts_of(tmp_path) == counts_of(healthy)


def test_retry_from_the_command_line_shows_counts_before_and_after(
    web: toys.SmallWeb, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(source, tmp_path / "run", *WAVES)
    run_file = tmp_path / "run.toml"
    run_file.write_text(to_toml(config))
    assert main(["embed", str(run_file), "--local", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    web.trouble = {}
    command = ["embed", str(run_file), "--local", "--json", "--retry", "transient"]
    assert main([*command, "--retry", "forbidden"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows_by_status_before"] == first["rows_by_status"]
    assert not count_in_classes(again["rows_by_status"], ("transient", "forbidden"))
    assert again["rows_by_status"]["ok"] > first["rows_by_status"]["ok"]
    assert again["rows_in"] == first["rows_in"]
    assert main([*command, "--retry", "bad luck"]) == 2
    assert "no failure class 'bad luck'; expected one of dead, transient" in capsys.readouterr().err
    assert ray_jobs.main("embed", ["--config", str(run_file), "--retry", "bad luck"]) == 2
    assert "no failure class 'bad luck'" in capsys.readouterr().err
