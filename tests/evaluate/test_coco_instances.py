"""Instances as other programs write them: what cannot be drawn is left out and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from namedmask.config import EvaluateConfig
from namedmask.errors import InputError
from namedmask.evaluate.benchmarks import coco2017
from namedmask.evaluate.scorer import Scorer, score_benchmark
from tests.trees import coco_tree

CAT, COUCH = 17, 63
POLYGON = [[1, 1, 25, 1, 25, 15, 1, 15]]


@pytest.fixture(name="coco_tree")
def _coco_tree(tmp_path: Path) -> Path:
    return coco_tree(tmp_path)


def edit(tree: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    file = tree / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return tree


def entry(**values: Any) -> dict[str, Any]:
    usual = {"image_id": 71, "category_id": CAT, "area": 9, "iscrowd": 0, "segmentation": POLYGON}
    return usual | values


BAD = {
    "no polygon": entry(segmentation=[]),
    "two points": entry(segmentation=[[1, 1, 5, 5]]),
    "not a number": entry(segmentation=[[1, 1, math.nan, 5, 5, 9]]),
    "infinite": entry(segmentation=[[1, 1, math.inf, 5, 5, 9]]),
    "far away": entry(segmentation=[[5e7, 5e7, 1, 1, 9, 5]]),
    "null": entry(segmentation=None),
    "number": entry(segmentation=7),
    "text": entry(segmentation="1 1 5 5 9 9"),
    "crowd without size": entry(iscrowd=1, segmentation={"counts": [600]}),
    "crowd without counts": entry(iscrowd=1, segmentation={"size": [20, 30]}),
    "crowd of another size": entry(iscrowd=1, segmentation={"size": [30, 20], "counts": [600]}),
    "crowd of too many pixels": entry(
        iscrowd=1, segmentation={"size": [20, 30], "counts": [10**30]}
    ),
    "unknown photo": entry(image_id=99),
    "unknown category": entry(category_id=12),
    "nothing": {},
    "no object": None,
    "no category": {key: value for key, value in entry().items() if key != "category_id"},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_object_that_cannot_be_drawn_is_left_out_and_counted(
    coco_tree: Path, bad: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = coco2017(coco_tree, "val")
    assert before.objects_left_out == 0 and not caplog.text
    tree = edit(coco_tree, lambda content: content["annotations"].extend([bad, bad]))
    benchmark = coco2017(tree, "val")
    assert benchmark.objects_left_out == 2
    assert "2 of 6 objects cannot be drawn and are left out; annotation 5: " in caplog.text
    for index in range(2):
        assert np.array_equal(benchmark[index][2], before[index][2])


def test_scores_say_how_many_objects_were_left_out(coco_tree: Path) -> None:
    config = EvaluateConfig(benchmark="coco2017", root=str(coco_tree), split="val")

    def scores() -> dict[str, Any]:
        benchmark = coco2017(coco_tree, "val")
        scorer = Scorer(
            lambda image: np.zeros(image.shape[:2], np.uint16), benchmark.names, benchmark, config
        )
        return score_benchmark(partial(map, scorer), benchmark.names, benchmark, config)

    assert "objects_left_out" not in scores()
    edit(coco_tree, lambda content: content["annotations"].append(BAD["far away"]))
    assert scores()["objects_left_out"] == 1


@pytest.mark.parametrize("area", [None, math.nan, "large", -5, [], "absent"])
def test_object_without_an_area_lies_above_larger_and_below_smaller_ones(
    coco_tree: Path, area: Any
) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content["annotations"]:
            item["area"] = area
            if area == "absent":
                del item["area"]

    before = coco2017(coco_tree, "val")[0][2]
    benchmark = coco2017(edit(coco_tree, change), "val")
    assert benchmark.objects_left_out == 0
    cat, couch = (1 + benchmark.names.index(name) for name in ("cat", "couch"))
    assert np.array_equal(benchmark[0][2] == cat, before == cat)
    assert (benchmark[0][2] == couch).any()


@pytest.mark.parametrize("form", [str, float])
def test_ids_and_sizes_as_text_or_fractions_are_the_numbers(coco_tree: Path, form: type) -> None:
    def change(content: dict[str, Any]) -> None:
        for photo in content["images"]:
            photo["height"], photo["width"] = form(photo["height"]), form(photo["width"])
        for item in content["annotations"]:
            item["image_id"] = form(item["image_id"])
            item["iscrowd"] = form(item["iscrowd"])
            item["category_id"] = (
                form(item["category_id"]) if form is float else item["category_id"]
            )

    if form is str:
        form = lambda value: str(int(value))  # noqa: E731
    before = coco2017(coco_tree, "val")[0][2]
    benchmark = coco2017(edit(coco_tree, change), "val")
    assert before.any() and np.array_equal(benchmark[0][2], before)
    assert benchmark.objects_left_out == 0


@pytest.mark.parametrize("side", [None, "x", 0, -20, 20.5, math.nan, 10**12, [20], {}])
def test_photo_of_an_impossible_size_is_one_line(coco_tree: Path, side: Any) -> None:
    benchmark = coco2017(
        edit(coco_tree, lambda content: content["images"][0].update(height=side)), "val"
    )
    with pytest.raises(InputError, match=r"photo 000000000001\.jpg has height and width"):
        _ = benchmark[0]
    assert not benchmark[1][2].any()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "7", '"x"', "[" * 100_000, '{"categories": 5}', '{"categories": [5]}',
     '{"categories": [{"id": null}]}', '{"categories": [], "images": [{"id": 1}]}',
     '{"categories": [], "images": [{"id": 1, "file_name": []}], "annotations": []}',
     '{"categories": [], "images": [], "annotations": 5}'],
)  # fmt: skip
def test_file_of_something_else_is_one_line(coco_tree: Path, text: str) -> None:
    (coco_tree / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(InputError, match=r"instances_val2017\.json does not hold COCO instances"):
        coco2017(coco_tree, "val")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_file_in_another_encoding_of_unicode_is_read(coco_tree: Path, encoding: str) -> None:
    before = coco2017(coco_tree, "val")[0][2]
    file = coco_tree / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text(), encoding=encoding)
    assert np.array_equal(coco2017(coco_tree, "val")[0][2], before)


ODD = (None, "", "71", "x", 0, -1, 1, 2, 71, 71.0, 71.5, 1e300, math.nan, math.inf, True, [], {},
       [[]], [POLYGON], POLYGON, POLYGON[0], {"size": [20, 30], "counts": [600]},
       {"size": [20, 30], "counts": "x"}, [[math.nan] * 6], [[5e7, 1, 1, 1, 2, 2]],
       10**30)  # fmt: skip


def test_generated_objects_are_drawn_or_counted(coco_tree: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        made = []
        for _ in range(4):
            item = entry(category_id=int(rng.choice([CAT, COUCH])))
            for key in rng.choice(list(item), rng.integers(1, 3), replace=False):
                item[key] = ODD[rng.integers(len(ODD))]
            made.append(item)

        def change(content: dict[str, Any], made: list[Any] = made) -> None:
            content["annotations"] = made

        benchmark = coco2017(edit(coco_tree, change), "val")
        labels = benchmark[0][2]
        assert labels.shape == (20, 30) and 0 <= benchmark.objects_left_out <= 4
        if benchmark.objects_left_out == 4:
            assert not labels.any()
