"""A run folder whose categories change: only what is new is done, nothing else moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from namedmask.archive.store import Archive
from namedmask.config import Config
from namedmask.errors import ConfigError, InputError, TooManyFailuresError
from namedmask.run.job import VerbRun
from namedmask.run.ledger import open_run
from namedmask.run.progress import SilentProgress
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.storage.files import row_hashes
from namedmask.verbs import build as verbs
from namedmask.verbs import refine, train
from namedmask.verbs.plan import plan_of
from tests import toys
from tests.toy_runs import config_of

SILENT = SilentProgress()


@pytest.fixture
def web() -> Iterator[toys.SmallWeb]:
    with toys.filled_web(10) as web:
        yield web


@pytest.fixture
def source(web: toys.SmallWeb, tmp_path: Path) -> str:
    return str(web.write_metadata(tmp_path / "metadata.parquet"))


def run_of(source: str, out: Path, names: list[str], **each: dict[str, Any]) -> Config:
    config = config_of(out, f"categories.names={json.dumps(names)}", source=source)
    tree = config.tree()
    tree["categories"]["each"] = each
    return Config.of(tree)


def hashes(out: Path) -> dict[str, list[str]]:
    archive = Archive.open(out / "archive", verify=True)
    return {name: row_hashes(archive.entries(name)) for name in archive.names}


def written(out: Path) -> dict[str, int]:
    return {
        str(path.relative_to(out)): path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.suffix in (".parquet", ".pt")
    }


def test_more_categories_fetch_embed_and_mask_no_image_again(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    verbs.curate(run_of(source, grown, ["red", "green"]), SILENT)
    before, labels = written(grown), Archive.open(grown / "archive").names_by_label
    web.hits.clear()
    more = run_of(source, grown, ["blue", "red", "green"])
    summary = verbs.curate(more, SILENT)
    after = written(grown)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"candidates.parquet"}
    assert max(web.hits.values()) == 1
    assert all(path.startswith("/blue") for path in web.hits), "an old category's image came again"
    assert summary["images_kept"] == 3 * more.retrieve.archive_size
    archive = Archive.open(grown / "archive")
    assert archive.names_by_label == labels | {3: "blue"}
    assert verbs.curate(more, SILENT)["skipped"]

    verbs.curate(run_of(source, whole, ["red", "green", "blue"]), SILENT)
    assert hashes(grown) == hashes(whole)


def test_more_categories_refine_trains_their_experts_alone_and_train_starts_anew(
    source: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = run_of(source, out, ["red", "green"])
    for verb in (verbs.curate, refine.refine, train.train):
        verb(config, SILENT)
    experts = {name: time for name, time in written(out).items() if name.startswith("experts/")}
    more = run_of(source, out, ["red", "green", "blue"])
    with pytest.raises(InputError, match="no finished 'build'"):
        train.train(more, SILENT)
    verbs.curate(more, SILENT)
    with pytest.raises(InputError, match="no finished 'refine'"):
        train.train(more, SILENT)
    assert refine.refine(more, SILENT)["categories"] == 3
    after = written(out)
    assert {name: after[name] for name in experts} == experts
    assert "experts/00003-blue.pt" in after
    found = train.train(more, SILENT)
    assert (found["labels"], found.get("skipped")) == (4, None)
    assert train.train(more, SILENT)["skipped"]


def test_more_categories_train_may_start_from_the_old_segmenter(
    source: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = run_of(source, out, ["red", "green"])
    for verb in (verbs.curate, refine.refine, train.train):
        verb(config, SILENT)
    old = out / "old.pt"
    (out / "segmenter/checkpoint.pt").rename(old)
    tree = run_of(source, out, ["blue", "red", "green"]).tree()
    tree["train"] |= {"start": str(old), "iterations": 1}
    more = Config.of(tree)
    for verb in (verbs.curate, refine.refine, train.train):
        verb(more, SILENT)
    before, _ = load_checkpoint(old)
    after, names = load_checkpoint(out / "segmenter/checkpoint.pt")
    assert names == ("red", "green", "blue")
    key, kept = list(before.state_dict().items())[-1]
    assert kept.shape == (3,)
    now = after.state_dict()[key]
    assert now.shape == (4,) and torch.allclose(now[:3], kept, atol=0.01)


def test_more_categories_removed_one_leaves_a_gap_and_comes_back_for_free(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    three, two = ["red", "green", "blue"], ["red", "blue"]
    verbs.curate(run_of(source, out, three), SILENT)
    first = hashes(out)
    web.hits.clear()
    verbs.curate(run_of(source, out, two), SILENT)
    assert Archive.open(out / "archive").names_by_label == {1: "red", 3: "blue"}
    for verb in (refine.refine, train.train):
        verb(run_of(source, out, two), SILENT)
    assert train.train(run_of(source, out, two), SILENT)["labels"] == 4
    verbs.curate(run_of(source, out, three), SILENT)
    assert hashes(out) == first
    assert not web.hits


def test_more_categories_vetoed_image_is_replaced_by_the_next_best(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    verbs.curate(run_of(source, out, ["red", "green"]), SILENT)
    ids = Archive.open(out / "archive").entries("red")["sample_id"].to_pylist()
    before = written(out)
    web.hits.clear()
    vetoed = run_of(source, out, ["red", "green"], red={"vetoed": [ids[2]]})
    verbs.curate(vetoed, SILENT)
    now = Archive.open(out / "archive").entries("red")["sample_id"].to_pylist()
    assert now[:-1] == ids[:2] + ids[3:] and now[-1] not in ids
    after = written(out)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"candidates.parquet", "archive/00001-red.parquet"}
    candidates = pq.read_table(out / "candidates.parquet").to_pylist()
    fate = [one["status"] for one in candidates if one["sample_id"] == ids[2]]
    assert sorted(fate) in (["untried", "vetoed"], ["vetoed"])


def test_more_categories_blocked_host_and_url_are_never_fetched(
    web: toys.SmallWeb, source: str, tmp_path: Path
) -> None:
    best = f"{web.url}/red-0.jpg"
    rules = {"blocked_urls": [best.replace("http", "HTTP")]}
    verbs.curate(run_of(source, tmp_path / "one", ["red"], red=rules), SILENT)
    urls = Archive.open(tmp_path / "one/archive").entries("red")["url"].to_pylist()
    assert best not in urls
    with pytest.raises(TooManyFailuresError, match=r"none of 20 candidates is ok.*'blocked'"):
        verbs.curate(
            run_of(source, tmp_path / "two", ["red"], red={"blocked_hosts": ["127.0.0.1"]}), SILENT
        )


def test_more_categories_rules_of_an_unknown_category_are_refused(
    source: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"categories\.each: category 'rde' is unknown.*'red'"):
        verbs.curate(run_of(source, tmp_path, ["red"], rde={"vetoed": []}), SILENT)


def test_more_categories_negative_query_drops_what_is_closer_to_it(
    source: str, tmp_path: Path
) -> None:
    colored = run_of(source, tmp_path, ["anything"], anything={"negatives": ["blue"]})
    verbs.curate(colored, SILENT)
    candidates = pq.read_table(tmp_path / "candidates.parquet").to_pylist()
    negative = [row["url"] for row in candidates if row["status"] == "negative"]
    assert negative and all("/blue" in url for url in negative)
    kept = Archive.open(tmp_path / "archive").entries("anything")["url"].to_pylist()
    assert not any("/blue" in url for url in kept)


def test_more_categories_examples_and_more_queries_move_what_is_asked(
    source: str, tmp_path: Path
) -> None:
    example = tmp_path / "blue.jpg"
    example.write_bytes(toys.jpeg(toys.disk(toys.COLORS["blue"], 9000)))
    rules = {"examples": [str(example)] * 3, "queries": ["blue"]}
    verbs.curate(run_of(source, tmp_path / "run", ["anything"], anything=rules), SILENT)
    kept = Archive.open(tmp_path / "run/archive").entries("anything")["url"].to_pylist()
    assert all("/blue" in url for url in kept)
    missing = {"examples": [str(tmp_path / "no.jpg")]}
    with pytest.raises(InputError, match=r"categories\.each\.'anything'\.examples: .*no\.jpg"):
        verbs.curate(run_of(source, tmp_path / "other", ["anything"], anything=missing), SILENT)


def test_more_categories_plan_tells_what_is_new_before_anything_is_started(
    source: str, tmp_path: Path
) -> None:
    config = run_of(source, tmp_path, ["red", "green"])
    assert plan_of(config)["changes"] == {}
    verbs.curate(config, SILENT)
    assert plan_of(config)["changes"]["new"] == []
    before = written(tmp_path)
    planned = plan_of(run_of(source, tmp_path, ["red", "blue"]))
    rows = len(pq.read_table(tmp_path / "embeddings/wave-00000.parquet"))
    expected = {"new": ["blue"], "removed": ["green"], "renamed": [], "vectors": rows}
    assert planned["changes"] == expected
    assert planned["images"]["wanted"] == config.retrieve.archive_size
    assert written(tmp_path) == before


def test_more_categories_refine_after_a_veto_redraws_that_category_alone(
    source: str, tmp_path: Path
) -> None:
    config = run_of(source, tmp_path, ["red", "green"])
    for verb in (verbs.curate, refine.refine):
        verb(config, SILENT)
    before = written(tmp_path)
    unwanted = Archive.open(tmp_path / "archive").entries("red")["sample_id"][0].as_py()
    vetoed = run_of(source, tmp_path, ["red", "green"], red={"vetoed": [unwanted]})
    for verb in (verbs.curate, refine.refine, train.train):
        verb(vetoed, SILENT)
    after = written(tmp_path)
    experts = {name for name in before if name.startswith("experts/") and "0" in name}
    assert {name for name in experts if after[name] != before[name]} == {"experts/00001-red.pt"}


def test_more_categories_failed_build_leaves_nothing_that_passes_for_finished(
    source: str, web: toys.SmallWeb, tmp_path: Path
) -> None:
    config = run_of(source, tmp_path, ["red"])
    verbs.curate(config, SILENT)
    funnels = (tmp_path / "funnels.json").read_text()
    with pytest.raises(TooManyFailuresError, match=r"none of .* is ok.*'blocked'"):
        verbs.curate(
            run_of(source, tmp_path, ["red"], red={"blocked_hosts": ["127.0.0.1"]}), SILENT
        )
    web.hits.clear()
    assert "skipped" not in verbs.curate(config, SILENT)
    assert (tmp_path / "funnels.json").read_text() == funnels
    assert not web.hits


def test_more_categories_example_that_is_another_picture_now_is_asked_for_anew(
    source: str, tmp_path: Path
) -> None:
    example = tmp_path / "example.jpg"
    example.write_bytes(toys.jpeg(toys.disk(toys.COLORS["blue"], 9000)))
    rules = {"examples": [str(example)] * 3}
    config = run_of(source, tmp_path / "run", ["anything"], anything=rules)
    verbs.curate(config, SILENT)
    assert verbs.curate(config, SILENT)["skipped"]
    example.write_bytes(toys.jpeg(toys.disk(toys.COLORS["red"], 9000)))
    assert "skipped" not in verbs.curate(config, SILENT)
    kept = Archive.open(tmp_path / "run/archive").entries("anything")["url"].to_pylist()
    assert all("/red" in url for url in kept)


def test_more_categories_evaluation_of_another_training_does_not_hold(
    source: str, tmp_path: Path
) -> None:
    one, two = run_of(source, tmp_path, ["red"]), run_of(source, tmp_path, ["red", "green"])
    for config in (one, two):
        for verb in (verbs.curate, refine.refine, train.train):
            verb(config, SILENT)
        if config is one:
            with open_run(tmp_path) as ledger:
                job = VerbRun(one, ledger, SILENT)
                job.start("evaluate")
                ledger.finish("evaluate", {"miou": 0.5})
                assert job.finished("evaluate") == {"miou": 0.5}
    for verb in (verbs.curate, refine.refine, train.train):
        verb(one, SILENT)
    with open_run(tmp_path) as ledger:
        assert VerbRun(one, ledger, SILENT).finished("evaluate") is None
