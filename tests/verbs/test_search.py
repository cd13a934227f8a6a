"""Search: its index is made once and again when stale, and finds what a full scan finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import schema
from namedmask.errors import ConfigError, InputError, MissingExtraError
from namedmask.report.search_page import search_page
from namedmask.run.job import config_of_run
from namedmask.run.layout import EMBEDDINGS, MANIFEST, SEARCH_INDEX
from namedmask.run.ledger import Ledger
from namedmask.run.progress import SilentProgress
from namedmask.run.stores import EmbeddingStore
from namedmask.search import index as search_index
from namedmask.search import make
from namedmask.search.index import KINDS, kind_for
from namedmask.storage.files import read_json
from namedmask.verbs.search import search
from tests import rounding
from tests.html_page import Page
from tests.waves import EMBEDDER, add_table, add_wave, search_config

pytestmark = pytest.mark.numerical

pytest.importorskip("faiss", reason="faiss is not installed: searching needs an extra")

QUIET = SilentProgress()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for unit in ("00000", "00001"):
        add_wave(tmp_path / "run", unit, 120)
    return tmp_path / "run"


def full_scan(out: Path, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.concatenate(list(EmbeddingStore(Ledger(out)).chunks()))
    scores = vectors.astype(np.float64) @ query
    rows = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return scores[rows], rows


def test_search_finds_what_a_full_scan_finds_with_urls_and_captions(out: Path) -> None:
    found = search(search_config(out), "something green", 7, QUIET)
    scores, rows = full_scan(out, EMBEDDER.embed_texts(["green"])[0], 7)
    assert [hit["rank"] for hit in found["hits"]] == list(range(7))
    np.testing.assert_allclose(
        [hit["score"] for hit in found["hits"]], scores, atol=2 * rounding.of_dot_product(108)
    )
    units, numbers = np.divmod(rows, 120)
    names = [f"{unit:05d}/{number}" for unit, number in zip(units, numbers, strict=True)]
    assert [hit["url"] for hit in found["hits"]] == [f"http://example.org/{n}.jpg" for n in names]
    assert all("green" in hit["caption"] for hit in found["hits"])
    assert (found["index"], found["vectors"], found["prompts"]) == ("flat", 240, 1)


def test_search_second_time_uses_the_index_that_is_there(out: Path) -> None:
    first = search(search_config(out), "red", 5, QUIET)
    written = (out / SEARCH_INDEX / "index.faiss").stat().st_mtime_ns
    second = search(search_config(out), "red", 5, QUIET)
    assert first["made_because"] == "there was none"
    assert second["made_because"] == ""
    assert second["hits"] == first["hits"]
    assert (out / SEARCH_INDEX / "index.faiss").stat().st_mtime_ns == written


def test_search_index_stores_its_recall_on_captions(out: Path) -> None:
    found = search(search_config(out), "red", 5, QUIET)
    manifest = read_json(out / SEARCH_INDEX / MANIFEST)
    assert manifest["recall_at_50"] == found["recall_at_50"] == 1.0
    assert manifest["measured_on"] == "60 captions"
    assert manifest["rows"] == 240
    assert not [key for key in manifest if "second" in key or "time" in key]


def test_search_without_captions_measures_recall_on_vectors(tmp_path: Path) -> None:
    add_wave(tmp_path, "00000", 60, caption=lambda row: None)
    found = search(search_config(tmp_path), "red", 5, QUIET)
    assert found["measured_on"] == "30 vectors of the store"
    assert found["hits"][0]["caption"] is None


def test_search_after_more_waves_makes_the_index_again(out: Path) -> None:
    search(search_config(out), "blue", 5, QUIET)
    add_wave(out, "00002", 30)
    found = search(search_config(out), "blue", 270, QUIET)
    assert found["made_because"] == "the store has other vectors now"
    assert len(found["hits"]) == 270


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "manifest.json"])
def test_search_with_a_file_gone_or_cut_makes_the_index_again(out: Path, name: str) -> None:
    before = search(search_config(out), "blue", 5, QUIET)
    path = out / SEARCH_INDEX / name
    path.unlink() if name == "manifest.json" else path.write_bytes(path.read_bytes()[:50])
    again = search(search_config(out), "blue", 5, QUIET)
    assert again["made_because"]
    assert again["hits"] == before["hits"]


def test_search_killed_while_the_index_is_made_leaves_no_manifest(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    search(search_config(out), "blue", 5, QUIET)
    add_wave(out, "00002", 30)
    with monkeypatch.context() as patch:
        patch.setattr(make, "_measure", die)
        with pytest.raises(KeyboardInterrupt):
            search(search_config(out), "blue", 5, QUIET)
    assert not (out / SEARCH_INDEX / MANIFEST).exists()
    assert search(search_config(out), "blue", 5, QUIET)["vectors"] == 270


def test_search_of_every_kind_agrees_on_the_best(tmp_path: Path) -> None:
    add_wave(tmp_path, "00000", 1500)
    texts = ("red", "a green thing")
    found = {}
    for kind in KINDS:
        config = search_config(tmp_path, f"search.kind={kind}", "search.recall=1.0")
        answers = [search(config, text, 20, QUIET) for text in texts]
        found[kind] = [[hit["sample_id"] for hit in one["hits"]] for one in answers]
        assert {one["index"] for one in answers} == {kind}
        assert answers[0]["recall_at_50"] >= 0.95
    for answers in found.values():
        for ids, best in zip(answers, found["flat"], strict=True):
            assert ids[0] == best[0]
            assert len(set(ids) & set(best)) >= 19


def test_rows_of_many_waves_come_back_in_the_order_asked_for(out: Path) -> None:
    search(search_config(out), "red", 5, QUIET)
    rows = search_index.Rows(out / SEARCH_INDEX / "rows.arrow")
    vectors = np.concatenate(list(EmbeddingStore(Ledger(out)).chunks()))
    np.testing.assert_array_equal(np.concatenate(list(rows.chunks())), vectors)
    np.testing.assert_array_equal(
        rows.vectors(np.array([0, 119, 120, 239])), vectors[[0, 119, 120, 239]]
    )
    urls = rows.table(np.array([121, 3, 239]))["url"].to_pylist()
    assert [url[19:] for url in urls] == ["00001/1.jpg", "00000/3.jpg", "00001/119.jpg"]


def test_equal_vectors_are_found_in_the_order_of_their_rows(tmp_path: Path) -> None:
    add_wave(tmp_path, "00000", 40)
    add_copy(tmp_path, "00001")
    found = search(search_config(tmp_path), "red", 80, QUIET)
    ids = [hit["sample_id"] for hit in found["hits"]]
    for first, second in zip(ids[::2], ids[1::2], strict=True):
        assert (first[:5], second[:5], first[5:]) == ("00000", "00001", second[5:])


def add_copy(out: Path, unit: str) -> None:
    """Commit the vectors of wave 00000 once more."""
    from namedmask.storage.files import read_parquet

    table = read_parquet(out / EMBEDDINGS / "wave-00000.parquet")
    ids = pa.array([unit + one[5:] for one in table["sample_id"].to_pylist()])
    add_table(out, unit, table.set_column(0, "sample_id", ids))


def test_search_with_templates_uses_those_of_the_run(out: Path) -> None:
    config = search_config(out, 'categories.templates=["a {} thing", "the {}"]')
    assert search(config, "red", 3, QUIET, templates=True)["prompts"] == 2
    assert search(config, "red", 3, QUIET)["prompts"] == 1


@pytest.mark.parametrize(
    ("text", "k", "message"), [("  ", 5, "is empty"), ("red", 0, "at least 1")]
)
def test_search_of_nothing_is_refused(out: Path, text: str, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(search_config(out), text, k, QUIET)


def test_search_without_a_store_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Run 'namedmask embed' first"):
        search(search_config(tmp_path / "new"), "red", 5, QUIET)
    assert not (tmp_path / "new").exists()


def test_search_of_vectors_of_two_lengths_is_refused(out: Path) -> None:
    from namedmask.storage.files import read_parquet

    table = read_parquet(out / EMBEDDINGS / "wave-00000.parquet")
    short = pa.array(
        [one[:50] for one in table["embedding"].to_pylist()], schema.TYPES["embedding"]
    )
    place = table.schema.get_field_index("embedding")
    add_table(out, "00002", table.set_column(place, "embedding", short))
    with pytest.raises(InputError, match="vectors of 108 and of 50 numbers"):
        search(search_config(out), "red", 5, QUIET)


def test_kind_by_size_and_by_name() -> None:
    sizes = (1, 100_000, 100_001, 4_000_001)
    assert [kind_for("auto", size) for size in sizes] == ["flat", "flat", "ivfsq", "ivfpq"]
    assert kind_for("hnsw", 10) == "hnsw"
    with pytest.raises(ConfigError, match="at least 1,000 vectors; the store has 999"):
        kind_for("ivfpq", 999)


def test_kind_that_does_not_exist_is_refused(out: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.kind.*'flat', 'hnsw', 'ivfsq' or 'ivfpq'"):
        search_config(out, "search.kind=annoy")


def test_search_without_faiss_names_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'namedmask\[cpu\]'"):
        search(search_config(out), "red", 5, QUIET)


def test_search_on_cuda_with_the_cpu_build_is_refused(out: Path) -> None:
    import faiss

    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("faiss is the GPU build: no CPU build to be refused")
    with pytest.raises(MissingExtraError, match=r"namedmask\[gpu\]"):
        search(search_config(out, "search.device=cuda"), "red", 5, QUIET)


def test_page_is_self_contained_escaped_and_shows_no_picture(tmp_path: Path) -> None:
    add_wave(tmp_path, "00000", 30, caption=lambda row: "<img src=x onerror=alert(1)>")
    found = search(search_config(tmp_path), "<b>red</b> & more", 5, QUIET)
    found["hits"][0]["url"] = "javascript:alert(1)"
    text = search_page(found)
    read = Page(text)
    assert not {"img", "script", "iframe", "link"} & set(read.tags)
    assert read.addresses == [hit["url"] for hit in found["hits"][1:]]
    assert "<b>red</b> & more" in read.prose
    assert "<img src=x onerror=alert(1)>" in read.prose
    assert "The images have not been fetched and are not shown" in read.prose
    assert "url(" not in text


def test_run_folder_that_was_moved_is_searched_where_it_lies(out: Path, tmp_path: Path) -> None:
    from namedmask.config.run_file import to_toml

    (out / "run.toml").write_text(to_toml(search_config(out)), encoding="utf-8")
    moved = out.rename(tmp_path / "moved")
    config = config_of_run(moved, ["search.kind=hnsw"])
    assert config.run.out == moved
    assert search(config, "red", 3, QUIET)["index"] == "hnsw"
    assert json.loads((moved / SEARCH_INDEX / MANIFEST).read_text())["kind"] == "hnsw"


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.toml is missing"):
        config_of_run(tmp_path)
