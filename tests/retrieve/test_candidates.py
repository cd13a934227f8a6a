"""What a category may choose from: asked once, named by what it follows from, kept on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import schema
from namedmask.config import CategoryConfig, Config
from namedmask.retrieve.candidates import (
    CandidateList,
    is_close,
    is_nearer,
    read_candidate_list,
    statuses_of,
    write_candidate_lists,
)
from namedmask.retrieve.queries import queries_of
from namedmask.run.label_ids import Label
from namedmask.run.stores import EmbeddingStore
from namedmask.storage.files import read_parquet, write_parquet

CAT, DOG = Label(1, "cat", "cat"), Label(2, "dog", "dog")


def config_of(**sections: object) -> Config:
    tree = {"run": {"out": "unused"}, "categories": {"names": ["cat", "dog"]}, **sections}
    return Config.of(tree)


def units(config: Config, *labels: Label, vectors: str = "v") -> list[str]:
    return [ask.unit for ask in queries_of(labels, config, vectors)]


def test_offers_unit_follows_from_the_question_and_the_vectors_alone() -> None:
    plain = config_of()
    cat, dog = units(plain, CAT, DOG)
    assert cat != dog
    assert units(plain, Label(7, "house cat", "cat")) == [cat]
    assert units(plain, CAT, vectors="others") != [cat]
    assert units(config_of(retrieve={"archive_size": 7}), CAT) == [cat]
    assert units(config_of(retrieve={"near_duplicate_cosine": 0.9}), CAT) != [cat]
    each = {"cat": {"vetoed": ["x"], "blocked_hosts": ["a.example"]}}
    rules = {"names": ["cat", "dog"], "each": each}
    assert units(config_of(categories=rules), CAT, DOG) == [cat, dog]
    for key in ("queries", "negatives"):
        more = {"names": ["cat", "dog"], "each": {"cat": {key: ["a lion"]}}}
        other, same = units(config_of(categories=more), CAT, DOG)
        assert other != cat and same == dog


def test_offers_query_is_the_mean_of_texts_and_examples_and_negatives_stand_apart() -> None:
    each = {"cat": {"queries": ["a lion"], "negatives": ["a dog", "a wolf"]}}
    (ask,) = queries_of([CAT], config_of(categories={"names": ["cat"], "each": each}), "v")
    assert ask.prompts.texts == ("cat", "a lion", "a dog", "a wolf")
    found = np.eye(5, dtype=np.float32)  # the fifth as of an example
    query, negatives = ask.vectors(found)
    np.testing.assert_allclose(query, np.array([1, 1, 0, 0, 1]) / np.sqrt(3), rtol=1e-6)
    np.testing.assert_array_equal(negatives, found[2:4])


def test_offers_first_test_that_fails_gives_the_status() -> None:
    vectors = np.eye(3, dtype=np.float32)
    near = [("violent", lambda v: is_close(vectors[:1], 0.5, v)),
            ("negative", lambda v: is_nearer(vectors[2], vectors[:2], v))]  # fmt: skip
    assert statuses_of(vectors, near) == ["violent", "negative", "pending"]
    assert statuses_of(vectors[:0], near) == []
    assert not is_nearer(vectors[0], vectors[:0], vectors).any()
    assert not is_close(vectors[:0], 0.5, vectors).any()


class Vectors:
    """Two images as a store of vectors gives them; the first again under another rank."""

    def __init__(self) -> None:
        self.row_statuses = {9: "unsafe"}

    def take(self, rows: np.ndarray) -> tuple[list[str], list[str], np.ndarray]:
        urls = ["http://a.example/1.jpg", "http://sub.b.example/2.jpg"]
        return ["a", "b"], urls, np.eye(2, dtype=np.float32)


def written(folder: Path, rules: CategoryConfig) -> CandidateList:
    tree = {"names": ["cat"], "each": {"cat": rules.model_dump()}}
    config = config_of(categories=tree)
    (ask,) = queries_of([CAT], config, "v")
    best = np.array([[0.9, 0.1]], np.float32), np.array([[4, 9]])
    vectors = [(np.array([1, 0], np.float32), np.empty((0, 2), np.float32))]
    store: EmbeddingStore = Vectors()  # type: ignore[assignment]
    units = [ask.unit]
    written_units = write_candidate_lists(folder, store, units, vectors, best, config.retrieve, [])
    assert list(written_units) == units
    table = read_parquet(folder / "offers" / f"{ask.unit}.parquet")
    assert table.schema == schema.CANDIDATE_LIST
    return read_candidate_list(folder, ask)


@pytest.mark.parametrize(
    ("rules", "own"),
    [
        ({}, {"b": "unsafe"}),
        ({"blocked_hosts": ["b.example"]}, {"b": "blocked"}),
        ({"blocked_hosts": ["example", "a.exam"]}, {"a": "blocked", "b": "blocked"}),
        ({"blocked_hosts": ["xa.example", "1.jpg"]}, {"b": "unsafe"}),
        ({"blocked_hosts": ["A.Example"]}, {"a": "blocked", "b": "unsafe"}),
        ({"blocked_urls": ["HTTP://A.example:80/1.jpg#x"]}, {"a": "blocked", "b": "unsafe"}),
        ({"vetoed": ["a", "c"]}, {"a": "vetoed", "b": "unsafe"}),
    ],
)
def test_offers_are_read_with_what_the_rules_say_today(
    tmp_path: Path, rules: dict[str, object], own: dict[str, str]
) -> None:
    offer = written(tmp_path, CategoryConfig.model_validate(rules))
    assert offer.sample_ids == ["a", "b"]
    assert offer.own_statuses == own
    assert [list(near) for near in offer.neighbors] == [[], []]


def test_offers_image_like_a_blocked_hash_is_dropped_once_it_was_seen(tmp_path: Path) -> None:
    offer = written(tmp_path, CategoryConfig(blocked_hashes=("00000000000000ff",)))
    config = config_of(retrieve={"hash_distance": 2}).retrieve
    seen = {"a": "ok"}
    assert offer.pick({}, config, {})[0] == ("pending", None)
    assert offer.pick({}, config, {"a": 0xFF})[0] == ("pending", None), "of an earlier run"
    assert offer.pick(seen, config, {"a": 0xFF ^ 3})[0] == ("blocked", None)
    assert offer.pick(seen, config, {"a": 0xFF ^ 7})[0] == ("ok", None)


def test_offers_url_that_is_none_has_no_host_to_be_blocked(tmp_path: Path) -> None:
    offer = written(tmp_path, CategoryConfig())
    table = read_parquet(next((tmp_path / "offers").glob("*.parquet")))
    place = table.schema.get_field_index("url")
    urls = pa.array(["http://[bad/1.jpg", "no url"])
    write_parquet(table.set_column(place, "url", urls), next((tmp_path / "offers").glob("*.parq*")))
    rules = CategoryConfig(blocked_hosts=("bad", "example"), blocked_urls=("no url",))
    (ask,) = queries_of([CAT], config_of(categories={"names": ["cat"]}), "v")
    assert read_candidate_list(tmp_path, replace(ask, rules=rules)).own_statuses == {"b": "blocked"}
    assert offer.own_statuses == {"b": "unsafe"}
