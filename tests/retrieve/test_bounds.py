"""A pair that the bounds exclude is never above the floor, whatever the vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.retrieve import bounds
from namedmask.retrieve.bounds import FloatBounds, Int8Bounds, int8_is_fast, int8_product

pytestmark = pytest.mark.numerical


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 130),
    length=st.sampled_from([1e-12, 1e-3, 1.0, 1e4, 1e11]),
    tail=st.sampled_from([0.0, 1.0, 3.0]),
    shift=st.sampled_from([0.0, 1.0, 100.0]),
    int8=st.booleans(),
)
def test_bounds_of_any_vectors_exclude_no_pair_above_the_floor(
    seed: int, width: int, length: float, tail: float, shift: float, int8: bool
) -> None:
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((70, width)) + shift * rng.standard_normal(width)
    block = (length * block * np.exp(tail * rng.standard_normal((70, width)))).astype(np.float32)
    queries = rng.standard_normal((9, width)).astype(np.float32)
    exact = block.astype(np.float64) @ queries.astype(np.float64).T
    floors = np.sort(exact, axis=0)[-6].astype(np.float32)
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    checked = Int8Bounds(queries, norms, 80) if int8 else FloatBounds(queries, norms)
    longest = float(np.linalg.norm(block, axis=1).max())
    for part in (block, block[:31]):
        pairs = set(checked.pairs(part, longest, floors).tolist())
        above = set(np.flatnonzero(exact[: len(part)] > floors).tolist())
        assert above <= pairs


@pytest.mark.parametrize("instruction", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 24, 64, 100, 768, 1280])
def test_int8_product_of_any_shape_is_exact_with_and_without_the_instruction(
    width: int, instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not instruction:
        monkeypatch.setattr(bounds, "_int_mm_is_exact", lambda width: False)
    generator = torch.Generator().manual_seed(width)
    for rows, columns in itertools.product((1, 2, 31, 70), (1, 2, 9, 300)):
        one, other = (
            127 * (2 * torch.randint(0, 2, (count, width), generator=generator) - 1).to(torch.int8)
            for count in (rows, columns)
        )
        expected = (one.long() @ other.T.long()).int()
        found = torch.empty_like(expected)
        int8_product(one, other.T, found)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("switch", "instruction", "expected"),
    [("auto", True, True), ("auto", False, False), ("off", True, False), ("off", False, False)],
)
def test_int8_is_fast_only_with_the_instruction_and_the_switch_on(
    switch: str, instruction: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "_int_mm_is_exact", lambda width: instruction)
    monkeypatch.setenv("NAMEDMASK_INT8", switch)
    assert int8_is_fast(64) is expected
