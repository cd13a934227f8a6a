"""The report of a whole run folder, of half of one, and of almost none, read by an HTML parser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import images, schema
from namedmask.archive.store import Accepted, Archive, write_archive
from namedmask.categories import CategorySet
from namedmask.config import EvaluateConfig
from namedmask.errors import InputError
from namedmask.report import write_report
from namedmask.report.page import Html, bar_chart, element, stacked_bar
from namedmask.run.label_ids import Label
from namedmask.segmenter.deeplab import deeplabv3plus_tiny
from namedmask.storage.files import write_json, write_parquet
from tests.html_page import Page
from tests.scores import evaluate

CATEGORIES = CategorySet("zoo", ("zebra", "crane <b>", "mug"), ("zebra", "crane bird", "mug"))


def accepted(names, queries, tables) -> list[Accepted]:
    """Return what makes up the archives of these categories."""
    return [
        Accepted(Label(label_id, name, query), str(label_id), lambda table=table: [table])
        for label_id, (name, query, table) in enumerate(
            zip(names, queries, tables, strict=True), start=1
        )
    ]


def photo(seed: int, height: int = 60, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright box on a smooth ground, and its mask."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(20, 120, (3, 4, 3), dtype=np.uint8)
    image, mask = images.resize(ground, height, width), np.zeros((height, width), bool)
    top, left = rng.integers(5, 20, 2)
    mask[top : top + 30, left : left + 40] = True
    image[mask] = rng.integers(130, 256, 3)
    return image, mask


def entries_of(label_id: int, count: int) -> pa.Table:
    rows = []
    for rank in range(count):
        image, mask = photo(100 * label_id + rank)
        row = {
            "category": CATEGORIES.names[label_id - 1], "label_id": label_id, "rank": rank,
            "score": 0.4 - rank / 100, "sample_id": f"{100 * label_id + rank:020x}",
            "url": "http://a.example/1", "image": images.encode_jpeg(image), "image_height": 60,
            "image_width": 80, "mask": images.encode_mask(np.roll(mask, 4, axis=1)),
        }  # fmt: skip
        rows.append(row)
    return pa.Table.from_pylist(rows, schema.ARCHIVE)


def write_refined(archive: Archive) -> None:
    for category in archive.categories:
        masks = [photo(100 * category.label_id + rank)[1] for rank in range(category.count)]
        table = archive.entries(category.name).set_column(
            9, "mask", pa.array([images.encode_mask(mask) for mask in masks])
        )
        path = archive.refined_path(category.name)
        path.parent.mkdir(exist_ok=True)
        write_parquet(table.select(schema.REFINED.names), path)


def write_benchmark(root: Path, count: int) -> None:
    for kind in ("images", "labels"):
        (root / "test" / kind).mkdir(parents=True)
    quoted = ", ".join(f'"{name}"' for name in reversed(CATEGORIES.names))
    (root / "benchmark.toml").write_text(f"names = [{quoted}]\nignore = 255\n")
    for index in range(count):
        image, mask = photo(index)
        label = np.where(mask, 1 + index % 3, 0).astype(np.uint8)
        label[:4] = 255
        stem = f"{index:04d}.png"
        (root / "test" / "images" / stem).write_bytes(images.encode_png(image))
        (root / "test" / "labels" / stem).write_bytes(images.encode_png(label))


def write_funnels(run: Path) -> None:
    rows = {"ok": 60, "http_404": 12, "not_an_image": 5, "unsafe": 3}
    by_category = {
        "zebra": {"ok": 8, "has_face": 2},
        "crane <b>": {"ok": 5, "near_duplicate": 4, "no_mask": 1},
        "mug": {"ok": 8, "surplus": 2},
    }
    counts = {"ok": 21, "near_duplicate": 4, "has_face": 2, "surplus": 2, "no_mask": 1}
    funnels = {"rows_in": 80, "rows_by_status": rows, "candidates_in": 30}
    funnels |= {"candidates_by_status": counts, "by_category": by_category}
    write_json(run / "funnels.json", funnels)


def write_evaluation(run: Path, benchmark_root: Path) -> None:
    from namedmask.evaluate.benchmarks import folder

    model = deeplabv3plus_tiny(4)
    split = EvaluateConfig(split="test")
    benchmark = folder(benchmark_root, "test")
    result = evaluate(model, CATEGORIES.names, benchmark, split, out=run / "evaluation")
    write_json(run / "evaluation.json", result)


SUMMARY = {
    "seed": 0, "archive_fill": 0.625, "images_kept": 21, "mean_per_category": 7.0,
    "mean_height": 60.0, "mean_width": 80.0, "pseudo_mask_iou": 0.71, "expert_mask_iou": 0.78,
    "miou": 0.41, "miou_nearest_color": 0.15, "pixel_accuracy": 0.83, "near_dup_recall": 0.9,
    "retrieval_precision": 0.97, "rows_in": 80,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """Return a finished run of the demo, beside the benchmark it was judged on."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    run.mkdir()
    names = ("embed", "build", "refine", "train", "evaluate")
    verbs = {name: {"finished": True} for name in names}
    write_json(run / "run.json", {"format_version": 2, "verbs": verbs})
    root = run.parent / "scenes"
    (run / "run.toml").write_text(
        f'[run]\nout = "{run}"\n[categories]\nnames = ["<script>alert(1)</script>"]\n'
        f'[evaluate]\nbenchmark = "folder"\nroot = "{root}"\nsplit = "test"\n'
    )
    write_funnels(run)
    tables = [entries_of(1, 8), entries_of(2, 5), entries_of(3, 8)]
    write_refined(
        write_archive(
            run / "archive", accepted(CATEGORIES.names, CATEGORIES.queries, tables), wanted=8
        )
    )
    write_benchmark(root, 9)
    write_evaluation(run, root)
    write_json(run / "summary.json", SUMMARY)
    write_json(run / "timings.json", {"fetch": 12.5, "embed": 30.0, "train": 65.25})
    return run


@pytest.fixture
def run(whole_run, tmp_path) -> Path:
    """Return a copy to take parts away from."""
    return Path(shutil.copytree(whole_run, tmp_path / "demo"))


def page_of(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole_page(whole_run) -> Page:
    return page_of(whole_run)


def test_page_is_whole_and_asks_for_nothing_from_outside(whole_page) -> None:
    assert whole_page.text.startswith("<!DOCTYPE html>")
    assert whole_page.tags.count("main") == 1 and "script" not in whole_page.tags
    assert "link" not in whole_page.tags and "iframe" not in whole_page.tags
    assert all(one.startswith("data:image/jpeg;base64,") for one in whole_page.addresses)
    assert "url(" not in whole_page.text and "@import" not in whole_page.text
    assert "prefers-color-scheme: dark" in whole_page.text
    assert len(whole_page.text) < 3_000_000
    assert all(one["alt"] for one in whole_page.images)


def test_names_and_config_are_text_and_never_markup(whole_page) -> None:
    assert "crane <b>" in whole_page.prose and "<script>alert(1)</script>" in whole_page.prose
    assert "crane <b>" not in whole_page.text and "alert(1)</script>" not in whole_page.text


def test_headline_shows_bars_and_the_papers_numbers(whole_page) -> None:
    for number in ("425,618", "463", "326", "360.5"):
        assert f"paper on LAION: {number}" in whole_page.prose
    assert "0.41 mean IoU bar ≥ 0.35, ≥ 2 × miou_nearest_color: met" in whole_page.prose
    assert "0.625 fill of the smallest archive bar ≥ 1: missed" in whole_page.prose
    assert "near_dup_recall 0.9 ≥ 0.95 missed" in whole_page.prose


def test_funnels_show_every_status_and_that_they_add_up(whole_page) -> None:
    assert "All 80 rows are counted below, each under its status." in whole_page.prose
    assert "All 30 candidates are counted below, each under its status." in whole_page.prose
    assert "http_404 12 15.0%" in whole_page.prose and "has_face 2 6.7%" in whole_page.prose


def test_funnel_that_does_not_add_up_says_so(run) -> None:
    funnels = json.loads((run / "funnels.json").read_text()) | {"rows_in": 81}
    write_json(run / "funnels.json", funnels)
    assert "There are 81 rows, but the counts below add up to 80." in page_of(run).prose


def test_funnel_of_names_without_addresses_doubts_the_name_server(run) -> None:
    funnels = json.loads((run / "funnels.json").read_text())
    doubt = "The host names of 38 of 60 requested urls could not be resolved."
    for lost, said in ((38, True), (30, False)):
        rows = {"ok": 58 - lost, "dns": lost - 20, "dns_failed": 20, "http_404": 2, "unsafe": 20}
        write_json(run / "funnels.json", funnels | {"rows_by_status": rows})
        assert (doubt in page_of(run).prose) is said


def test_archives_show_fill_query_and_reasons(whole_page) -> None:
    assert "2 of 3 archives are full." in whole_page.prose
    assert "crane <b> ← “crane bird” 5 of 8 near_duplicate 4, no_mask 1" in whole_page.prose


def test_gallery_shows_masks_before_and_after_the_expert(whole_page) -> None:
    before, after = whole_page.pictures("pseudo-mask"), whole_page.pictures("expert's mask")
    assert len(before) == len(after) == 9
    for one, other in zip(before, after, strict=True):
        assert one.shape == other.shape == (160, 213, 3)
        assert np.abs(one.astype(int) - other).mean() > 1


def test_charts_and_scenes_show_the_evaluation(whole_page, whole_run) -> None:
    result = json.loads((whole_run / "evaluation.json").read_text())
    assert "On 9 images of scenes (split test), the mean IoU is" in whole_page.prose
    for name, iou in result["iou"].items():
        assert iou is None or f"{name} {iou:.3f}" in whole_page.prose
    pictures = [whole_page.pictures(f", {what}") for what in ("picture", "truth", "prediction")]
    assert [len(group) for group in pictures] == [9, 9, 9]
    truth = pictures[1][0]
    assert (truth[2:12] > 240).all()  # the ignored strip is white
    assert (pictures[0][0][2:12] < 240).any()


def test_timings_and_configuration_are_there(whole_page) -> None:
    assert "train 65.2 s" in whole_page.prose and "fetch 12.5 s" in whole_page.prose
    assert 'benchmark = "folder"' in whole_page.prose


def test_run_without_demo_numbers_is_summed_up_from_its_files(run) -> None:
    (run / "summary.json").unlink()
    prose = page_of(run).prose
    assert "21 images kept paper on LAION: 425,618" in prose
    assert "7 images per category paper on LAION: 463" in prose
    assert "60 mean height, pixels" in prose and "80 mean width, pixels" in prose


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("evaluation.json", "evaluation", "summary.json"), "Run namedmask evaluate ."),
        (("refined",), "The experts have not drawn any masks yet. Run namedmask refine ."),
        (
            ("archive", "summary.json"),
            "The archives have not been built yet. Run namedmask build .",
        ),
        (("funnels.json",), "No metadata has been read yet. Run namedmask embed ."),
        (("timings.json",), "No stage has finished yet."),
        (("run.toml",), "The run folder has no run.toml."),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_unfinished_run_says_what_is_missing(run, missing, words) -> None:
    for name in missing:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words in page_of(run).prose


def test_lost_prediction_is_named(run) -> None:
    lost = min((run / "evaluation").iterdir())
    lost.unlink()
    with pytest.raises(InputError, match=f"{lost.name} cannot be read"):
        write_report(run)


def test_run_that_has_just_begun_gives_a_page(tmp_path) -> None:
    write_json(tmp_path / "run.json", {"format_version": 2, "verbs": {}})
    page = page_of(tmp_path)
    assert "There are no numbers yet" in page.prose and "embed: not finished" in page.prose
    assert not page.images


def test_benchmark_that_has_moved_away_is_told(run, whole_run) -> None:
    text = (run / "run.toml").read_text().replace("/scenes", "/gone")
    (run / "run.toml").write_text(text)
    page = page_of(run)
    assert "The benchmark's images cannot be read" in page.prose
    assert not page.pictures(", truth")


def test_benchmark_that_has_changed_is_refused(run) -> None:
    result = json.loads((run / "evaluation.json").read_text())
    for scene in result["scenes"]:
        scene["name"] = f"other{scene['index']}"
    write_json(run / "evaluation.json", result)
    with pytest.raises(InputError, match=r"Restore the benchmark, or evaluate again"):
        write_report(run)


def test_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"is not a run folder: run\.json is missing"):
        write_report(tmp_path)


def test_large_run_folds_what_is_long(tmp_path) -> None:
    names = tuple(f"thing {number}" for number in range(70))
    write_json(tmp_path / "run.json", {"format_version": 2, "verbs": {}})
    one = entries_of(1, 1)
    write_archive(tmp_path / "archive", accepted(names, names, [one] * 70), wanted=2)
    page = page_of(tmp_path)
    assert "40 of 70 categories are shown, sampled evenly." in page.prose
    assert "Show 10 more" in page.prose and "Show 34 more" in page.prose
    assert len(page.images) == 40


def test_same_run_gives_the_same_bytes(whole_run, whole_page) -> None:
    assert write_report(whole_run).read_text(encoding="utf-8") == whole_page.text


def test_elements_escape_text_and_attributes() -> None:
    made = element("p", "a < b", Html("<i></i>"), title='"x"', class_="y")
    assert made == '<p title="&quot;x&quot;" class="y">a &lt; b<i></i></p>'


def test_stacked_bar_widths_are_the_shares() -> None:
    bar = stacked_bar({"ok": 3, "timeout": 0, "has_face": 1}, total=8)
    assert "width:37.500%" in bar and "width:12.500%" in bar and bar.count("<i ") == 2


def test_bar_chart_lengths_follow_the_values() -> None:
    chart = bar_chart({"a": 1.0, "b": 0.5, "a very long name that does not fit at all": 0.0}, 0.5)
    assert (
        'width="510.0"' in chart
        and 'width="255.0"' in chart
        and "a very long name that do" in chart
    )
    Page(chart)
