"""The sections of the report that are pictures: the archives' masks, the best and worst scenes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from namedmask import images
from namedmask.archive.store import ArchivedCategory
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.label_maps import Benchmark, read_label_map
from namedmask.evaluate.scorer import label_ids, shown_scenes
from namedmask.images.overlay import draw_outline, overlay
from namedmask.report.page import (
    Html,
    chip,
    element,
    figure,
    folded,
    joined,
    note,
    number,
    picture,
    section,
)
from namedmask.report.run_folder import Run
from namedmask.run import layout

GALLERY_CATEGORIES = 40
"""Categories in the gallery; of more, this many in even steps of the label order."""

GALLERY_IMAGES = 3
"""Images of each, in even steps of the ranks."""

OPEN_CATEGORIES = 6
"""Categories of the gallery that are shown without asking."""

GALLERY_HEIGHT = 160
SCENE_WIDTH = 380
"""Pixels of a picture inside the page."""

TINT = 0.35
PSEUDO_COLOR = (245, 158, 11)
REFINED_COLOR = (20, 184, 166)


def gallery(run: Run) -> Html:
    """Return images of the archives with the pseudo-mask, and beside it the expert's."""
    if run.archive is None:
        return section("Gallery", note("No archive yet, so there is nothing to show."))
    all_of_them = run.archive.categories
    shown = [all_of_them[i] for i in _even_steps(len(all_of_them), GALLERY_CATEGORIES)]
    rows = [_category(run, one) for one in shown]
    legend = element(
        "p", chip("pseudo"), "pseudo-mask, before the expert", Html("&emsp;"), chip("refined"),
        "the expert's mask", class_="note",
    )  # fmt: skip
    told = [legend]
    if not any(run.archive.refined_path(one.name).exists() for one in shown):
        told.append(note("No expert's masks. Run ", element("code", "namedmask refine"), "."))
    if len(shown) < len(all_of_them):
        told.append(note(f"{len(shown)} of {len(all_of_them):,} categories, in even steps."))
    more = [folded(f"The other {len(rows) - OPEN_CATEGORIES}", *rows[OPEN_CATEGORIES:])]
    tail = more if len(rows) > OPEN_CATEGORIES else []
    return section("Gallery", *told, *rows[:OPEN_CATEGORIES], *tail)


def _category(run: Run, category: ArchivedCategory) -> Html:
    assert run.archive is not None
    entries = run.archive.entries(category.name)
    rows = entries.take(_even_steps(entries.num_rows, GALLERY_IMAGES)).to_pylist()
    title = element("h3", category.name, element("small", f"{category.count:,} images"))
    pictures = element("div", *map(_entry, rows), class_="gallery")
    return joined((title, pictures))


def _entry(row: Mapping[str, Any]) -> Html:
    try:
        image = images.decode(row["image"])
    except images.BadImage as error:
        raise InputError(
            f"the archive's image {row['sample_id']} of '{row['category']}' cannot be decoded: "
            f"{error}. Run 'build' into another run.out."
        ) from error
    what = f"{row['category']}, rank {row['rank']}"
    panels = [_masked(image, row["mask"], PSEUDO_COLOR, f"{what}, pseudo-mask")]
    if row.get("refined_mask") is not None:
        panels.append(_masked(image, row["refined_mask"], REFINED_COLOR, f"{what}, expert's mask"))
    return figure(f"rank {row['rank']}, cosine {row['score']:.3f}", *panels)


def _masked(
    image: np.ndarray, counts: bytes, color: tuple[int, int, int], description: str
) -> Html:
    """Return the image with its mask (RLE counts) tinted and outlined, as a part of the page."""
    height, width = image.shape[:2]
    mask = images.decode_mask(counts, height, width)
    width = max(1, min(3 * GALLERY_HEIGHT, round(width * GALLERY_HEIGHT / height)))
    drawn = images.resize(image, GALLERY_HEIGHT, width)
    mask = images.resize(mask, GALLERY_HEIGHT, width, nearest=True)
    drawn[mask] = (1 - TINT) * drawn[mask] + TINT * np.array(color)
    draw_outline(drawn, mask, color)
    return picture(drawn, description)


def scenes(run: Run) -> Html:
    """Return the best and the worst pictures of the benchmark: picture, truth, prediction."""
    if not run.evaluation:
        return section("Scenes", note("No evaluation yet, so there is nothing to show."))
    kept = [scene for scene in run.evaluation["scenes"] if "prediction" in scene]
    if not kept or run.config is None:
        return section("Scenes", note("The run folder keeps no predictions."))
    benchmark = _benchmark_of(run.config)
    if isinstance(benchmark, str):
        return section("Scenes", note(f"The benchmark's pictures cannot be read: {benchmark}"))
    best, worst = shown_scenes(kept, (len(kept) + 1) // 2)
    parts = [note("Each row: the picture, the truth, the prediction. Ignored pixels are white.")]
    for title, group in (("Best", best), ("Worst", worst)):
        if group:
            figures = (_scene(run, benchmark, scene) for scene in group)
            parts += [element("h3", title), element("div", *figures, class_="scenes")]
    return section("Scenes", *parts)


def _benchmark_of(config: Config) -> Benchmark | str:
    """Return the run's benchmark, or why it cannot be opened: it may lie on another machine."""
    try:
        return open_benchmark(config.evaluate)
    except InputError as error:
        return str(error)


def _scene(run: Run, benchmark: Benchmark, scene: Mapping[str, Any]) -> Html:
    assert run.evaluation is not None
    name, image, truth = benchmark[scene["index"]]
    if name != scene["name"]:
        raise InputError(
            f"picture {scene['index']} of the benchmark is '{name}'; {run.folder}/evaluation.json "
            f"was made when it was '{scene['name']}'. Restore the benchmark, or evaluate again."
        )
    names = run.evaluation["names"]
    predicted = read_label_map(run.folder / layout.LABEL_MAPS / scene["prediction"])
    height = max(1, round(image.shape[0] * SCENE_WIDTH / image.shape[1]))
    image = images.resize(image, height, SCENE_WIDTH)
    panels = [picture(image, f"{name}, picture")]
    for what, labels in (
        ("truth", label_ids(benchmark.names, names)[truth]),
        ("prediction", predicted),
    ):
        large = images.resize(labels, height, SCENE_WIDTH, nearest=True)
        panels.append(picture(overlay(image, large, names), f"{name}, {what}"))
    return figure(f"{name}: mean IoU {number(scene['miou'], 3)}", *panels)


def _even_steps(count: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(int)).tolist()
