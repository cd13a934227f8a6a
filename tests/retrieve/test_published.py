"""Published vectors: read in ranges from disk and S3, refused where their files do not agree."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask.archive.store import Archive
from namedmask.config import Config, MetadataConfig
from namedmask.embed.stage import Embed
from namedmask.engine import executor_of
from namedmask.errors import ConfigError, InputError
from namedmask.metadata.urls import sample_id
from namedmask.retrieve import published
from namedmask.retrieve.published import PublishedStore
from namedmask.retrieve.top_k import exact_top_k
from namedmask.retrieve.vectors import TopK, file_parts
from namedmask.run.progress import SilentProgress
from namedmask.storage import Place
from namedmask.storage.s3 import S3Path
from namedmask.verbs import build as verbs
from namedmask.verbs import train
from namedmask.verbs.inspect import inspect_path
from namedmask.verbs.plan import plan_of
from namedmask.verbs.search import search
from tests import rounding, toys
from tests.road import StopAfter, read_json, tree_of
from tests.s3_server import BUCKET, S3_WARNINGS, Proxy, s3_server

pytestmark = S3_WARNINGS
SILENT = SilentProgress()
OWN = Path(__file__).parents[1] / "data" / "clip_retrieval"
CONFIG = MetadataConfig()
LAYOUT = (("img_emb", "img_emb_{}.npy"), ("metadata", "metadata_{}.parquet"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with s3_server(tmp_path_factory.mktemp("scratch")) as proxy:
        yield proxy


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_vectors(rows: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return unit(vectors).astype(np.float16)


def write_folder(
    folder: Path, *parts: np.ndarray, rows: list[dict[str, Any]] | None = None
) -> Path:
    """Write vectors, a file a part, and their metadata; return the folder."""
    rows = rows or [{"URL": f"http://a.example/{n}"} for n in range(sum(map(len, parts)))]
    first = 0
    for name, _ in LAYOUT:
        (folder / name).mkdir(parents=True)
    for number, part in enumerate(parts):
        np.save(folder / "img_emb" / f"img_emb_{number:02d}.npy", part)
        table = pa.Table.from_pylist(rows[first : first + len(part)])
        path = folder / "metadata" / f"metadata_{number:02d}.parquet"
        pq.write_table(table, path, row_group_size=1000)
        first += len(part)
    return folder


def upload(folder: Path, to: S3Path) -> S3Path:
    for path in folder.rglob("*.*"):
        (to / path.relative_to(folder)).write_bytes(path.read_bytes())
    return to


def test_published_folder_of_clip_retrieval_itself_is_read_as_it_is() -> None:
    store = PublishedStore(OWN, CONFIG)
    known = random_vectors(10, 8)
    assert (store.count, store.width) == (10, 8)
    assert [(first, rows) for _, first, rows in store.files()] == [(0, 5), (5, 5)]
    stored = np.concatenate([chunk for file, _, _ in store.files() for chunk in file.chunks()])
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, known)
    ids, urls, vectors = store.take(np.array([1, 3, 4, 5, 9]))
    assert urls == [f"http://images.example/{n}.jpg" for n in (1, 3, 4, 5, 9)]
    assert ids == [sample_id(url) for url in urls]
    assert store.row_statuses == {3: "unsafe"}
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1), 1, atol=rounding.of_dot_product(vectors.shape[1])
    )
    np.testing.assert_allclose(vectors, known[[1, 3, 4, 5, 9]].astype(np.float32), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_published_parts_scanned_in_ranges_give_the_answer_of_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setattr(published, "RANGE_BYTES", 700)  # ranges end within files
    vectors = random_vectors(90, 24).astype(dtype)
    store = PublishedStore(write_folder(tmp_path / "v", vectors[:31], vectors[31:60], vectors[60:]),
                           CONFIG)  # fmt: skip
    queries = random_vectors(3, 24, seed=1).astype(np.float32)
    expected = exact_top_k([vectors], queries, 90)
    parts = file_parts(store, 2)
    assert [part.first for part in parts] == [0, 60]
    found = [TopK(queries, 90)(part) for part in parts]
    for scores, rows in found:
        for query in range(3):
            places = [expected[1][query].tolist().index(row) for row in rows[query]]
            np.testing.assert_allclose(
                scores[query],
                expected[0][query][places],
                atol=rounding.of_dot_product(vectors.shape[1]),
            )
    rows = np.array([0, 30, 31, 59, 60, 89])
    np.testing.assert_allclose(store.take(rows)[2], unit(vectors[rows].astype(np.float32)),
                               atol=1e-6)  # fmt: skip


def test_published_files_are_ordered_by_number_whatever_the_padding(tmp_path: Path) -> None:
    vectors = random_vectors(11, 4)
    folder = tmp_path / "v"
    for name, _ in LAYOUT:
        (folder / name).mkdir(parents=True)
    for number in range(11):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors[number : number + 1])
        path = folder / "metadata" / f"metadata_{number:04d}.parquet"
        pq.write_table(pa.table({"url": [f"http://a.example/{number}"]}), path)
    _, urls, taken = PublishedStore(folder, CONFIG).take(np.arange(11))
    assert urls == [f"http://a.example/{number}" for number in range(11)]
    np.testing.assert_allclose(taken, vectors.astype(np.float32), atol=1e-3)


def damaged(folder: Path, kind: str) -> Path:
    """Return a folder of two files of which one is wrong."""
    parts = [random_vectors(5, 8), random_vectors(5, 8)]
    if kind == "rows":
        write_folder(folder, *parts)
        pq.write_table(pa.table({"url": ["http://a.example/"] * 4}),
                       folder / "metadata" / "metadata_01.parquet")  # fmt: skip
        return folder
    if kind == "width":
        parts[1] = random_vectors(5, 9)
    if kind == "type":
        parts[1] = parts[1].astype(np.float64)
    if kind == "flat":
        parts[1] = parts[1][0]
    if kind == "order":
        parts[1] = np.asfortranarray(parts[1])
    if kind == "length":
        parts[1] = parts[1] * 3
    rows = [{"url": f"http://a.example/{n}"} for n in range(20)]
    write_folder(folder, *parts, rows=rows)
    last = folder / "img_emb" / "img_emb_01.npy"
    if kind == "cut":
        last.write_bytes(last.read_bytes()[:-3])
    if kind == "text":
        last.write_bytes(b"not an array")
    if kind == "alone":
        (folder / "metadata" / "metadata_01.parquet").unlink()
    if kind == "table":
        (folder / "metadata" / "metadata_01.parquet").write_bytes(b"no table")
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rows", r"img_emb_01\.npy has 5 vectors, .*metadata_01\.parquet 4 rows"),
        ("width", r"img_emb_00\.npy has vectors 8 wide, .*img_emb_01\.npy 9"),
        ("type", r"img_emb_01\.npy holds \(5, 8\) float64; expected \(N, D\) float16 or float32"),
        ("flat", r"holds \(8,\) float16"),
        ("order", r"column by column"),
        ("length", r"img_emb_01\.npy: the vector of row 0 has length 3\.0.*expected 1"),
        ("cut", r"img_emb_01\.npy has 205 bytes; its header asks for 208"),
        ("text", r"img_emb_01\.npy cannot be read as \.npy"),
        ("alone", r"img_emb_01\.npy has no counterpart.* 2 img_emb/\*\.npy and 1 metadata"),
        ("table", r"metadata_01\.parquet cannot be read as a table"),
    ],
)
def test_published_files_that_do_not_agree_are_refused_before_any_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, message: str
) -> None:
    monkeypatch.setattr(published.VectorFile, "_read", lambda *_: pytest.fail("a scan began"))
    with pytest.raises(InputError, match=message):
        PublishedStore(damaged(tmp_path / "v", kind), CONFIG)


def test_published_empty_folder_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no img_emb/\*\.npy; expected the layout"):
        PublishedStore(tmp_path, CONFIG)


def test_published_vector_that_is_not_of_unit_length_is_named(tmp_path: Path) -> None:
    vectors = random_vectors(9, 8)
    vectors[7] *= 2
    store = PublishedStore(write_folder(tmp_path / "v", vectors[:5], vectors[5:]), CONFIG)
    with pytest.raises(InputError, match=r"img_emb_01\.npy: the vector of row 2 has length 2\.0"):
        store.take(np.array([0, 7]))


def test_published_metadata_rules_judge_the_rows_taken(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"URL": "http://a.example/0", "WIDTH": 300.0, "HEIGHT": 200, "punsafe": 0.1},
        {"URL": "http://a.example/1", "WIDTH": 300.0, "HEIGHT": 200, "punsafe": 0.9},
        {"URL": "http://a.example/2", "WIDTH": 300.0, "HEIGHT": 20, "punsafe": 0.1},
        {"URL": "http://a.example/3", "WIDTH": 900.0, "HEIGHT": 100, "punsafe": None},
        {"URL": None, "WIDTH": 300.0, "HEIGHT": 200, "punsafe": 0.1},
        {"URL": "http://a.example/0#again", "WIDTH": 300.0, "HEIGHT": 200, "punsafe": 0.8},
    ]
    folder = write_folder(tmp_path / "v", random_vectors(6, 8), rows=rows)
    store = PublishedStore(folder, MetadataConfig(min_side=50, max_aspect=4))
    ids, _, _ = store.take(np.arange(5))
    found = [store.row_statuses.get(row, "ok") for row in range(5)]
    assert found == ["ok", "unsafe", "too_small", "bad_aspect", "bad_url"]
    again, _, _ = store.take(np.array([0, 5]))
    assert again == [ids[0]] * 2
    assert (store.row_statuses.get(0), store.row_statuses[5]) == (None, "unsafe")
    looser = PublishedStore(folder, MetadataConfig(min_side=50, max_aspect=4, max_punsafe=0.95))
    assert looser.digest() != store.digest(), "a search would find what is ruled out now"


class Counting:
    """Counts the bytes that a place's files are read for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, self.most, self._lock = 0, 0, threading.Lock()
        inner = published.VectorFile._read

        def read(file: Any, raw: Any, first: int, count: int) -> np.ndarray:
            with self._lock:
                self.bytes += count * file.row_bytes
                self.most = max(self.most, count * file.row_bytes)
            return inner(file, raw, first, count)

        monkeypatch.setattr(published.VectorFile, "_read", read)


def test_published_take_of_three_rows_reads_little_of_a_big_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = random_vectors(20_000, 256)
    store = PublishedStore(write_folder(tmp_path / "v", vectors), CONFIG)
    counted = Counting(monkeypatch)
    rows = np.array([3, 9_000, 19_999])
    np.testing.assert_allclose(store.take(rows)[2], unit(vectors[rows].astype(np.float32)),
                               atol=1e-6)  # fmt: skip
    assert counted.bytes == 3 * 512
    counted.bytes = 0
    store.take(np.array([3, 5, 100, 19_999]))
    assert counted.bytes == 99 * 512, "neighbors come in one request"
    monkeypatch.setattr(published, "RANGE_BYTES", 1000 * 512)
    counted.most = 0
    every = np.arange(0, 20_000, 10)
    np.testing.assert_allclose(store.take(every)[2], unit(vectors[every].astype(np.float32)),
                               atol=1e-6)  # fmt: skip
    assert counted.most <= 1000 * 512, "and yet never more than a range at once"


def test_published_on_s3_asks_for_ranges_and_never_for_a_whole_file(
    server: Proxy, tmp_path: Path
) -> None:
    vectors = random_vectors(20_000, 256)  # 10 MB
    local = write_folder(tmp_path / "v", vectors[:15_000], vectors[15_000:])
    folder = upload(local, S3Path(BUCKET) / "vectors")
    server.reset()
    store = PublishedStore(folder, CONFIG)
    rows = np.array([3, 9_000, 19_999])
    ids, urls, taken = store.take(rows)
    sizes = {str(path): size for path, size in folder.files()}
    biggest = max(sizes.values())
    assert server.sent_bytes < biggest / 10, "less than a tenth of one file came"
    assert (ids, urls) == PublishedStore(local, CONFIG).take(rows)[:2]
    np.testing.assert_allclose(taken, unit(vectors[rows].astype(np.float32)), atol=1e-6)
    queries = random_vectors(2, 256, seed=3).astype(np.float32)
    (part,) = file_parts(store, 1)
    np.testing.assert_array_equal(TopK(queries, 5)(part)[1], exact_top_k([vectors], queries, 5)[1])


def test_published_on_s3_with_failing_requests_is_read_all_the_same(
    server: Proxy, tmp_path: Path
) -> None:
    folder = upload(OWN, S3Path(BUCKET) / "failing")
    server.reset(every=3)
    try:
        store = PublishedStore(folder, CONFIG)
        assert store.take(np.arange(10))[1] == PublishedStore(OWN, CONFIG).take(np.arange(10))[1]
        assert server.failed
    finally:
        server.reset()


@pytest.fixture(scope="module")
def vectors(web: toys.SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy web's vectors as somebody published them, of its dead links too."""
    return publish(web, tmp_path_factory.mktemp("vectors"))


def publish(web: toys.SmallWeb, folder: Path) -> Path:
    embedder, rows, made = toys.ThumbnailEmbedder(), [], []
    for number, row in enumerate(web.rows):
        name = row["url"].rpartition("/")[2]
        word = name.partition("-")[0]
        if word not in toys.COLORS:
            continue
        made.append(embedder.embed_images([toys.disk(toys.COLORS[word], seed_of(name),
                                                     face="face" in name)])[0])  # fmt: skip
        rows.append({"URL": row["url"], "punsafe": 0.9 if name == "red-1.jpg" else 0.1})
        if number == 2:  # the same url once more, with another caption
            rows.append(rows[-1])
            made.append(made[-1])
    whole = np.stack(made).astype(np.float16)
    return write_folder(folder / "v", whole[:20], whole[20:], rows=rows)


def seed_of(name: str) -> int:
    word, *kind, number = name.removesuffix(".jpg").split("-")
    return 1000 * list(toys.COLORS).index(word) + int(number) + (300 if kind == ["face"] else 0)


def config_of(vectors: Place, out: Path, *overrides: str) -> Config:
    tree = tree_of("nowhere/*.parquet", out)
    tree["vectors"] = {"source": str(vectors), "proof_images": 10, "proof_cosine": 0.95}
    tree["retrieve"] |= {"near_duplicate_cosine": 1.0, "archive_size": 5, "candidates": 20}
    return Config.of(tree, overrides)


@pytest.fixture(scope="module")
def finished(vectors: Path, web: toys.SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    verbs.curate(config_of(vectors, out), SILENT)
    return out


def candidates_of(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "candidates.parquet").to_pylist()


def test_published_build_fills_archives_and_its_funnel_adds_up(
    finished: Path, vectors: Path, web: toys.SmallWeb
) -> None:
    archive = Archive.open(finished / "archive", verify=True)
    assert [category.count for category in archive.categories] == [5, 5, 5]
    for word in toys.COLORS:
        for row in archive.entries(word).to_pylist():
            assert f"/{word}-" in row["url"]
            assert row["image"] == web.files[row["url"].removeprefix(web.url)]
    funnels = read_json(finished / "funnels.json")
    assert funnels["vectors_in"] == PublishedStore(vectors, CONFIG).count
    assert "rows_in" not in funnels
    assert funnels["candidates_in"] == sum(funnels["candidates_by_status"].values()) == 60
    statuses = {row["status"] for row in candidates_of(finished)}
    assert {"ok", "unsafe", "duplicate_url"} <= statuses
    assert not statuses & {"pending", "content_changed"}


def test_published_row_that_its_metadata_rules_out_is_never_fetched(
    finished: Path, web: toys.SmallWeb
) -> None:
    (row,) = [row for row in candidates_of(finished) if row["url"].endswith("/red-1.jpg")]
    assert row["status"] == "unsafe"
    assert web.hits["/red-1.jpg"] == 0


def test_published_vectors_end_up_with_the_offers_and_in_no_other_store(finished: Path) -> None:
    names = {
        name
        for path in finished.rglob("*.parquet")
        if path.parent.name != "offers"
        for name in pq.ParquetFile(path).schema_arrow.names
    }
    assert not names & {"embedding", "expected", "expected_cosine"}
    assert not (finished / "embeddings").exists()


def test_published_finished_build_is_not_done_again_and_knows_its_source(
    finished: Path, vectors: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    hits = web.hits.total()
    assert verbs.curate(config_of(vectors, finished), SILENT)["skipped"]
    assert verbs.embed(config_of(vectors, finished), SILENT)["skipped"]
    assert web.hits.total() == hits
    with pytest.raises(ConfigError, match=r"vectors\.source was"):
        verbs.build(config_of(OWN, finished), SILENT)
    with pytest.raises(ConfigError, match=r"vectors\.unchanged_cosine was 0\.8, is 0\.5"):
        verbs.build(config_of(vectors, finished, "vectors.unchanged_cosine=0.5"), SILENT)
    result = train.train(config_of(vectors, finished, "experts.enabled=false"), SILENT)
    assert result["images"] == 15, "the verbs after it want no 'embed'"


def test_published_proof_is_kept_and_a_build_that_goes_on_does_not_ask_again(
    finished: Path, vectors: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    proof = read_json(finished / "proof.json")
    assert proof["tried"] == 20 == sum(proof["by_status"].values())
    assert proof["compared"] == proof["by_status"]["ok"] >= 10
    assert 0.99 < proof["median_cosine"] <= 1.001
    (tmp_path / "proof.json").write_text((finished / "proof.json").read_text())
    web.hits.clear()
    verbs.build(config_of(vectors, tmp_path), SILENT)
    assert max(web.hits.values()) == 1, "only judged, each once"


def test_published_vectors_of_another_model_are_refused_before_more_is_spent(
    vectors: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    turned = tmp_path / "turned"
    store = PublishedStore(vectors, CONFIG)
    _, urls, good = store.take(np.arange(store.count))
    wrong = good.T[np.random.default_rng(0).permutation(good.shape[1])].T
    wrong = np.ascontiguousarray(wrong, np.float16)
    write_folder(turned, wrong, rows=[{"url": url} for url in urls])
    web.hits.clear()
    out = tmp_path / "run"
    with pytest.raises(
        InputError, match=r"median cosine of 0?-?\d\.\d+.*at least vectors\.proof_c"
    ):
        verbs.build(config_of(turned, out), SILENT)
    assert web.hits.total() <= 20
    assert not (out / "images").exists()
    web.hits.clear()
    with pytest.raises(InputError, match=r"Set embed\.model and embed\.weights"):
        verbs.build(config_of(turned, out), SILENT)
    assert web.hits.total() == 0, "the proof is not repeated"


def test_published_proof_without_a_network_says_so(
    vectors: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    config = config_of(vectors, tmp_path, "fetch.allow_loopback=false")
    with pytest.raises(
        InputError, match=r"only 0 images of 20 candidates .* \(blocked_address 20\)"
    ):
        verbs.build(config, SILENT)


def test_published_width_of_another_model_is_refused_before_the_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vectors 8 wide; .*'tests.toys:embedder' makes them 108"):
        verbs.build(config_of(OWN, tmp_path), SILENT)


def test_published_image_that_changed_since_is_told_and_replaced(
    vectors: Path, finished: Path, tmp_path: Path
) -> None:
    best = [row for row in candidates_of(finished)
            if row["category"] == "green" and row["status"] == "ok"][:2]  # fmt: skip
    with toys.SmallWeb() as other:
        toys.fill(other, toys.COLORS, each=12)
        moved = publish(other, tmp_path)
        for row in best:  # a placeholder where the picture was
            path = "/" + row["url"].rpartition("/")[2]
            other.files[path] = toys.jpeg(np.full((48, 48, 3), 128, np.uint8))
        out = tmp_path / "run"
        verbs.build(config_of(moved, out), SILENT)
        changed = [row for row in candidates_of(out) if row["status"] == "content_changed"]
        names = {row["url"].rpartition("/")[2] for row in changed}
        assert names == {row["url"].rpartition("/")[2] for row in best}
        assert read_json(out / "funnels.json")["by_category"]["green"]["ok"] == 5
        stored = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
        body = other.files["/" + best[0]["url"].rpartition("/")[2]]
        assert not [data for data in stored if body[-60:] in data]


def test_published_build_cut_off_goes_on_and_ends_with_equal_candidates(
    vectors: Path, finished: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    config = config_of(vectors, tmp_path, "run.wave_rows=4")
    with pytest.raises(KeyboardInterrupt):
        verbs.build(config, StopAfter(8))
    judged = {path: path.stat().st_mtime_ns for path in tmp_path.glob("images/commit-*.json")}
    assert judged
    assert not (tmp_path / "archive").exists()
    verbs.build(config, SILENT)
    assert {path: path.stat().st_mtime_ns for path in judged} == judged
    assert (tmp_path / "candidates.parquet").read_bytes() == (
        finished / "candidates.parquet"
    ).read_bytes()


def test_published_vectors_on_s3_build_the_same_archives(
    server: Proxy, vectors: Path, finished: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    folder = upload(vectors, S3Path(BUCKET) / "toy")
    verbs.build(config_of(folder, tmp_path), SILENT)
    assert (tmp_path / "candidates.parquet").read_bytes() == (
        finished / "candidates.parquet"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_published_vectors_on_ray_build_the_same_archives(
    vectors: Path, finished: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    two = ("retrieve.actors=[2,2]", "embed.actors=[2,2]", "fetch.actors=[2,2]", "run.wave_rows=4")
    config = config_of(vectors, tmp_path, *two)
    with executor_of(config) as executor:
        verbs.build(config, SILENT, executor)
    for name in ("candidates.parquet", "proof.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_published_wrong_model_may_be_corrected_in_the_same_folder(
    vectors: Path, finished: Path, web: toys.SmallWeb, tmp_path: Path
) -> None:
    strict = config_of(vectors, tmp_path, "vectors.proof_cosine=1.0", 'embed.weights="x"')
    with pytest.raises(InputError, match=r"Set embed\.model"):
        verbs.build(strict, SILENT)
    verbs.build(config_of(vectors, tmp_path), SILENT)
    assert (tmp_path / "candidates.parquet").read_bytes() == (
        finished / "candidates.parquet"
    ).read_bytes()


def test_published_vectors_are_searched_without_what_their_metadata_rules_out(
    vectors: Path, finished: Path, web: toys.SmallWeb
) -> None:
    found = search(config_of(vectors, finished), "red", 500, SILENT)
    urls = [hit["url"].rpartition("/")[2] for hit in found["hits"]]
    assert found["vectors"] == len(urls) > 40
    assert all(url.startswith("red") for url in urls[:10])
    assert "red-1.jpg" not in urls


def test_plan_of_published_vectors_tells_what_would_run(vectors: Path, tmp_path: Path) -> None:
    planned = plan_of(config_of(vectors, tmp_path, "experts.enabled=false"))
    names = [(stage["verb"], stage["name"]) for stage in planned["stages"]]
    assert names == [
        ("build", "retrieve"), ("build", "metadata"), ("build", "proof"), ("build", "fetch"),
        ("build", "embed"), ("build", "faces"), ("build", "saliency"), ("build", "bilateral"),
        ("train", "train"),
    ]  # fmt: skip
    assert planned["images"]["vectors"] == PublishedStore(vectors, CONFIG).count
    assert any("embed is skipped" in note for note in planned["notes"])
    assert not any("metadata.source '" in note for note in planned["notes"])


def test_inspect_of_published_vectors_tells_their_form(finished: Path) -> None:
    found = inspect_path(OWN)
    assert (found["kind"], found["files"], found["vectors"]) == ("published vectors", 2, 10)
    assert (found["width"], found["dtype"], found["bytes_of_vectors"]) == (8, "<f2", 160)
    run = inspect_path(finished)
    assert run["proof"]["compared"] >= 10
    assert json.dumps(run)


def test_embed_stage_compares_only_rows_that_expect_something(web: toys.SmallWeb) -> None:
    stage = Embed(Config.of({"run": {"out": "x"}, "embed": {"model": "tests.toys:embedder"}}).embed)
    bodies = [web.files["/red-0.jpg"], web.files["/blue-0.jpg"], b"no image"]
    table = pa.table({"image": bodies, "status": ["ok"] * 3})
    plain = stage(table)
    assert plain["status"].to_pylist()[:2] == ["ok", "ok"]
    red = np.array(plain["embedding"][0].as_py(), np.float16)
    columns = {"expected": pa.array([red] * 3, pa.list_(pa.float16())),
               "expected_cosine": pa.array([0.9] * 3, pa.float32())}  # fmt: skip
    for name, column in columns.items():
        table = table.append_column(name, column)
    compared = stage(table)
    assert compared["status"].to_pylist() == ["ok", "content_changed", plain["status"][2].as_py()]
    assert compared["embedding"][1].as_py() is None
    assert compared["image"].null_count == 2
