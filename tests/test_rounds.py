"""Rounds of trying: full archives of the best, nothing tried twice, a cut-off changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from namedmask import schema
from namedmask.categories import CategorySet
from namedmask.config import RetrieveConfig
from namedmask.errors import InputError
from namedmask.retrieve import candidates_table
from namedmask.rounds import (
    UNTRIED,
    Offers,
    accepted,
    candidate_funnel,
    fill_archives,
    refuse_empty_archives,
    settle,
    violent,
)

COUNT = 24
PAIR = CategorySet("pair", ("cat", "dog"), ("cat", "dog"))


def offers_of(same_as: list[int], order: list[int]) -> Offers:
    """Return two categories over COUNT images; image i looks exactly like `same_as[i]`.

    The first ranks them 0, 1, 2…, the second in `order`.
    """
    vectors = np.eye(COUNT, dtype=np.float32)[same_as]
    index = np.array([range(COUNT), order])
    scores = np.tile(np.linspace(1, 0, COUNT, dtype=np.float32), (2, 1))
    ids = [f"{number:020x}" for number in range(COUNT)]
    urls = [f"http://a.example/{number}" for number in range(COUNT)]
    return Offers(candidates_table(PAIR, scores, index, ids, urls), index, vectors)


def greedy(
    ids: list[str], same_as: list[int], prints: list[int], truth: Mapping[str, str], size: int
) -> list[str]:
    """Return the archive as the words say it: down the ranks, good ones that look like no other."""
    kept: list[str] = []
    seen: set[tuple[str, int]] = set()
    for sample_id in ids:
        number = int(sample_id, 16)
        looks = {("vector", same_as[number]), ("pixels", prints[number])}
        if truth[sample_id] == schema.OK and not looks & seen:
            kept.append(sample_id)
            seen |= looks
    return kept[:size]


@given(
    same_as=st.lists(st.integers(0, COUNT - 1), min_size=COUNT, max_size=COUNT),
    prints=st.lists(st.integers(0, COUNT - 1), min_size=COUNT, max_size=COUNT),
    order=st.permutations(range(COUNT)),
    bad=st.sets(st.integers(0, COUNT - 1)),
    size=st.integers(1, 12),
    overfetch=st.floats(1, 2),
)
def test_rounds_enough_of_them_keep_exactly_the_best_that_pass(
    same_as: list[int],
    prints: list[int],
    order: list[int],
    bad: set[int],
    size: int,
    overfetch: float,
) -> None:
    hashes: dict[str, int] = {}
    truth = {f"{n:020x}": "has_face" if n in bad else schema.OK for n in range(COUNT)}
    asked: list[str] = []

    def look(ids: list[str]) -> dict[str, str]:
        asked.extend(ids)
        good = [one for one in ids if truth[one] == schema.OK]
        hashes.update((one, 1 << prints[int(one, 16)]) for one in good)  # two bits apart, or none
        return {one: truth[one] for one in ids}

    config = RetrieveConfig(
        archive_size=size, overfetch=overfetch, top_up_rounds=COUNT, hash_distance=1
    )
    offers = offers_of(same_as, order)
    verdicts = fill_archives(offers, config, look, hashes=hashes)
    table = settle(offers, verdicts, config, hashes)
    assert len(asked) == len(set(asked)), "an image was tried twice"
    for offer, kept in zip(offers, accepted(table, PAIR), strict=True):
        expected = greedy(offer.sample_ids, same_as, prints, truth, size)
        assert kept["sample_id"].to_pylist() == expected
    statuses = table["status"].to_pylist()
    assert "pending" not in statuses
    untried = {
        i for i, s in zip(table["sample_id"].to_pylist(), statuses, strict=True) if s == UNTRIED
    }
    assert not untried & set(asked)


def test_rounds_that_end_too_early_fill_with_what_was_tried() -> None:
    config = RetrieveConfig(archive_size=4, overfetch=1.0, top_up_rounds=0)
    offers = offers_of(list(range(COUNT)), list(range(COUNT)))
    verdicts = fill_archives(
        offers,
        config,
        lambda ids: {one: "http_404" if i < 2 else "ok" for i, one in enumerate(ids)},
    )
    assert len(verdicts) == 4
    table = settle(offers, verdicts, config)
    funnel = candidate_funnel(table, PAIR)
    assert funnel["by_category"]["cat"] == {"ok": 2, UNTRIED: COUNT - 4, "http_404": 2}
    assert funnel["candidates_in"] == sum(funnel["candidates_by_status"].values()) == 2 * COUNT


def test_rounds_copy_of_a_kept_image_is_never_tried_and_names_it() -> None:
    same_as = [0, 0, 2, *range(3, COUNT)]
    config = RetrieveConfig(archive_size=3)
    offers = offers_of(same_as, list(range(COUNT)))
    verdicts = fill_archives(offers, config, lambda ids: dict.fromkeys(ids, "ok"))
    assert f"{1:020x}" not in verdicts
    row = settle(offers, verdicts, config).slice(1, 1).to_pylist()[0]
    assert (row["status"], row["duplicate_of"]) == ("near_duplicate", f"{0:020x}")


def test_rounds_violent_candidates_are_told_by_their_vectors_and_not_tried() -> None:
    offers = offers_of(list(range(COUNT)), list(range(COUNT)))
    known = violent(offers, np.eye(COUNT, dtype=np.float32)[1:2], cosine=0.5)
    bloody = f"{1:020x}"
    assert known == {bloody: "violent"}
    tried: list[str] = []
    config = RetrieveConfig(archive_size=3)

    def look(ids: list[str]) -> dict[str, str]:
        tried.extend(ids)
        return dict.fromkeys(ids, "ok")

    verdicts = fill_archives(offers, config, look, known)
    assert bloody not in tried
    statuses = settle(offers, verdicts, config)["status"].to_pylist()
    assert statuses[:4] == ["ok", "violent", "ok", "ok"]


def test_rounds_copy_of_a_rejected_image_gets_its_chance() -> None:
    same_as = [0, 0, 2, *range(3, COUNT)]
    config = RetrieveConfig(archive_size=1, overfetch=1.0)
    offers = offers_of(same_as, list(range(COUNT)))
    first = f"{0:020x}"
    verdicts = fill_archives(
        offers, config, lambda ids: {one: "has_face" if one == first else "ok" for one in ids}
    )
    kept = next(accepted(settle(offers, verdicts, config), PAIR))
    assert kept["sample_id"].to_pylist() == [f"{1:020x}"]


def test_rounds_no_vectors_at_all_are_told_as_empty_archives() -> None:
    none = np.empty((2, 0), np.int64)
    table = candidates_table(PAIR, np.empty((2, 0), np.float32), none, [], [])
    offers = Offers(table, none, np.empty((0, 0), np.float32))
    config = RetrieveConfig()
    assert fill_archives(offers, config, lambda ids: pytest.fail("nothing to look at")) == {}
    funnel = candidate_funnel(settle(offers, {}, config), PAIR)
    with pytest.raises(InputError, match=r"'cat' \(no candidate\); 'dog' \(no candidate\)"):
        refuse_empty_archives(funnel["by_category"])


def test_rounds_settled_table_keeps_the_declared_columns() -> None:
    offers = offers_of(list(range(COUNT)), list(range(COUNT))[::-1])
    table = settle(offers, {}, RetrieveConfig(archive_size=2))
    assert table.schema == schema.CANDIDATES
    assert isinstance(table, pa.Table)
