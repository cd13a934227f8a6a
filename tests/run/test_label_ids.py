"""Label ids: given once, never moved, never given twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from namedmask.categories import CategorySet
from namedmask.errors import ConfigError, InputError
from namedmask.run.label_ids import Label, assign_labels, read_labels, write_labels


def plain(*names: str) -> CategorySet:
    return CategorySet("plain", names, names)


def ids(labels: list[Label]) -> dict[str, int]:
    return {label.name: label.label_id for label in labels}


def test_labels_of_a_new_folder_count_from_one_in_the_order_of_the_set() -> None:
    assert ids(assign_labels([], plain("mug", "crane", "gull"))) == {
        "mug": 1,
        "crane": 2,
        "gull": 3,
    }


def test_labels_category_set_in_between_gets_the_next_free_id() -> None:
    known = assign_labels([], plain("mug", "gull"))
    labels = assign_labels(known, plain("mug", "crane", "gull"))
    assert ids(labels) == {"mug": 1, "crane": 3, "gull": 2}
    assert [label.name for label in labels] == ["mug", "crane", "gull"]


def test_labels_removed_category_keeps_its_id_for_when_it_comes_back(tmp_path: Path) -> None:
    known: list[Label] = []
    for names in (("mug", "crane", "gull"), ("mug", "gull"), ("mug", "gull", "horse")):
        labels = assign_labels(known, plain(*names))
        write_labels(tmp_path, known, labels)
        known = read_labels(tmp_path)
    assert ids(labels) == {"mug": 1, "gull": 3, "horse": 4}
    assert ids(assign_labels(known, plain("crane", "mug"))) == {"crane": 2, "mug": 1}


def test_labels_new_name_of_an_old_query_is_the_same_category() -> None:
    known = assign_labels([], CategorySet("a", ("crane", "mug"), ("crane bird", "mug")))
    renamed = CategorySet(
        "a", ("wading bird", "mug", "crane"), ("crane bird", "mug", "tower crane")
    )
    assert ids(assign_labels(known, renamed)) == {"wading bird": 3, "mug": 2, "crane": 1}
    renamed = CategorySet("a", ("wading bird", "mug"), ("crane bird", "mug"))
    assert ids(assign_labels(known, renamed)) == {"wading bird": 1, "mug": 2}


@given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True), max_size=6))
def test_labels_no_id_moves_or_is_given_twice(lists: list[list[str]]) -> None:
    known: dict[str, int] = {}
    for names in lists:
        before = [Label(label_id, name, name) for name, label_id in known.items()]
        given_now = ids(assign_labels(before, plain(*names)))
        assert all(known.get(name, label_id) == label_id for name, label_id in given_now.items())
        known |= given_now
        assert len(set(known.values())) == len(known)


def test_labels_that_ran_out_are_told() -> None:
    with pytest.raises(ConfigError, match="would collide with the ignore id"):
        assign_labels([Label(65534, "last", "last")], plain("last", "one more"))


def test_labels_of_a_newer_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"format_version": 99, "labels": []}')
    with pytest.raises(InputError, match="format_version 99"):
        read_labels(tmp_path)
