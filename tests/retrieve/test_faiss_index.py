"""The faiss backend of retrieval: exact scores of what an index finds, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from namedmask.config import Config, RetrieveConfig
from namedmask.errors import ConfigError, InputError, MissingExtraError
from namedmask.retrieve.faiss_index import index_top_k, read_index, scan_of
from namedmask.retrieve.top_k import exact_top_k, merge_top_k
from namedmask.run.ledger import Ledger
from namedmask.run.stores import EmbeddingStore
from tests import rounding, toys
from tests.waves import add_wave

pytestmark = pytest.mark.numerical

faiss = pytest.importorskip("faiss", reason="faiss is not installed: its backend needs an extra")

QUERIES = toys.ThumbnailEmbedder().embed_texts(list(toys.COLORS)).astype(np.float32)
DIM = QUERIES.shape[1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for unit, count in (("00000", 150), ("00001", 0), ("00002", 90)):
        add_wave(tmp_path / "run", unit, count)
    return tmp_path / "run"


def vectors_in(out: Path) -> np.ndarray:
    return np.concatenate(list(EmbeddingStore(Ledger(out)).chunks()))


def config_of(path: Path | str, **keys: object) -> RetrieveConfig:
    tree = {"backend": "faiss", "index": str(path), "candidates": 40} | keys
    return Config.of({"run": {"out": "unused"}, "retrieve": tree}).retrieve


def saved(index: object, vectors: np.ndarray, folder: Path) -> Path:
    index.train(vectors)  # type: ignore[attr-defined]
    index.add(vectors)  # type: ignore[attr-defined]
    faiss.write_index(index, str(folder / "some.index"))
    return folder / "some.index"


def scanned(out: Path, config: RetrieveConfig, parts: int = 3) -> tuple[np.ndarray, np.ndarray]:
    make, items = scan_of(config, EmbeddingStore(Ledger(out)), QUERIES, parts)
    return merge_top_k(map(make(), items), config.candidates)


@pytest.mark.parametrize("metric", ["METRIC_INNER_PRODUCT", "METRIC_L2"])
@pytest.mark.parametrize("k", [1, 40, 500])
def test_flat_index_gives_the_answer_of_the_exact_backend(
    out: Path, tmp_path: Path, metric: str, k: int
) -> None:
    index = faiss.index_factory(DIM, "Flat", getattr(faiss, metric))
    path = saved(index, vectors_in(out), tmp_path)
    scores, rows = scanned(out, config_of(path, candidates=k))
    exact_scores, exact_rows = scanned(out, config_of("", backend="exact", candidates=k))
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(rows, exact_rows)
    np.testing.assert_allclose(scores, exact_scores, atol=rounding.of_dot_product(DIM))


@pytest.mark.parametrize("recipe", ["HNSW16", "IVF4,Flat", "IVF4,SQ4", "PCA32,IVF4,Flat"])
def test_approximate_index_answers_with_exact_scores_in_order(
    out: Path, tmp_path: Path, recipe: str
) -> None:
    vectors = vectors_in(out)
    path = saved(faiss.index_factory(DIM, recipe, faiss.METRIC_INNER_PRODUCT), vectors, tmp_path)
    nprobe = 4 if "IVF" in recipe else 0
    scores, rows = scanned(out, config_of(path, nprobe=nprobe))
    expected = np.take_along_axis(QUERIES @ vectors.T, rows, axis=1)
    np.testing.assert_allclose(scores, expected, atol=rounding.of_dot_product(DIM))
    assert (np.diff(scores, axis=1) <= 0).all()
    _, exact = exact_top_k([vectors], QUERIES, 40)
    shared = np.mean([len(set(a) & set(b)) / 40 for a, b in zip(rows, exact, strict=True)])
    assert shared > 0.8


def test_equal_vectors_come_in_row_order_whatever_the_index_says() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 8)).astype(np.float32)
    vectors[[3, 11, 29]] = vectors[20]
    index = faiss.IndexFlatIP(8)
    index.add(vectors[:, ::1])
    chunks = np.split(vectors.astype(np.float16).astype(np.float32), [5, 5, 21])
    scores, rows = index_top_k(index, chunks, vectors[20:21], 30)
    assert rows[0, :4].tolist() == [3, 11, 20, 29]
    assert len(set(scores[0, :4].tolist())) == 1
    assert sorted(rows[0].tolist()) == list(range(30))


def test_half_precision_chunks_are_scored_in_single_precision() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((50, 16)).astype(np.float16)
    index = faiss.IndexFlatIP(16)
    index.add(vectors.astype(np.float32))
    queries = rng.standard_normal((4, 16)).astype(np.float32)
    scores, rows = index_top_k(index, [vectors], queries, 9)
    exact_scores, exact_rows = exact_top_k([vectors], queries, 9)
    np.testing.assert_array_equal(rows, exact_rows)
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)


@pytest.mark.parametrize(
    ("keep", "width", "message"),
    [(239, DIM, "has 239 vectors, the store 240"), (240, 64, "vectors of 64 numbers")],
)
def test_index_of_other_vectors_is_refused_before_the_search(
    out: Path, tmp_path: Path, keep: int, width: int, message: str
) -> None:
    path = saved(faiss.IndexFlatIP(width), vectors_in(out)[:keep, :width].copy(), tmp_path)
    with pytest.raises(InputError, match=message):
        scanned(out, config_of(path))


def test_index_with_another_metric_is_refused(out: Path, tmp_path: Path) -> None:
    path = saved(faiss.index_factory(DIM, "Flat", faiss.METRIC_L1), vectors_in(out), tmp_path)
    with pytest.raises(InputError, match="expected inner product or L2"):
        scanned(out, config_of(path))


def test_index_with_ids_of_its_own_is_refused(out: Path, tmp_path: Path) -> None:
    index = faiss.IndexIDMap(faiss.IndexFlatIP(DIM))
    index.add_with_ids(vectors_in(out), np.arange(240) + 7)
    faiss.write_index(index, str(tmp_path / "ids.index"))
    with pytest.raises(InputError, match="made with ids of its own"):
        scanned(out, config_of(tmp_path / "ids.index", candidates=240))


def test_index_that_finds_too_few_says_what_to_raise(out: Path, tmp_path: Path) -> None:
    index = faiss.index_factory(DIM, "IVF8,Flat", faiss.METRIC_INNER_PRODUCT)
    path = saved(index, vectors_in(out), tmp_path)
    with pytest.raises(InputError, match=r"expected 200\. Raise retrieve\.nprobe"):
        scanned(out, config_of(path, candidates=200))


def test_nprobe_for_an_index_without_lists_is_refused(out: Path, tmp_path: Path) -> None:
    path = saved(faiss.IndexFlatIP(DIM), vectors_in(out), tmp_path)
    with pytest.raises(InputError, match=r"retrieve\.nprobe is 3, but .* no IVF index"):
        scanned(out, config_of(path, nprobe=3))


def test_index_missing_or_no_index_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no index")
    for name, message in (("nowhere", "does not exist"), ("text", "cannot be read as a FAISS")):
        with pytest.raises(InputError, match=message):
            scanned(out, config_of(tmp_path / name))
    with pytest.raises(ConfigError, match=r"retrieve\.index names no file"):
        scanned(out, config_of(""))


def test_faiss_backend_without_faiss_names_the_extra(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'namedmask\[cpu\]'"):
        scanned(out, config_of("some.index"))


def test_read_index_leaves_inverted_lists_on_the_disk(out: Path, tmp_path: Path) -> None:
    path = saved(faiss.index_factory(DIM, "IVF4,Flat"), vectors_in(out), tmp_path)
    index = read_index(path)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
