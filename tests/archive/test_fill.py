"""Rounds of trying: full archives of the best, nothing tried twice, a cut-off changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from namedmask import schema
from namedmask.archive.fill import candidate_funnel, fill_archives, refuse_empty_archives, settle
from namedmask.config import RetrieveConfig
from namedmask.errors import InputError
from namedmask.retrieve.candidates import CandidateList
from namedmask.retrieve.pick import near_neighbors
from namedmask.run.label_ids import Label
from namedmask.schema.status import UNTRIED

COUNT = 24
PAIR = (Label(1, "cat", "cat"), Label(2, "dog", "dog"))


def offers_of(same_as: list[int], order: list[int], chained: bool = False) -> list[CandidateList]:
    """Return two categories over COUNT images; image i looks exactly like `same_as[i]`.

    The first ranks them 0, 1, 2…, the second in `order`.
    """
    vectors = np.eye(COUNT, dtype=np.float32)[same_as]
    scores = np.linspace(1, 0, COUNT, dtype=np.float32)
    return [
        CandidateList(
            label,
            [f"{number:020x}" for number in ranks],
            [f"http://a.example/{number}" for number in ranks],
            scores,
            near_neighbors(vectors[list(ranks)], 0.94, chained=chained),
        )
        for label, ranks in zip(PAIR, (range(COUNT), order), strict=True)
    ]


def kept_of(table: pa.Table) -> list[str]:
    return [row["sample_id"] for row in table.to_pylist() if row["status"] == schema.OK]


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
    checked = fill_archives(offers, config, look, hashes)
    assert len(asked) == len(set(asked)), "an image was tried twice"
    for offer in offers:
        table = settle(offer, checked, config, hashes)
        assert kept_of(table) == greedy(offer.sample_ids, same_as, prints, truth, size)
        statuses = table["status"].to_pylist()
        assert "pending" not in statuses
        pairs = zip(table["sample_id"].to_pylist(), statuses, strict=True)
        assert not {one for one, status in pairs if status == UNTRIED} & set(asked)


def test_rounds_that_end_too_early_fill_with_what_was_tried() -> None:
    config = RetrieveConfig(archive_size=4, overfetch=1.0, top_up_rounds=0)
    offers = offers_of(list(range(COUNT)), list(range(COUNT)))
    checked = fill_archives(
        offers,
        config,
        lambda ids: {one: "http_404" if i < 2 else "ok" for i, one in enumerate(ids)},
    )
    assert len(checked) == 4
    funnel = candidate_funnel(
        {offer.label.name: settle(offer, checked, config) for offer in offers}
    )
    assert funnel["by_category"]["cat"] == {"ok": 2, UNTRIED: COUNT - 4, "http_404": 2}
    assert funnel["candidates_in"] == sum(funnel["candidates_by_status"].values()) == 2 * COUNT


def test_rounds_copy_of_a_kept_image_is_never_tried_and_names_it() -> None:
    same_as = [0, 0, 2, *range(3, COUNT)]
    config = RetrieveConfig(archive_size=3)
    offers = offers_of(same_as, list(range(COUNT)))
    checked = fill_archives(offers, config, lambda ids: dict.fromkeys(ids, "ok"))
    assert f"{1:020x}" not in checked
    row = settle(offers[0], checked, config).slice(1, 1).to_pylist()[0]
    assert (row["status"], row["duplicate_of"]) == ("near_duplicate", f"{0:020x}")


def test_rounds_what_a_category_must_not_have_is_not_tried_for_it() -> None:
    cats, dogs = offers_of(list(range(COUNT)), list(range(COUNT)))
    unwanted = f"{1:020x}"
    cats = replace(cats, own_statuses={unwanted: "vetoed"})
    asked: list[str] = []

    def look(ids: list[str]) -> dict[str, str]:
        asked.extend(ids)
        return dict.fromkeys(ids, "ok")

    config = RetrieveConfig(archive_size=3, overfetch=1.0)
    checked = fill_archives([cats], config, look)
    assert unwanted not in asked
    statuses = settle(cats, checked, config)["status"].to_pylist()
    assert statuses[:4] == ["ok", "vetoed", "ok", "ok"]
    checked = fill_archives([cats, dogs], config, look)
    assert settle(dogs, checked, config)["status"].to_pylist()[:3] == ["ok"] * 3
    assert settle(cats, checked, config)["status"].to_pylist()[:4] == statuses[:4]


def test_rounds_in_chains_a_copy_of_a_rejected_image_is_dropped_too() -> None:
    same_as = [0, 0, 2, *range(3, COUNT)]
    config = RetrieveConfig(archive_size=2, near_duplicates="components")
    offer = offers_of(same_as, list(range(COUNT)), chained=True)[0]
    first = f"{0:020x}"
    checked = fill_archives(
        [offer], config, lambda ids: {one: "http_404" if one == first else "ok" for one in ids}
    )
    assert kept_of(settle(offer, checked, config)) == [f"{2:020x}", f"{3:020x}"]


@given(faces=st.sets(st.integers(0, COUNT - 1)), size=st.integers(1, 12))
def test_rounds_faces_not_replenished_leave_gaps_among_the_best(faces: set[int], size: int) -> None:
    config = RetrieveConfig(archive_size=size, replenish_faces=False, top_up_rounds=COUNT)
    offer = offers_of(list(range(COUNT)), list(range(COUNT)))[0]
    truth = {f"{n:020x}": "has_face" if n in faces else schema.OK for n in range(COUNT)}
    checked = fill_archives([offer], config, lambda ids: {one: truth[one] for one in ids})
    expected = [f"{n:020x}" for n in range(size) if n not in faces]
    assert kept_of(settle(offer, checked, config)) == expected


def test_rounds_copy_of_a_rejected_image_gets_its_chance() -> None:
    same_as = [0, 0, 2, *range(3, COUNT)]
    config = RetrieveConfig(archive_size=1, overfetch=1.0)
    offers = offers_of(same_as, list(range(COUNT)))
    first = f"{0:020x}"
    checked = fill_archives(
        offers, config, lambda ids: {one: "has_face" if one == first else "ok" for one in ids}
    )
    assert kept_of(settle(offers[0], checked, config)) == [f"{1:020x}"]


def test_rounds_no_vectors_at_all_are_told_as_empty_archives() -> None:
    offers = [CandidateList(label, [], [], np.empty(0, np.float32), []) for label in PAIR]
    config = RetrieveConfig()
    assert fill_archives(offers, config, lambda ids: pytest.fail("nothing to look at")) == {}
    funnel = candidate_funnel({one.label.name: settle(one, {}, config) for one in offers})
    with pytest.raises(InputError, match=r"'cat' \(no candidate\); 'dog' \(no candidate\)"):
        refuse_empty_archives(funnel["by_category"])


def test_rounds_settled_table_keeps_the_declared_columns() -> None:
    offer = offers_of(list(range(COUNT)), list(range(COUNT))[::-1])[1]
    table = settle(offer, {}, RetrieveConfig(archive_size=2))
    assert table.schema == schema.CANDIDATES
    assert table["rank"].to_pylist() == list(range(COUNT))
    assert table["sample_id"].to_pylist() == offer.sample_ids
    assert set(table["category"].to_pylist()) == {"dog"}
    assert set(table["label_id"].to_pylist()) == {2}
