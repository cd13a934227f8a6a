"""Exact top-k against a full sort; archives against a slow greedy pick over all checked."""

from __future__ import annotations

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.errors import InputError
from namedmask.retrieve import scan as top_k
from namedmask.retrieve.pick import near_neighbors, next_to_try, pick_archive
from namedmask.retrieve.top_k import exact_top_k


def full_sort(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.array(
        [sorted(range(len(vectors)), key=lambda row: (-s[row], row)) for s in scores], int
    )
    rows = rows.reshape(len(queries), len(vectors))[:, :k]
    return np.take_along_axis(scores, rows, axis=1).astype(np.float32), rows


def split(vectors: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(vectors, sorted(cut % (len(vectors) + 1) for cut in cuts))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 70),
    categories=st.integers(1, 6),
    k=st.integers(1, 80),
    distinct=st.integers(1, 9),
    half=st.booleans(),
    cuts=st.lists(st.integers(0, 99), max_size=6),
)
def test_exact_top_k_equals_a_full_sort_with_many_ties(
    seed: int, rows: int, categories: int, k: int, distinct: int, half: bool, cuts: list[int]
) -> None:
    # small whole numbers: products are exact in float32, so ties are ties on both sides
    rng = np.random.default_rng(seed)
    pool = rng.integers(-3, 4, (distinct, 4)) + 0.5
    vectors = pool[rng.integers(0, distinct, rows)].astype(np.float16 if half else np.float32)
    queries = (rng.integers(-2, 3, (categories, 4)) + 0.5).astype(np.float32)
    with mock.patch.multiple(top_k, _BLOCK_ROWS=(16, 16), _ENOUGH_QUERIES=1):
        scores, best = exact_top_k(split(vectors, cuts), queries, k)
    expected_scores, expected = full_sort(vectors, queries, k)
    assert scores.dtype == np.float32
    assert best.dtype == np.int64
    np.testing.assert_array_equal(best, expected)
    np.testing.assert_array_equal(scores, expected_scores)


def test_exact_top_k_on_real_numbers_does_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((9000, 32)).astype(np.float32)
    queries = rng.standard_normal((5, 32)).astype(np.float32)
    scores, rows = exact_top_k([vectors], queries, 40)
    _, expected = full_sort(vectors, queries, 40)
    np.testing.assert_array_equal(rows, expected)
    for size in (1000, 4096, 5001):
        chunks = (vectors[start : start + size] for start in range(0, len(vectors), size))
        other_scores, other_rows = exact_top_k(chunks, queries, 40)
        np.testing.assert_array_equal(other_rows, rows)
        np.testing.assert_array_equal(other_scores, scores)


def test_exact_top_k_finds_equal_vectors_in_row_order_across_blocks() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((9000, 48)).astype(np.float32)
    copies = [17, 4095, 4096, 8999]
    vectors[copies] = 10.0 * vectors[17]
    scores, rows = exact_top_k([vectors], vectors[17:18], 4)
    assert rows[0].tolist() == copies
    assert len(set(scores[0].tolist())) == 1


def test_exact_top_k_with_less_vectors_than_k_gives_fewer_columns() -> None:
    scores, rows = exact_top_k([np.eye(3, dtype=np.float32)], np.eye(3, dtype=np.float32), 5)
    assert scores.shape == rows.shape == (3, 3)
    assert rows[1].tolist() == [1, 0, 2]
    assert exact_top_k([], np.eye(3, dtype=np.float32), 5)[1].shape == (3, 0)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "not finite"), (np.inf, "not finite"),
                                             (0.0, "zero")])  # fmt: skip
@pytest.mark.parametrize("row", [0, 4096, 9000])
def test_exact_top_k_refuses_a_bad_vector_with_its_row(value: float, word: str, row: int) -> None:
    vectors = np.ones((9001, 4), np.float16)
    vectors[row] = value
    with pytest.raises(InputError, match=rf"row {row}: the vector is {word}"):
        exact_top_k([vectors[:5000], vectors[5000:]], np.ones((1, 4), np.float32), 3)


@pytest.mark.parametrize(
    "second", [np.ones((2, 5), np.float32), np.ones((2, 4), np.float64), np.ones(4, np.float32)]
)
def test_exact_top_k_refuses_a_chunk_of_another_form(second: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"from row 3 on .* expected \(N, 4\)"):
        exact_top_k([np.ones((3, 4), np.float32), second], np.ones((1, 4), np.float32), 3)


def test_exact_top_k_memory_does_not_grow_with_the_rows() -> None:
    queries = np.ones((4, 64), np.float32)

    def peak(count: int) -> int:
        generator = np.random.default_rng(0)
        chunks = (generator.random((500, 64), np.float32) for _ in range(count))
        tracemalloc.start()
        exact_top_k(chunks, queries, 10)
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    assert peak(160) < 1.1 * peak(20)


def unit_vectors(angles: list[float]) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_pick_archive_gives_each_candidate_its_reason() -> None:
    ids = ["a", "b", "c", "d", "e", "f"]
    embeddings = unit_vectors([0.0, 1.0, 1.01, 0.01, 2.0, 3.0])
    checked = {"a": "http_404", "b": "ok", "c": "ok", "d": "ok", "e": "ok", "f": "ok"}
    assert pick_archive(ids, near_neighbors(embeddings, 0.99), checked, size=2) == [
        ("http_404", None),  # and so no reason to drop its duplicate d
        ("ok", None),
        ("near_duplicate", "b"),
        ("ok", None),
        ("surplus", None),
        ("surplus", None),
    ]


def test_pick_archive_lets_an_unjudged_candidate_hold_its_place() -> None:
    ids = ["a", "b", "c"]
    embeddings = unit_vectors([0.0, 1.0, 2.0])
    picked = pick_archive(ids, near_neighbors(embeddings, 0.99), {"b": "ok", "c": "ok"}, size=2)
    assert [status for status, _ in picked] == ["pending", "ok", "surplus"]


def test_pick_archive_drops_what_looks_alike_by_its_hash() -> None:
    ids = ["a", "b", "c", "d", "e"]
    alone: list[list[int]] = [[]] * 5
    checked = dict.fromkeys("abde", "ok")
    hashes = {"a": 0b0000, "b": 0b0011, "d": 0b0111, "e": 2**64 - 1}
    none = pick_archive(ids, alone, checked, size=5, hashes=hashes)
    assert [status for status, _ in none] == ["ok", "ok", "pending", "ok", "ok"]
    found = pick_archive(ids, alone, checked, size=5, hashes=hashes, hash_distance=2)
    assert found == [
        ("ok", None),
        ("near_duplicate", "a"),
        ("pending", None),  # nobody has seen its pixels
        ("ok", None),  # like b, which is not accepted, and three bits from a
        ("ok", None),
    ]


def test_pick_archive_url_that_comes_again_is_said_to() -> None:
    found = pick_archive(["a", "b", "a"], [[], [], []], {"a": "http_404"}, size=3)
    assert [status for status, _ in found] == ["http_404", "pending", "duplicate_url"]


@pytest.mark.parametrize("chained", [False, True])
def test_near_neighbors_at_a_cosine_of_one_are_off(chained: bool) -> None:
    equal = np.tile(np.float32([0.6, 0.8]), (3, 1))
    assert near_neighbors(equal, 1.0, chained=chained) == [[], [], []]


def test_near_neighbors_in_chains_are_the_best_of_all_that_hang_together() -> None:
    vectors = unit_vectors([0.0, 1.0, 0.1, 3.0, 0.2, 1.1])
    assert near_neighbors(vectors, np.cos(0.15)) == [[], [], [0], [], [2], [1]]
    assert near_neighbors(vectors, np.cos(0.15), chained=True) == [[], [], [0], [], [0], [1]]


def greedy(
    ids: list[str], embeddings: np.ndarray, checked: dict[str, str], size: int, cosine: float
) -> list[str]:
    accepted: list[int] = []
    for rank, sample_id in enumerate(ids):
        near = any(float(embeddings[rank] @ embeddings[other]) >= cosine for other in accepted)
        if checked[sample_id] == "ok" and not near:
            accepted.append(rank)
    return [ids[rank] for rank in accepted[:size]]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 40),
    size=st.integers(1, 12),
    good=st.floats(0, 1),
    pass_rate=st.floats(0, 1),
    overfetch=st.floats(1, 3),
    spread=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_archive_over_rounds_is_the_best_ranked_that_pass(
    seed: int, count: int, size: int, good: float, pass_rate: float, overfetch: float, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    ids = [f"{n:020x}" for n in rng.permutation(count)]
    embeddings = unit_vectors(rng.integers(0, 60, count) * spread)  # no angle at the threshold
    truth = {i: str(rng.choice(["ok", "has_face"], p=[good, 1 - good])) for i in ids}
    cosine = float(np.cos(0.5 * spread))
    checked: dict[str, str] = {}
    while True:
        picked = pick_archive(ids, near_neighbors(embeddings, cosine), checked, size)
        tries = next_to_try([status for status, _ in picked], size, pass_rate, overfetch)
        if not tries:
            break
        assert not checked.keys() & {ids[rank] for rank in tries}
        checked |= {ids[rank]: truth[ids[rank]] for rank in tries}
    archive = [i for i, (status, _) in zip(ids, picked, strict=True) if status == "ok"]
    assert archive == greedy(ids, embeddings, truth, size, cosine)
    for (status, better), sample_id in zip(picked, ids, strict=True):
        assert (status == "near_duplicate") == (better is not None)
        assert status in ("ok", "pending", "near_duplicate", "surplus", truth[sample_id])


def test_next_to_try_overfetches_by_the_pass_rate() -> None:
    pending = ["pending"] * 100
    assert next_to_try(pending, 10, 1.0, 1.5) == list(range(15))
    assert next_to_try(pending, 10, 0.5, 1.5) == list(range(53))  # 30 would be short 1 time in 47
    assert next_to_try(pending, 10, 0.5, 6.0) == list(range(100))
    assert next_to_try(pending, 10, 0.0, 1.5) == list(range(100))


def test_next_to_try_counts_on_surplus_but_settles_the_front() -> None:
    statuses = ["ok"] * 3 + ["pending"] * 2 + ["surplus"] * 4 + ["pending"] * 50
    assert next_to_try(statuses, 5, 0.5, 2.0) == [3, 4]
    assert next_to_try(["ok"] * 5 + ["pending"], 5, 0.5, 2.0) == []
    assert next_to_try(["ok", "has_face"], 5, 0.5, 2.0) == []


def test_next_to_try_a_vanishing_pass_rate_tries_all_that_is_pending() -> None:
    assert next_to_try(["pending"] * 5, size=1, pass_rate=2.2e-311, overfetch=1.0) == list(range(5))
