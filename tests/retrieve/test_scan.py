"""The scan against a full sort of the same dot products, bit for bit, and what it may skip."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.errors import InputError
from namedmask.retrieve import scan as top_k
from namedmask.retrieve.scan import CpuScan, TorchScan, blocks, dot_products, pack, unpack
from namedmask.retrieve.top_k import exact_top_k, merge_top_k
from tests import rounding

pytestmark = pytest.mark.numerical


def full_sort(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the answer from all dot products, each made on its own, in float32."""
    scores = np.empty((len(queries), len(vectors)), np.float32)
    for row, query in itertools.product(range(len(vectors)), range(len(queries))):
        one = [torch.from_numpy(a.astype(np.float32)) for a in (vectors[[row]], queries[[query]])]
        scores[query, row] = dot_products(*one, np.array([0]), np.array([0]))[0]
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def noise(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return unit(rng.standard_normal((rows, width)))


def clusters(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    centers = noise(rng, 3, width)
    return unit(centers[rng.integers(0, 3, rows)] + 1e-3 * noise(rng, rows, width))


def duplicates(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return noise(rng, 4, width)[rng.integers(0, 4, rows)]


def one_vector(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return np.repeat(noise(rng, 1, width), rows, axis=0)


def rising(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Each is more alike the first query than all before it: every row is a hit."""
    vectors = noise(rng, rows, width)
    vectors[:, 0] = np.linspace(-3, 3, rows)
    return unit(vectors)


def of_all_lengths(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    lengths = np.exp(rng.uniform(-8, 8, (rows, 1)))
    return (noise(rng, rows, width) * lengths).astype(np.float32)


def like_clip(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    own = rng.standard_normal((rows, width)) * np.arange(1, width + 1) ** -0.5
    own[:, -1] += 2.0
    return unit(own)


KINDS = [noise, clusters, duplicates, one_vector, rising, of_all_lengths, like_clip]


def cut(vectors: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(vectors, sorted(place % (len(vectors) + 1) for place in places))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 90),
    width=st.integers(2, 40),
    categories=st.integers(1, 5),
    k=st.integers(1, 100),
    half=st.booleans(),
    places=st.lists(st.integers(0, 99), max_size=5),
    int8=st.booleans(),
)
def test_scan_of_any_vectors_equals_a_full_sort_bit_for_bit(
    seed: int,
    kind: Callable[..., np.ndarray],
    rows: int,
    width: int,
    categories: int,
    k: int,
    half: bool,
    places: list[int],
    int8: bool,
) -> None:
    rng = np.random.default_rng(seed)
    vectors = kind(rng, rows, width).astype(np.float16 if half else np.float32)
    vectors[~(np.abs(vectors) > 0).any(axis=1)] = 1  # float16 may round all of a vector to zero
    queries = noise(rng, categories, width)
    queries[0] = np.eye(width, dtype=np.float32)[0]
    expected_scores, expected_rows = full_sort(vectors, queries, k)
    enough = 1 if int8 else 1000
    with (
        mock.patch.multiple(top_k, _BLOCK_ROWS=(16, 16), _ENOUGH_QUERIES=enough, _FLOAT_BLOCKS=1),
        mock.patch.object(top_k, "int8_is_fast", return_value=True),
    ):
        scores, best = exact_top_k(cut(vectors, places), queries, k)
    np.testing.assert_array_equal(best, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    k=st.integers(1, 60),
    places=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    int8=st.booleans(),
)
def test_scan_in_parts_in_any_order_changes_no_bit(
    seed: int, kind: Callable[..., np.ndarray], k: int, places: list[int], int8: bool
) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = kind(rng, 400, 33), noise(rng, 7, 33)
    with (
        mock.patch.multiple(top_k, _BLOCK_ROWS=(64, 64), _ENOUGH_QUERIES=1 if int8 else 1000),
        mock.patch.object(top_k, "int8_is_fast", return_value=True),
    ):
        whole = exact_top_k([vectors], queries, k)
        parts, first = [], 0
        for part in cut(vectors, places):
            if len(part):
                parts.append(exact_top_k([part], queries, k, first))
            first += len(part)
    order = rng.permutation(len(parts))
    merged = merge_top_k([parts[number] for number in order], k)
    np.testing.assert_array_equal(merged[1], whole[1])
    np.testing.assert_array_equal(merged[0], whole[0])


def scan_all(vectors: np.ndarray, queries: np.ndarray, k: int) -> CpuScan:
    scan = CpuScan(queries, k)
    for block, longest, first in blocks([vectors], queries.shape[1], scan.block_rows, 0):
        scan.add(block, longest, first)
    return scan


@pytest.mark.parametrize("kind", [noise, like_clip])
def test_scan_leaves_few_pairs_and_the_same_answer_with_and_without_int8(
    kind: Callable[..., np.ndarray],
) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = kind(rng, 30_000, 128), noise(rng, 300, 128)
    unused = mock.Mock(side_effect=AssertionError("the other bounds should have been used"))
    with (
        mock.patch.object(top_k, "int8_is_fast", return_value=False),
        mock.patch.object(top_k.Int8Bounds, "pairs", unused),
    ):
        by_float = scan_all(vectors, queries, 20)
    with (
        mock.patch.object(top_k, "int8_is_fast", return_value=True),
        mock.patch.object(top_k.FloatBounds, "pairs", unused),
    ):
        by_int8 = scan_all(vectors, queries, 20)
    assert by_float.pairs_scored < 0.15 * by_float.pairs_seen  # the first block is 4,096 of 30,000
    assert by_int8.pairs_scored < 0.25 * by_int8.pairs_seen
    for one, other in zip(by_int8.answer(), by_float.answer(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scan_whose_rows_change_character_stays_exact_and_fits_its_bounds_again() -> None:
    rng = np.random.default_rng(1)
    near, far = clusters(rng, 3000, 64), noise(rng, 9000, 64)
    vectors, queries = np.concatenate([0.01 * near, far]), noise(rng, 300, 64)
    reset = mock.Mock(side_effect=top_k.Int8Bounds.reset)
    with (
        mock.patch.multiple(top_k, _BLOCK_ROWS=(256, 256)),
        mock.patch.object(top_k, "int8_is_fast", return_value=True),
        mock.patch.object(top_k.Int8Bounds, "reset", lambda bounds: reset(bounds)),
    ):
        scores, rows = exact_top_k([vectors], queries, 20)
    assert reset.called
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(
        scores, -np.sort(-exact, axis=1)[:, :20], atol=rounding.of_dot_product(64)
    )
    np.testing.assert_allclose(
        np.take_along_axis(exact, rows, axis=1), scores, atol=rounding.of_dot_product(64)
    )


def test_scan_for_5000_queries_equals_a_sort() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = noise(rng, 1500, 24), noise(rng, 5000, 24)
    scores, rows = exact_top_k([vectors.astype(np.float16)], queries, 7)
    exact = queries.astype(np.float64) @ vectors.astype(np.float16).astype(np.float64).T
    np.testing.assert_allclose(
        scores, -np.sort(-exact, axis=1)[:, :7], atol=rounding.of_dot_product(24)
    )
    np.testing.assert_allclose(
        np.take_along_axis(exact, rows, axis=1), scores, atol=rounding.of_dot_product(24)
    )


def test_scan_by_torch_gives_the_same_rows() -> None:
    rng = np.random.default_rng(3)
    vectors, queries = rng.integers(-3, 4, (300, 6)) + 0.5, rng.integers(-2, 3, (9, 6)) + 0.5
    vectors, queries = vectors.astype(np.float32), queries.astype(np.float32)
    with mock.patch.multiple(top_k, _BLOCK_ROWS=(4, 4)):
        card = TorchScan(queries, 50, torch.device("cpu"))
        for block, longest, first in blocks([vectors], 6, card.block_rows, 0):
            card.add(block, longest, first)
    for one, other in zip(card.answer(), exact_top_k([vectors], queries, 50), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scan_asked_for_a_missing_card_does_not_fall_back() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a graphics card")
    one = np.ones((1, 4), np.float32)
    with pytest.raises(InputError, match="cuda"):
        exact_top_k([one], one, 1, device="cuda")


@pytest.mark.parametrize("factor", [1e-17, 1e20])
def test_scan_refuses_lengths_whose_products_would_overflow_or_vanish(factor: float) -> None:
    vectors = np.full((3, 4), factor, np.float32)
    with pytest.raises(InputError, match="row 10: the vector is far too long or too short"):
        exact_top_k([vectors], np.ones((1, 4), np.float32), 1, first=10)


def test_scan_takes_read_only_and_strided_chunks() -> None:
    vectors = np.asfortranarray(noise(np.random.default_rng(4), 50, 8))
    vectors.setflags(write=False)
    queries = vectors[::-3]
    _, rows = exact_top_k([vectors[::-1], vectors[:, ::-1][:, ::-1]], queries, 1)
    assert rows[:, 0].tolist() == list(range(0, 50, 3))


def test_pack_orders_by_score_then_by_earlier_row() -> None:
    scores = np.array([1.5, -0.0, 0.0, -2.0, 1.5, np.float32(1e-40)], np.float32)
    rows = np.array([9, 3, 2, 0, 2**32 - 1, 7])
    keys = pack(scores, rows)
    assert np.argsort(-keys).tolist() == [0, 4, 5, 2, 1, 3]
    np.testing.assert_array_equal(unpack(keys)[0], scores)
    np.testing.assert_array_equal(unpack(keys)[1], rows)
    with pytest.raises(InputError, match="merge_top_k"):
        pack(scores[:1], np.array([2**32]))
