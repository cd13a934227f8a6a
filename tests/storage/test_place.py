"""Run folders and metadata on a real S3 server that fails now and then: the bytes of a disk's."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from namedmask.archive.store import Archive
from namedmask.cli import app as cli
from namedmask.config.run_file import Config, to_toml
from namedmask.engine import executor_of
from namedmask.errors import ConfigError, InputError, NamedMaskError
from namedmask.metadata.sources import places_of
from namedmask.retrieve.faiss_index import read_index
from namedmask.run import ledger
from namedmask.run.layout import CHECKPOINT
from namedmask.run.progress import SilentProgress
from namedmask.storage import files as file_store
from namedmask.storage import locks, s3, s3_client
from namedmask.storage import place as storage
from namedmask.storage.patterns import expand
from namedmask.storage.s3 import S3Path
from namedmask.verbs import build as verbs
from namedmask.verbs import evaluate, refine, train
from namedmask.verbs.search import search
from namedmask.weights.tensors import read_tree
from tests import tables, toys
from tests.road import config_of, digests, judged_on_disks
from tests.s3_server import BUCKET, S3_WARNINGS, Proxy, s3_server
from tests.waves import add_wave, search_config

pytestmark = S3_WARNINGS
SILENT = SilentProgress()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with s3_server(tmp_path_factory.mktemp("scratch")) as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Proxy) -> Iterator[Proxy]:
    server.reset()
    yield server
    server.reset()


@pytest.fixture
def folder(proxy: Proxy, request: pytest.FixtureRequest) -> S3Path:
    """A folder of its own for each test."""
    return S3Path(BUCKET) / request.node.name


def test_storage_s3_path_does_what_pathlib_does() -> None:
    for text in ("bucket/a/b.c/name.tar.gz", "bucket/a//b/./wave-00001.parquet", "bucket/run"):
        ours, theirs = S3Path.of(f"s3://{text}"), Path("/" + text)
        assert str(ours) == f"s3:/{theirs}"
        assert str(ours / "x" / Path("y/z.pt")) == f"s3:/{theirs / 'x' / 'y/z.pt'}"
        assert str(ours.parent) == f"s3:/{theirs.parent}"
        assert (ours.name, ours.stem, ours.suffix) == (theirs.name, theirs.stem, theirs.suffix)
        assert str(ours.with_name("other")) == f"s3:/{theirs.with_name('other')}"
        assert pickle.loads(pickle.dumps(ours)) == ours == ours.absolute() == ours.resolve()
    assert str(S3Path.of("s3://bucket/")) == "s3://bucket"


def test_storage_names_of_places_keep_both_slashes_in_a_saved_config(tmp_path: Path) -> None:
    config = Config.of({"run": {"out": "s3://bucket/some/run/"}})
    assert config.run.out == S3Path("bucket", "some/run")
    assert config.tree()["run"]["out"] == "s3://bucket/some/run"
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert Config.load(tmp_path / "run.toml") == config == pickle.loads(pickle.dumps(config))
    assert Config.of({"run": {"out": "some/run"}}).run.out == Path("some/run")


@pytest.mark.parametrize("key", ["run.out", "metadata.source"])
def test_storage_credentials_in_a_url_are_refused_and_not_repeated(key: str) -> None:
    url = "s3://AKIA123:verysecret@bucket/run"
    override = f'{key}="{url}"' if key == "run.out" else f'{key}=["{url}"]'
    with pytest.raises(ConfigError, match=r"bare name.*environment") as caught:
        Config.of({"run": {"out": "x"}}, [override])
    assert "verysecret" not in str(caught.value)


def test_storage_boto3_is_not_loaded_without_s3() -> None:
    code = (
        "import sys, namedmask.cli.app, namedmask.run.ledger, namedmask.verbs.inspect\n"
        "sys.exit(bool({'boto3', 'botocore'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_storage_files_are_written_listed_read_and_removed(folder: S3Path) -> None:
    table = pa.table({"sample_id": ["a", "b"], "rank": pa.array([1, 2], pa.int32())})
    assert not folder.exists()
    record = file_store.write_file(folder / "store/wave-00000.parquet", table)
    file_store.write_json(folder / "store/deep/one.json", {"a": 1})
    assert file_store.read_parquet(folder / "store/wave-00000.parquet").equals(table)
    only = file_store.read_parquet(folder / "store/wave-00000.parquet", ["rank"])
    assert only.equals(table.select(["rank"]))
    assert storage.sizes_in(folder / "store") == {"wave-00000.parquet": record["size"]}
    assert sorted(storage.sizes_below(folder))[1] == record["size"]
    assert [path.name for path in (folder / "store").glob("*")] == ["wave-00000.parquet"]
    assert (folder / "store").is_dir() and not (folder / "store").is_file()
    assert not (folder / "sto").exists(), "a prefix is no folder"
    with pytest.raises(FileNotFoundError):
        (folder / "none").unlink()
    storage.remove_tree(folder)
    assert not folder.exists()
    with pytest.raises(InputError, match=r"wave-00000\.parquet cannot be read"):
        file_store.read_parquet(folder / "store/wave-00000.parquet")


def test_storage_listing_of_several_pages_is_whole(folder: S3Path) -> None:
    for number in range(7):
        (folder / f"{number}.json").write_bytes(b"x" * number)
    assert [size for _, size in folder.files(limit=3)] == list(range(7))


def test_storage_writer_that_fails_half_way_leaves_what_was_there(folder: S3Path) -> None:
    def write_and_fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("power gone")

    (folder / "weights.pt").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        file_store.write_file(folder / "weights.pt", write_and_fail)
    assert (folder / "weights.pt").read_bytes() == b"old"


def test_storage_every_kind_of_trouble_is_outlived(folder: S3Path, proxy: Proxy) -> None:
    proxy.reset(every=3)
    data = os.urandom(10_000)
    for number in range(12):
        (folder / "file").write_bytes(data)
        storage.create(folder / f"record-{number}", data)
        assert (folder / "file").read_bytes() == data
        assert len(list(folder.glob("*"))) == number + 2
    expected = {f"{how} {method}" for how in ("before", "after") for method in ("GET", "PUT")}
    assert {*expected, "cut GET"} <= set(proxy.failed)


def test_storage_file_is_fetched_whole_in_pieces(
    folder: S3Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CHUNK", 1000)
    data = os.urandom(4321)
    (folder / "table.csv.gz").write_bytes(data)
    (folder / "empty").write_bytes(b"")
    proxy.reset(every=3)
    with storage.fetched(folder / "table.csv.gz") as path:
        assert path.name == "table.csv.gz"
        assert path.read_bytes() == data
    with storage.fetched(folder / "empty") as path:
        assert path.read_bytes() == b""
    assert not path.exists()


def test_storage_commit_is_made_once(folder: S3Path) -> None:
    def commit(text: bytes, digest: str = "") -> ledger.Commit:
        files = {"images/wave-00000.parquet": text}
        return ledger.write_unit(
            folder, "images", "00000", files, rows=1, counts={"ok": 1}, input_digest=digest
        )

    first = commit(b"one")
    assert commit(b"one") == first, "a retry finds its own record"
    with pytest.raises(InputError, match=r"commit-00000\.json was written by another process"):
        commit(b"another")
    (folder / "images/commit-00000.json").unlink()
    first = commit(b"one", "of these rows")
    assert commit(b"other rounding", "of these rows") == first, "who was thought lost came late"
    assert (folder / "images/wave-00000.parquet").read_bytes() == b"one"


def test_storage_of_many_writers_of_one_record_one_gets_it(folder: S3Path, proxy: Proxy) -> None:
    proxy.reset(every=5)
    won: list[int] = []

    def write(number: int) -> None:
        if (folder / "record").create(b"%d" % number) is not None:
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % number for number in won] == [(folder / "record").read_bytes()]


def test_storage_second_writer_is_refused_until_the_first_is_done(folder: S3Path) -> None:
    used = pytest.raises(InputError, match=rf"in use by process .*:{os.getpid()}\..* expires")
    with ledger.open_run(folder), used, ledger.open_run(folder):
        pass
    with ledger.open_run(folder) as run:
        assert run.folder == folder


def killed_holder(folder: S3Path) -> None:
    code = (
        "import os, signal, sys\nfrom namedmask.run.ledger import open_run\n"
        "from namedmask.storage import place_of\n"
        "with open_run(place_of(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)])
    assert done.returncode == -signal.SIGKILL


def test_storage_lock_of_a_killed_process_does_not_hold_on_its_machine(folder: S3Path) -> None:
    killed_holder(folder)
    with ledger.open_run(folder):
        pass


@pytest.mark.slow
def test_storage_lock_of_a_killed_process_elsewhere_runs_out(
    folder: S3Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_holder(folder)
    monkeypatch.setattr(locks, "_machine", lambda: "another")
    with pytest.raises(InputError, match="is in use by process"), ledger.open_run(folder):
        pass
    monkeypatch.setattr(locks, "TTL_S", 4.0)
    time.sleep(4.5)
    with ledger.open_run(folder):
        time.sleep(6.0)  # longer than a lock lives that is not renewed
        with pytest.raises(InputError, match="is in use"), ledger.open_run(folder):
            pass


def test_storage_holder_that_slept_too_long_writes_no_more(
    folder: S3Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "TTL_S", 1.0)
    sleeper, other = locks._Lease(folder / ".lock"), locks._Lease(folder / ".lock")
    sleeper.acquire()
    time.sleep(2.1)
    other.acquire()
    sleeper.renew_until(threading.Event())
    with pytest.raises(InputError, match="has another writer"):
        file_store.write_json(folder / "run.json", {})
    file_store.write_json(folder.with_name("another-run") / "run.json", {})
    sleeper.release()
    assert other._tag is not None and (folder / ".lock").stat().tag == other._tag
    other.release()
    with ledger.open_run(folder):
        pass


def test_storage_missing_bucket_is_told(proxy: Proxy) -> None:
    with pytest.raises(InputError, match=r"'no-such-bucket' does not exist at http://127"):
        storage.check_writable(S3Path("no-such-bucket", "run"))
    assert cli.main(["inspect", "s3://no-such-bucket/run"]) == 2


def test_storage_missing_credentials_are_told(
    folder: S3Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3_client.client_of.cache_clear()
    try:
        with pytest.raises(InputError, match=r"no credentials for S3.*AWS_ACCESS_KEY_ID"):
            storage.check_writable(folder)
    finally:
        s3_client.client_of.cache_clear()


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [
        ((403, "AccessDenied"), InputError, "refuses access .AccessDenied.*AWS_PROFILE"),
        ((501, "NotImplemented"), InputError, "no conditional writes"),
        ((503, "SlowDown"), NamedMaskError, "up to 8 attempts.*Run the same command"),
    ],
)
def test_storage_refusal_is_told_with_a_way_out(
    folder: S3Path, proxy: Proxy, refusal: tuple[int, str], kind: type, message: str
) -> None:
    proxy.refusal = refusal
    with pytest.raises(kind, match=message) as caught:
        (folder / "record").create(b"")
    assert str(folder) in str(caught.value)
    assert "secret-of-the-tests" not in str(caught.value)
    assert len(proxy.requests) == (8 if refusal[0] == 503 else 1)


def test_storage_sources_on_s3_expand_as_on_a_disk(folder: S3Path, tmp_path: Path) -> None:
    names = ("a/1.parquet", "a/2.csv", "a/deep/3.parquet", "b/4.parquet", "a/.hidden.parquet",
             "a/@eaDir/5.parquet", "__MACOSX/6.parquet")  # fmt: skip
    for name in names:
        (folder / name).write_bytes(b"x")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for pattern in ("*/*.parquet", "a/*", "**/*.parquet", "a/**", "?/[14].*", "a/1.parquet"):
        found = [one.removeprefix(f"{folder}/") for one in expand(f"{folder}/{pattern}")]
        assert found == [
            one.removeprefix(f"{tmp_path}/") for one in expand(f"{tmp_path}/{pattern}")
        ]
        assert found
    config = Config.of({"run": {"out": "x"}, "metadata": {"source": [f"{folder}/a/*.txt"]}})
    with pytest.raises(ConfigError, match="matches no file"):
        places_of(config.metadata.source)


def test_storage_metadata_on_a_failing_s3_is_read_whole_and_by_its_columns(
    folder: S3Path, proxy: Proxy, tmp_path: Path
) -> None:
    columns = {"URL": tables.urls(3000), "TEXT": ["a crane"] * 3000, "punsafe": [0.1] * 3000}
    heavy = columns | {"exif": [os.urandom(500) for _ in range(3000)]}
    pq.write_table(pa.table(heavy), tmp_path / "a.parquet", row_group_size=1000)
    pacsv.write_csv(pa.table(columns), tmp_path / "b.csv")
    for name in ("a.parquet", "b.csv"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    proxy.reset()
    plain = tables.read(tmp_path / "a.parquet")
    assert tables.read(f"{folder}/*.parquet").equals(plain)
    assert proxy.sent_bytes < (tmp_path / "a.parquet").stat().st_size / 4
    proxy.reset(every=3)
    for name in ("a.parquet", "b.csv"):
        assert tables.read(f"{folder}/{name}").equals(plain)
    assert {"before GET", "after GET", "cut GET"} <= set(proxy.failed)


def test_storage_s3_run_is_searched_and_built_from_an_index_as_on_a_disk(
    folder: S3Path, tmp_path: Path
) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed: searching needs an extra")
    found = []
    for out in (folder / "run", tmp_path / "run"):
        add_wave(out, "00000", 90)
        config = search_config(out)
        answers = [search(config, "a red thing", 4, SILENT) for _ in range(2)]
        assert [bool(one["made_because"]) for one in answers] == [True, False]
        found.append(answers[1]["hits"])
    assert found[0] == found[1]
    faiss.write_index(faiss.IndexFlatIP(8), str(tmp_path / "some.index"))
    (folder / "some.index").write_bytes((tmp_path / "some.index").read_bytes())
    assert read_index(folder / "some.index").d == 8


@pytest.fixture(scope="module")
def source(web: toys.SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return web.write_metadata(tmp_path_factory.mktemp("web") / "metadata.parquet")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


def whole_road(config: Config) -> None:
    for verb in (verbs.curate, refine.refine, train.train, evaluate.evaluate):
        verb(config, SILENT)


def assert_equal_weights(one: storage.Place, other: storage.Place) -> None:
    here, there = read_tree(one)["model"], read_tree(other)["model"]
    assert here.keys() == there.keys()
    assert all(here[key].equal(there[key]) for key in here)


def uploaded(source: Path, folder: S3Path) -> str:
    """Return the metadata on S3, as a source with a wildcard."""
    (folder / "metadata/part-0.parquet").write_bytes(source.read_bytes())
    return f"{folder}/metadata/part-*.parquet"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_storage_whole_road_on_a_failing_s3_has_the_bytes_of_a_disk(
    source: Path, benchmark: Path, folder: S3Path, proxy: Proxy, tmp_path: Path
) -> None:
    plain = judged_on_disks(config_of(str(source), tmp_path), benchmark)
    whole_road(plain)
    tree = config_of(uploaded(source, folder), Path("x")).tree()
    tree["run"]["out"] = f"{folder}/run"
    config = judged_on_disks(Config.of(tree), benchmark)
    proxy.reset(every=7)
    whole_road(config)
    assert len(proxy.failed) > 20
    proxy.reset()
    run = config.run.out
    assert digests(run) == digests(tmp_path)
    assert_equal_weights(run / CHECKPOINT, tmp_path / CHECKPOINT)
    for name in ("evaluation.json", "archive/manifest.json"):
        assert (run / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not (run / "segmenter/training.pt").exists()
    assert "secret-of-the-tests" not in (run / "run.toml").read_text()
    assert Config.load(run / "run.toml") == config

    proxy.reset()
    assert verbs.curate(config, SILENT)["skipped"] and evaluate.evaluate(config, SILENT)["skipped"]
    written = {path for method, path in proxy.requests if method in ("PUT", "DELETE", "POST")}
    assert all(path.endswith("/.lock") for path in written)
    assert cli.main(["report", str(run)]) == 0
    assert b"<html" in (run / "report.html").read_bytes()
    for name in ("", "archive", "archive/00001-red.parquet", "segmenter/checkpoint.pt"):
        assert cli.main(["inspect", "--json", str(run / name)]) == 0


@pytest.mark.slow
def test_storage_archive_on_s3_is_fetched_once_for_training(
    source: Path, folder: S3Path, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs.curate(config_of(str(source), tmp_path / "run"), SILENT)
    for path in (tmp_path / "run/archive").iterdir():
        (folder / "archive" / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = Archive.open(tmp_path / "run/archive").samples(refined=False)
    archive = Archive.open(folder / "archive", verify=True)
    for _ in range(2):
        samples = archive.samples(refined=False, cache_mb=0)
        proxy.reset()
        for index in reversed(range(len(plain))):
            for one, other in zip(samples[index], plain[index], strict=True):
                assert (one == other).all()
    assert proxy.requests == [], "the second time all of it is here"
    copies = list(tmp_path.glob("namedmask-*/*"))
    assert len(copies) == len(toys.COLORS)
    for copy in copies:
        copy.unlink()
    red = folder / "archive" / archive.categories[0].file
    red.write_bytes(b"x" * red.stat().st_size)
    with pytest.raises(InputError, match=r"00001-red\.parquet has sha256"):
        samples[0]
    with pytest.raises(InputError, match=r"00001-red\.parquet.* has sha256"):
        Archive.open(folder / "archive", verify=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_storage_run_killed_on_s3_goes_on_to_the_same_rows(
    source: Path, web: toys.SmallWeb, folder: S3Path, proxy: Proxy, tmp_path: Path
) -> None:
    plain = config_of(str(source), tmp_path)
    verbs.curate(plain, SILENT)
    tree = plain.tree()
    tree["run"]["out"] = str(folder)
    code = (
        "import json, sys\nfrom namedmask.verbs import build as verbs\n"
        "from namedmask.config import Config\n"
        "from namedmask.run.progress import SilentProgress\n"
        "verbs.curate(Config.of(json.loads(sys.argv[1])), SilentProgress())\n"
    )
    web.delay_s = 0.1
    try:
        process = subprocess.Popen([sys.executable, "-c", code, json.dumps(tree)])
        while not (folder / "embeddings/commit-00002.json").is_file():
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.05)
        process.kill()
        process.wait()
    finally:
        web.delay_s = 0.0
    committed = [path for path, _ in folder.files() if "commit-" in path.name]
    proxy.reset()
    verbs.curate(Config.of(tree), SILENT)
    assert digests(folder) == digests(tmp_path)
    written = {path for method, path in proxy.requests if method == "PUT"}
    assert f"/{BUCKET}/{folder.key}/run.json" in written
    assert not written & {f"/{BUCKET}/{path.key}" for path in committed}, "done again"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_storage_road_on_ray_to_s3_has_the_bytes_of_a_disk(
    source: Path, folder: S3Path, proxy: Proxy, tmp_path: Path
) -> None:
    settings = ("ray.num_cpus=8", "ray.object_store_mb=200")
    plain = config_of(str(source), tmp_path)
    for verb in (verbs.curate, refine.refine, train.train):
        verb(plain, SILENT)
    tree = config_of(uploaded(source, folder), Path("x"), *settings).tree()
    tree["run"]["out"] = f"{folder}/run"
    config = Config.of(tree)
    proxy.reset(every=19)
    with executor_of(config) as executor:
        for verb in (verbs.curate, refine.refine, train.train):
            verb(config, SILENT, executor)
        assert verbs.curate(config, SILENT, executor)["skipped"]
    run = config.run.out
    assert digests(run) == digests(tmp_path)
    assert_equal_weights(run / CHECKPOINT, tmp_path / CHECKPOINT)
    assert not (run / "metadata").exists()
    assert list(storage.sizes_in(run / "segmenter")) == ["checkpoint.pt"]
