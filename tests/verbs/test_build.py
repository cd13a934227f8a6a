"""The plain loop end to end on a small real web: adds up, resumes, repeats, refuses."""

from __future__ import annotations

import json
import signal
import time
from itertools import chain
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from namedmask.archive.store import Archive
from namedmask.config.run_file import Config, to_toml
from namedmask.errors import ConfigError, InputError, SchemaError, TooManyFailuresError
from namedmask.run import layout, ledger
from namedmask.run.progress import SilentProgress
from namedmask.run.stores import EmbeddingStore
from namedmask.storage import files as file_store
from namedmask.verbs import build as verbs
from namedmask.verbs import evaluate, refine, train
from tests import toys
from tests.road import SIZE, StopAfter, config_of, digests, judged_on_disks, read_json

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def finished(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated run folder; tests read it and must leave it as it is."""
    out = tmp_path_factory.mktemp("finished")
    verbs.curate(config_of(source, out), SILENT)
    return out


def test_verbs_build_from_a_flat_index_ends_with_the_archive_of_a_scan(
    finished: Path, source: str, tmp_path: Path
) -> None:
    faiss = pytest.importorskip(
        "faiss", reason="faiss is not installed: its backend needs an extra"
    )
    out = tmp_path / "run"
    verbs.embed(config_of(source, out), SILENT)
    with ledger.open_run(out) as opened:
        vectors = np.concatenate(list(EmbeddingStore(opened).chunks()))
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "flat.index"))
    keys = ("retrieve.backend=faiss", f"retrieve.index={tmp_path / 'flat.index'}")
    verbs.build(config_of(source, out, *keys), SILENT)
    assert digests(out)["archive"] == digests(finished)["archive"]


def test_verbs_curate_counts_of_both_funnels_add_up(finished: Path, web: toys.SmallWeb) -> None:
    funnels = read_json(finished / "funnels.json")
    assert funnels["rows_in"] == len(web.rows)
    assert sum(funnels["rows_by_status"].values()) == len(web.rows)
    for status, count in [
        ("unsafe", 1),
        ("duplicate_url", 1),
        ("not_an_image", 1),
        ("http_404", 9),
    ]:
        assert funnels["rows_by_status"][status] == count
    assert funnels["candidates_in"] == 3 * 40
    assert sum(funnels["candidates_by_status"].values()) == 3 * 40
    for counts in funnels["by_category"].values():
        assert sum(counts.values()) == 40
        assert counts["ok"] == SIZE
    assert "pending" not in funnels["candidates_by_status"]


def test_verbs_archive_holds_the_best_ranked_that_pass(finished: Path, web: toys.SmallWeb) -> None:
    archive = Archive.open(finished / "archive", verify=True)
    candidates = pq.read_table(finished / "candidates.parquet").to_pylist()
    assert archive.names == tuple(toys.COLORS)
    for word in toys.COLORS:
        entries = archive.entries(word)
        names = [url.rpartition("/")[2] for url in entries["url"].to_pylist()]
        assert all(name.startswith(f"{word}-") and "face" not in name for name in names)
        numbers = [name.removesuffix(".jpg").rpartition("-")[2] for name in names]
        assert len(set(numbers)) == SIZE, "a picture and its copy are both there"
        mine = [row for row in candidates if row["category"] == word]
        kept = [row["rank"] for row in mine if row["status"] == "ok"]
        assert kept == entries["rank"].to_pylist() == sorted(kept)
        above = {row["status"] for row in mine if row["rank"] < kept[-1]}
        assert above <= {"ok", "has_face", "near_duplicate"}
        for row in mine:
            if row["status"] == "near_duplicate":
                original = next(one for one in mine if one["sample_id"] == row["duplicate_of"])
                assert original["rank"] < row["rank"]


def test_verbs_archive_keeps_bytes_as_served_and_a_mask_on_the_disk(
    finished: Path, web: toys.SmallWeb
) -> None:
    archive = Archive.open(finished / "archive")
    for row in archive.entries("green").to_pylist():
        assert row["image"] == web.files[row["url"].removeprefix(web.url)]
    samples = archive.samples(refined=False)
    assert len(samples) == 3 * SIZE
    for index in range(len(samples)):
        image, label = samples[index]
        color = image[label > 0].mean(0)
        assert np.abs(color - list(toys.COLORS.values())[label.max() - 1]).max() < 40
        assert set(np.unique(label)) == {0, index // SIZE + 1}


def test_verbs_rejected_faces_and_unsafe_pixels_are_in_no_file(
    finished: Path, web: toys.SmallWeb
) -> None:
    stored = [path.read_bytes() for path in finished.rglob("*") if path.is_file()]
    bodies = {name: body for name, body in web.files.items() if "face" in name or "unsafe" in name}
    assert len(bodies) > 9
    for name, body in bodies.items():
        assert not [data for data in stored if body[-60:] in data], f"{name} was kept"
    kept = web.files["/red-1.jpg"]
    assert any(kept[-60:] in data for data in stored), "the check finds what is there"


def test_verbs_finished_run_again_does_nothing(
    finished: Path, source: str, web: toys.SmallWeb
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    hits = web.hits.total()
    summary = verbs.curate(config_of(source, finished), SILENT)
    assert summary["skipped"] is True
    assert summary["rows_in"] == len(web.rows)
    assert summary["images_kept"] == 3 * SIZE
    assert web.hits.total() == hits
    lock = finished / layout.LOCK
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert {p: t for p, t in after.items() if p != lock} == {
        p: t for p, t in before.items() if p != lock
    }


def test_verbs_saved_run_file_is_the_config(finished: Path, source: str) -> None:
    assert Config.load(finished / "run.toml") == config_of(source, finished)


def test_verbs_odd_text_in_a_config_survives_the_saved_run_file(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ back, tab\t, ünïcode 漢, 😀 and \x7f'
    config = Config.of({"run": {"out": "x"}, "fetch": {"user_agent": odd}})
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    assert Config.load(tmp_path / "run.toml") == config


def test_verbs_another_config_in_the_same_folder_is_refused(finished: Path, source: str) -> None:
    with pytest.raises(ConfigError, match=r"'embed'.*fetch\.retries was 0, is 2"):
        verbs.curate(config_of(source, finished, "fetch.retries=2"), SILENT)
    with pytest.raises(ConfigError, match=r"'build'.*retrieve\.archive_size was 8, is 5"):
        verbs.curate(config_of(source, finished, "retrieve.archive_size=5"), SILENT)
    with pytest.raises(ConfigError, match=r"'build'.*categories\.templates was"):
        verbs.build(config_of(source, finished, 'categories.templates=["{}"]'), SILENT)
    with pytest.raises(ConfigError, match=r"'images'.*faces\.min_score was 0\.5, is 0\.3"):
        verbs.build(config_of(source, finished, "faces.min_score=0.3"), SILENT)
    faster = config_of(source, finished, "fetch.in_flight=64", "run.threads=2")
    assert verbs.curate(faster, SILENT)["skipped"]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Fresh processes that need not import torch again for each test."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["namedmask.verbs.build", "tests.toys"])
    return context


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cut", ["embeddings/commit-00002.json", "images/commit-00000.json"])
def test_verbs_killed_and_run_again_ends_with_equal_rows(
    cut: str,
    source: str,
    web: toys.SmallWeb,
    finished: Path,
    processes: ForkServerContext,
    tmp_path: Path,
) -> None:
    config = config_of(source, tmp_path)
    web.delay_s = 0.1
    try:
        process = processes.Process(target=verbs.curate, args=(config, SILENT))
        process.start()
        while not (tmp_path / cut).exists():
            assert process.is_alive(), "ended before it could be killed"
            time.sleep(0.01)
        process.kill()
        process.join()
    finally:
        web.delay_s = 0.0
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "archive" / "manifest.json").exists()
    committed = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/commit-*.json")}
    verbs.curate(config, SILENT)
    assert digests(tmp_path) == digests(finished)
    again = {path: path.stat().st_mtime_ns for path in committed}
    assert again == committed, "committed work was done again"
    assert not list(tmp_path.rglob("*.part"))


def test_verbs_results_do_not_depend_on_wave_or_batch_size(
    source: str, finished: Path, tmp_path: Path
) -> None:
    sizes = ("run.wave_rows=7", "embed.batch_size=3", "saliency.batch_size=1", "fetch.in_flight=1")
    verbs.curate(config_of(source, tmp_path, *sizes), SILENT)
    assert digests(tmp_path) == digests(finished)


def test_verbs_build_before_embed_says_what_to_run(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run 'namedmask embed'"):
        verbs.build(config_of(source, tmp_path), SILENT)


def test_verbs_changed_metadata_is_refused_on_resume(
    source: str, web: toys.SmallWeb, tmp_path: Path
) -> None:
    path = tmp_path / "metadata.parquet"
    table = pq.read_table(source)
    pq.write_table(table.slice(0, 40), path)
    config = config_of(str(path), tmp_path / "run")
    embed_two_waves(config)
    pq.write_table(table.slice(1, 40), path)
    with pytest.raises(InputError, match="different rows for wave 00000"):
        verbs.embed(config, SILENT)
    pq.write_table(table.slice(0, 16), path)
    with pytest.raises(InputError, match="different rows for wave 00001"):
        verbs.embed(config, SILENT)
    pq.write_table(table.slice(0, 40), path)
    assert verbs.embed(config, SILENT)["rows_in"] == 40


def embed_two_waves(config: Config) -> None:
    with pytest.raises(KeyboardInterrupt):
        verbs.embed(config, StopAfter(2))
    assert len(list(config.run.out.glob("embeddings/commit-*.json"))) == 2


def test_verbs_too_many_failures_end_the_run_and_lose_nothing(
    source: str, web: toys.SmallWeb, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(TooManyFailuresError, match=r"run\.max_failure_share = 0\.05.*http_404"):
        verbs.curate(config_of(source, tmp_path, "run.max_failure_share=0.05"), SILENT)
    verbs.curate(config_of(source, tmp_path), SILENT)
    assert digests(tmp_path) == digests(finished)


def test_verbs_category_without_an_image_is_told_with_its_counts_and_can_be_dropped(
    tmp_path: Path,
) -> None:
    with toys.SmallWeb() as web:
        toys.fill(web, {"red": toys.COLORS["red"]}, each=6)
        for number in range(5):
            face = toys.disk(toys.COLORS["blue"], number, face=True)
            web.add(f"blue-{number}.jpg", toys.jpeg(face))
        source = str(web.write_metadata(tmp_path / "metadata.parquet"))
        few = ("retrieve.candidates=5", "retrieve.archive_size=4")
        both = config_of(source, tmp_path / "run", 'categories.names=["red", "blue"]', *few)
        with pytest.raises(InputError, match=r"no image is left for 'blue' \(has_face 5\)"):
            verbs.curate(both, SILENT)
        assert not (tmp_path / "run" / "archive").exists()
        assert read_json(tmp_path / "run/funnels.json")["by_category"]["blue"] == {"has_face": 5}
        hits = web.hits.total()
        only_red = config_of(source, tmp_path / "run", 'categories.names=["red"]', *few)
        summary = verbs.curate(only_red, SILENT)
        assert web.hits.total() == hits, "an image was fetched again"
    assert summary["images_kept"] == summary["candidates_by_status"]["ok"] > 0


def test_verbs_hash_after_download_drops_copies_that_vectors_let_through(
    source: str, web: toys.SmallWeb, tmp_path: Path
) -> None:
    loose = ("retrieve.near_duplicate_cosine=1.0", "retrieve.archive_size=12")
    verbs.curate(config_of(source, tmp_path / "off", *loose), SILENT)
    on = config_of(source, tmp_path / "on", *loose, "retrieve.hash_distance=3")
    verbs.curate(on, SILENT)

    def copies(run: Path) -> int:
        archive = Archive.open(run / "archive")
        urls = [url for name in archive.names for url in archive.entries(name)["url"].to_pylist()]
        return len(urls) - len({url.replace("-copy", "") for url in urls})

    assert copies(tmp_path / "off") > 0
    rows = pq.read_table(tmp_path / "on" / "candidates.parquet").to_pylist()
    named = {row["sample_id"]: row["url"].rpartition("/")[2] for row in rows}
    pairs = [(named[row["sample_id"]], named[row["duplicate_of"]]) for row in rows
             if row["status"] == "near_duplicate"]  # fmt: skip
    assert pairs
    assert all(one.replace("-copy", "") == other.replace("-copy", "") for one, other in pairs)
    assert copies(tmp_path / "on") == 0
    funnels = read_json(tmp_path / "on" / "funnels.json")
    assert funnels["candidates_in"] == sum(funnels["candidates_by_status"].values())
    before = (tmp_path / "on" / "candidates.parquet").read_bytes()
    (tmp_path / "on" / "archive" / "manifest.json").unlink()
    unfinish(tmp_path / "on", "build")
    hits = web.hits.total()
    verbs.build(on, SILENT)
    assert web.hits.total() == hits, "the hashes are in the store"
    assert (tmp_path / "on" / "candidates.parquet").read_bytes() == before


def unfinish(run: Path, verb: str) -> None:
    """Let a verb look as if the run had ended just before it was done."""
    record = read_json(run / "run.json")
    record["verbs"][verb]["finished"] = False
    (run / "run.json").write_text(json.dumps(record))


def test_verbs_heads_on_vectors_rule_candidates_out_unseen(
    source: str, web: toys.SmallWeb, finished: Path, tmp_path: Path
) -> None:
    rows = pa.concat_tables(
        [file_store.read_parquet(path) for path in (finished / "embeddings").glob("wave*")]
    )
    vectors = dict(zip(rows["url"].to_pylist(), rows["embedding"].to_pylist(), strict=True))
    unsafe, violent = (
        np.array(vectors[f"{web.url}/{n}-4.jpg"], np.float32) for n in ("red", "blue")
    )
    mean = np.mean([vectors[f"{web.url}/blue-{n}.jpg"] for n in range(12)], axis=0)
    # the head is sure of whatever has a cosine above 0.9999 with the red one
    np.savez(tmp_path / "head.npz", 1e5 * unsafe[:, None], np.array([-99990.0]))
    np.save(tmp_path / "prompts.npy", np.stack([mean / np.linalg.norm(mean), violent]))
    heads = (
        f"retrieve.safety_head={tmp_path}/head.npz",
        f"retrieve.violence_prompts={tmp_path}/prompts.npy",
    )
    run = tmp_path / "run"
    verbs.curate(config_of(source, run, *heads), SILENT)
    candidates = pq.read_table(run / "candidates.parquet").to_pylist()
    statuses = {row["url"].rpartition("/")[2]: row["status"] for row in candidates}
    assert statuses["red-4.jpg"] == "unsafe"
    assert statuses["blue-4.jpg"] == "violent"
    assert list(statuses.values()).count("unsafe") == 1
    tried = [
        file_store.read_parquet(path, ["url"])["url"].to_pylist()
        for path in (run / "images").glob("*.parquet")
    ]
    names = {url.rpartition("/")[2] for url in chain(*tried)}
    assert names
    assert not names & {"red-4.jpg", "blue-4.jpg"}, "it was fetched"
    funnels = read_json(run / "funnels.json")
    assert funnels["candidates_in"] == sum(funnels["candidates_by_status"].values())


def test_verbs_short_archive_is_recorded_with_its_reasons(
    source: str, tmp_path: Path, web: toys.SmallWeb
) -> None:
    config = config_of(source, tmp_path, "retrieve.archive_size=30", "retrieve.candidates=20")
    summary = verbs.curate(config, SILENT)
    assert 0 < summary["archive_fill"] < 1
    assert set(summary["short"]) == set(toys.COLORS)
    assert summary["short"]["red"]["has_face"] >= 1
    manifest = read_json(tmp_path / "archive/manifest.json")
    for category in manifest["categories"]:
        assert category["wanted"] == 30
        assert category["count"] == summary["short"][category["name"]]["ok"]


def test_verbs_damaged_vectors_are_told_by_file_and_redone_alone(
    source: str, finished: Path, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path)
    verbs.embed(config, SILENT)
    path = tmp_path / "embeddings" / "wave-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"wave-00001\.parquet cannot be read.*record"):
        verbs.build(config, SILENT)
    path.unlink()
    path.with_name("commit-00001.json").unlink()
    others = {one: one.stat().st_mtime_ns for one in path.parent.glob("wave-*.parquet")}
    assert "skipped" not in verbs.curate(config, SILENT)
    assert {one: one.stat().st_mtime_ns for one in others} == others
    assert digests(tmp_path) == digests(finished)


def test_verbs_vectors_of_another_model_are_refused(source: str, tmp_path: Path) -> None:
    config = config_of(source, tmp_path)
    verbs.embed(config, SILENT)
    path = tmp_path / "embeddings" / "wave-00001.parquet"
    table = file_store.read_parquet(path)
    short = [vector[:-1] for vector in table["embedding"].to_pylist()]
    place = table.schema.get_field_index("embedding")
    field = table.schema.field("embedding")
    with ledger.open_run(tmp_path) as run:
        record = run.commits("embeddings")["00001"]
        files = {
            f"embeddings/{path.name}": table.set_column(place, field, pa.array(short, field.type)),
            "embeddings/tombstones-00001.parquet": file_store.read_parquet(
                path.with_name("tombstones-00001.parquet")
            ),
        }
        path.with_name("commit-00001.json").unlink()
        ledger.write_unit(
            run.folder, "embeddings", "00001", files, rows=record.rows, counts=record.counts,
            input_digest=record.input_digest,
        )  # fmt: skip
    with pytest.raises((InputError, SchemaError), match="107"):
        verbs.build(config, SILENT)


def test_verbs_bad_parts_are_found_before_the_folder_is_bound(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="embedder 'thumbnale'"):
        verbs.curate(config_of(source, tmp_path, "embed.model=thumbnale"), SILENT)
    with pytest.raises(ConfigError, match="saliency detector 'bright'"):
        verbs.curate(config_of(source, tmp_path, "saliency.detector=bright"), SILENT)
    assert "skipped" not in verbs.curate(config_of(source, tmp_path), SILENT)


def test_verbs_build_of_people_with_the_face_filter_warns(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    people = 'categories.names=["red person", "green"]'
    verbs.curate(config_of(source, tmp_path, people), SILENT)
    (warning,) = caplog.messages
    assert "these categories are people: red person." in warning


def test_verbs_evaluate_without_a_benchmark_names_those_there_are(
    source: str, tmp_path: Path
) -> None:
    config = config_of(source, tmp_path, "experts.enabled=false", "train.iterations=1")
    verbs.curate(config, SILENT)
    train.train(config, SILENT)
    with pytest.raises(ConfigError, match="voc2012"):
        evaluate.evaluate(config, SILENT)


def test_verbs_refine_then_train_use_every_archive_and_repeat_for_free(
    source: str, tmp_path: Path
) -> None:
    from namedmask.segmenter.checkpoint import load_checkpoint

    config = config_of(source, tmp_path)
    verbs.curate(config, SILENT)
    with pytest.raises(InputError, match="no finished 'refine'"):
        train.train(config, SILENT)
    refined = refine.refine(config, SILENT)
    assert sum(refined["masks"].values()) == 3 * SIZE
    assert Archive.open(tmp_path / "archive").entries("red")["refined_mask"].null_count == 0
    trained = train.train(config, SILENT)
    assert (trained["images"], trained["labels"], trained["steps"]) == (3 * SIZE, 4, 4)
    _, names = load_checkpoint(tmp_path / "segmenter" / "checkpoint.pt")
    assert names == tuple(toys.COLORS)
    assert not (tmp_path / "segmenter" / "training.pt").exists()
    timings = read_json(tmp_path / "timings.json")
    assert set(timings) == {
        "fetch", "embed", "retrieve", "faces", "saliency", "bilateral", "archive", "experts",
        "refine", "train",
    }  # fmt: skip
    judged = evaluate.evaluate(judged_on_disks(config, tmp_path / "disks"), SILENT)
    assert 0 <= judged["miou"] <= 1
    evaluation = read_json(tmp_path / "evaluation.json")
    assert set(evaluation["iou"]) == {"background", *toys.COLORS}
    assert (tmp_path / "evaluation" / evaluation["scenes"][0]["prediction"]).exists()
    assert refine.refine(config, SILENT)["skipped"]
    assert train.train(config, SILENT)["loss"] == trained["loss"]
    again = judged_on_disks(config, tmp_path / "disks")
    assert evaluate.evaluate(again, SILENT) == {"skipped": True} | {
        key: value for key, value in judged.items() if key not in ("seconds", "peak_rss_mb")
    }
    changed = config_of(source, tmp_path, "experts.iterations=3")
    with pytest.raises(ConfigError, match=r"experts\.iterations was 2, is 3"):
        train.train(changed, SILENT)


def test_verbs_refine_cut_off_goes_on_with_the_next_category(source: str, tmp_path: Path) -> None:
    config = config_of(source, tmp_path)
    verbs.curate(config, SILENT)
    with pytest.raises(KeyboardInterrupt):
        refine.refine(config, StopAfter(3))
    first = tmp_path / "experts" / "00001-red.pt"
    made = first.stat().st_mtime_ns
    assert [path.name for path in (tmp_path / "refined").glob("*.parquet")] == ["00001-red.parquet"]
    refine.refine(config, SILENT)
    assert first.stat().st_mtime_ns == made
    assert len(list((tmp_path / "experts").glob("*.pt"))) == 3


def test_verbs_shared_expert_is_trained_once_and_every_expert_starts_there(
    source: str, tmp_path: Path
) -> None:
    shared = ("experts.shared_iterations=2", "experts.snap=true")
    whole, cut = (config_of(source, tmp_path / name, *shared) for name in ("whole", "cut"))
    for config in (whole, cut):
        verbs.curate(config, SILENT)
    refine.refine(whole, SILENT)
    with pytest.raises(KeyboardInterrupt):
        refine.refine(cut, StopAfter(5))  # 2 shared steps, 2 of the first category, 1 of the next
    start = tmp_path / "cut" / "experts" / "shared.pt"
    made = start.stat().st_mtime_ns
    refine.refine(cut, SILENT)
    assert start.stat().st_mtime_ns == made
    masks = [
        [Archive.open(tmp_path / name / "archive").entries(word)["refined_mask"] for name in
         ("whole", "cut")]
        for word in toys.COLORS
    ]  # fmt: skip
    assert all(first.equals(second) for first, second in masks)
    assert "shared expert" in read_json(tmp_path / "whole" / "timings.json")


def test_verbs_experts_switched_off_train_on_the_pseudo_masks(source: str, tmp_path: Path) -> None:
    config = config_of(source, tmp_path, "experts.enabled=false")
    verbs.curate(config, SILENT)
    assert refine.refine(config, SILENT)["skipped"]
    assert train.train(config, SILENT)["images"] == 3 * SIZE
