"""A pair that a screen leaves out is never above the floor, whatever the vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from namedmask.screens import FloatScreen, Int8Screen


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 130),
    length=st.sampled_from([1e-12, 1e-3, 1.0, 1e4, 1e15]),
    tail=st.sampled_from([0.0, 1.0, 3.0]),
    shift=st.sampled_from([0.0, 1.0, 100.0]),
    int8=st.booleans(),
)
def test_screen_of_any_vectors_leaves_out_no_pair_above_the_floor(
    seed: int, width: int, length: float, tail: float, shift: float, int8: bool
) -> None:
    if int8 and not torch.cpu._is_vnni_supported():
        int8 = False
    rng = np.random.default_rng(seed)
    block = rng.standard_normal((70, width)) + shift * rng.standard_normal(width)
    block = (length * block * np.exp(tail * rng.standard_normal((70, width)))).astype(np.float32)
    queries = rng.standard_normal((9, width)).astype(np.float32)
    exact = block.astype(np.float64) @ queries.astype(np.float64).T
    floors = np.sort(exact, axis=0)[-6].astype(np.float32)
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    screen = Int8Screen(queries, norms, 80) if int8 else FloatScreen(queries, norms)
    longest = float(np.linalg.norm(block, axis=1).max())
    for part in (block, block[:31]):
        pairs = set(screen.pairs(part, longest, floors).tolist())
        above = set(np.flatnonzero(exact[: len(part)] > floors).tolist())
        assert above <= pairs


def test_int8_screen_at_the_ends_of_its_range_multiplies_exactly() -> None:
    if not torch.cpu._is_vnni_supported():
        pytest.skip("no VNNI: this processor has no int8 screen")
    ends = torch.tensor([[127], [-127]], dtype=torch.int8)
    one, other = ends[[0, 0, 1, 1]].repeat(1, 768), ends[[0, 1, 0, 1]].repeat(1, 768)
    expected = (one.long() @ other.T.long()).int()
    assert torch.equal(torch._int_mm(one, other.T), expected)
