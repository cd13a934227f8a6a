"""The report's picture sections: masks of the archives, and the best and worst scenes."""

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
"""Largest number of categories in the gallery; a longer list is sampled evenly in label order."""

GALLERY_IMAGES = 3
"""Number of images per category in the gallery, sampled evenly over the ranks."""

OPEN_CATEGORIES = 6
"""Number of categories in the gallery that are shown unfolded."""

GALLERY_HEIGHT = 160
"""Height of a picture in the gallery, in pixels."""

SCENE_WIDTH = 380
"""Width of a picture in a row of scenes, in pixels."""

TINT = 0.35
"""Opacity of the mask's color over the image."""

PSEUDO_COLOR, REFINED_COLOR = (245, 158, 11), (20, 184, 166)
"""RGB colors of the pseudo-masks and of the experts' masks; report.css has the same colors."""


def gallery(run: Run) -> Html:
    """Return images of the archives with their pseudo-masks and, once drawn, the experts' masks."""
    if run.archive is None:
        return section("Gallery", note("The archives have not been built yet."))
    categories = run.archive.categories
    shown = [categories[i] for i in _even_steps(len(categories), GALLERY_CATEGORIES)]
    rows = [_category(run, category) for category in shown]
    legend = element(
        "p", chip("pseudo"), "pseudo-mask (before the expert)", Html("&emsp;"), chip("refined"),
        "mask of the category expert", class_="note",
    )  # fmt: skip
    notes = [legend]
    if not any(run.archive.refined_path(category.name).exists() for category in shown):
        refine = element("code", "namedmask refine")
        notes.append(note("The experts have not drawn any masks yet. Run ", refine, "."))
    if len(shown) < len(categories):
        sample = f"{len(shown)} of {len(categories):,} categories are shown, sampled evenly."
        notes.append(note(sample))
    more = [folded(f"Show {len(rows) - OPEN_CATEGORIES} more", *rows[OPEN_CATEGORIES:])]
    tail = more if len(rows) > OPEN_CATEGORIES else []
    return section("Gallery", *notes, *rows[:OPEN_CATEGORIES], *tail)


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
            f"image {row['sample_id']} in the archive of '{row['category']}' cannot be decoded: "
            f"{error}. The archive is damaged; run 'build' with another run.out."
        ) from error
    title = f"{row['category']}, rank {row['rank']}"
    panels = [_masked(image, row["mask"], PSEUDO_COLOR, f"{title}, pseudo-mask")]
    if row.get("refined_mask") is not None:
        panels.append(_masked(image, row["refined_mask"], REFINED_COLOR, f"{title}, expert's mask"))
    return figure(f"rank {row['rank']}, cosine {row['score']:.3f}", *panels)


def _masked(
    image: np.ndarray, counts: bytes, color: tuple[int, int, int], description: str
) -> Html:
    """Return an `img` element: the image with its mask (RLE `counts`) tinted and outlined."""
    height, width = image.shape[:2]
    mask = images.decode_mask(counts, height, width)
    width = max(1, min(3 * GALLERY_HEIGHT, round(width * GALLERY_HEIGHT / height)))
    drawn = images.resize(image, GALLERY_HEIGHT, width)
    mask = images.resize(mask, GALLERY_HEIGHT, width, nearest=True)
    drawn[mask] = (1 - TINT) * drawn[mask] + TINT * np.array(color)
    draw_outline(drawn, mask, color)
    return picture(drawn, description)


def scenes(run: Run) -> Html:
    """Return the benchmark's best and worst scenes, each as image, ground truth and prediction."""
    if not run.evaluation:
        return section("Scenes", note("The segmenter has not been evaluated yet."))
    kept = [scene for scene in run.evaluation["scenes"] if "prediction" in scene]
    if not kept or run.config is None:
        return section("Scenes", note("The run folder does not hold any predictions."))
    benchmark = _benchmark_of(run.config)
    if isinstance(benchmark, str):
        return section("Scenes", note(f"The benchmark's images cannot be read: {benchmark}"))
    best, worst = shown_scenes(kept, (len(kept) + 1) // 2)
    parts = [
        note("Each row shows the image, the truth and the prediction. Ignored pixels are white."),
    ]
    for title, group in (("Best", best), ("Worst", worst)):
        if group:
            figures = (_scene(run, benchmark, scene) for scene in group)
            parts += [element("h3", title), element("div", *figures, class_="scenes")]
    return section("Scenes", *parts)


def _benchmark_of(config: Config) -> Benchmark | str:
    """Return the run's benchmark, or the reason why it cannot be opened.

    A report is often written on a machine that does not have the benchmark, so this is no error.
    """
    try:
        return open_benchmark(config.evaluate)
    except InputError as error:
        return str(error)


def _scene(run: Run, benchmark: Benchmark, scene: Mapping[str, Any]) -> Html:
    assert run.evaluation is not None
    name, image, truth = benchmark[scene["index"]]
    if name != scene["name"]:
        raise InputError(
            f"image {scene['index']} of the benchmark is '{name}', but was '{scene['name']}' when "
            f"{run.folder}/evaluation.json was written. Restore the benchmark, or evaluate again."
        )
    names = run.evaluation["names"]
    predicted = read_label_map(run.folder / layout.LABEL_MAPS / scene["prediction"])
    height = max(1, round(image.shape[0] * SCENE_WIDTH / image.shape[1]))
    image = images.resize(image, height, SCENE_WIDTH)
    panels = [picture(image, f"{name}, picture")]
    for title, labels in (
        ("truth", label_ids(benchmark.names, names)[truth]),
        ("prediction", predicted),
    ):
        large = images.resize(labels, height, SCENE_WIDTH, nearest=True)
        panels.append(picture(overlay(image, large, names), f"{name}, {title}"))
    return figure(f"{name}: mean IoU {number(scene['miou'], 3)}", *panels)


def _even_steps(count: int, wanted: int) -> list[int]:
    result: list[int] = np.unique(
        np.linspace(0, count - 1, min(count, wanted)).astype(int)
    ).tolist()
    return result
