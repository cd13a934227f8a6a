"""What the segmenter is held against: MaskCLIP and ReCo, judged on the same split in the same way.

Neither knows background, so each is judged with a threshold (sweep.py), and what is written down
says where that was chosen: a threshold that the judged split itself chose flatters.

Method: thresholds 0.25 and 0.9 throughout, both the best on VOC2012 train; categories are those of
the benchmark. To add one: a line in `BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from namedmask.archive.store import Archive
from namedmask.categories import SHIPPED, category_set_of, load_category_set, slug, templates_of
from namedmask.config import Config
from namedmask.errors import InputError, unknown_name
from namedmask.evaluate import maskclip, reco
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.label_maps import Benchmark
from namedmask.evaluate.scorer import Scorer, scene_ranges, score_benchmark
from namedmask.evaluate.thresholds import (
    Tally,
    best_of,
    curve_of,
    read_sweep,
    tally,
    with_background,
)
from namedmask.report.curves import sweep_chart
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun
from namedmask.run.layout import MANIFEST
from namedmask.run.ledger import open_run
from namedmask.run.progress import Progress, Step
from namedmask.schema.columns import IGNORE, LABEL_DTYPE
from namedmask.storage import Place
from namedmask.storage.files import digest, write_file, write_json

T = TypeVar("T")

Probabilities: TypeAlias = Callable[[np.ndarray], Tensor]
"""Image (H, W, 3) uint8 RGB → probabilities of each category, (C, H, W) float32."""

PAPERS_SPLIT = {"benchmark": "voc2012", "split": "train"}
"""Where the paper chose its thresholds. Method."""


@dataclass(frozen=True)
class Baseline:
    """A rival: its threshold in the paper, the keys it follows, and how it is opened."""

    threshold: float
    settings: tuple[str, ...]
    open: Callable[[Config, Sequence[str], np.ndarray | None], Probabilities]
    needs_archive: bool = False


def _open_maskclip(config: Config, queries: Sequence[str], _: np.ndarray | None) -> Probabilities:
    clip = maskclip.DenseClip(config.baselines, config.evaluate.device)
    return maskclip.MaskClip(clip, queries, templates_of(config.categories), config.baselines)


def _open_reco(config: Config, queries: Sequence[str], vectors: np.ndarray | None) -> Probabilities:
    assert vectors is not None
    places = reco.Places(config.baselines, config.evaluate.device, templates_of(config.categories))
    return reco.ReCo(places, queries, vectors, config.baselines)


BASELINES = {
    "maskclip": Baseline(maskclip.THRESHOLD, maskclip.SETTINGS, _open_maskclip),
    "reco": Baseline(reco.THRESHOLD, reco.SETTINGS, _open_reco, needs_archive=True),
}


def evaluate_baseline(
    name: str,
    config: Config,
    progress: Progress,
    executor: Executor,
    *,
    sweep: bool = False,
    threshold: float | None = None,
    threshold_from: Place | None = None,
) -> dict[str, Any]:
    """Return a baseline's scores on the benchmark, as `evaluate` does, without its scenes.

    `threshold` is what was judged with, `chosen_on` the {benchmark, split} that chose it (None:
    nobody knows), `chosen_here` whether that is the split that is judged. With `sweep`, `curve`
    comes on top, {threshold, miou, pixel_accuracy} for all twenty, and the scores are those of the
    best. It is written to `baselines` in the run folder, a sweep with its chart; `file` says where.

    Raises:
        ConfigError: an unknown baseline, benchmark or model.
        CheckpointError: weights cannot be loaded.
        InputError: the benchmark's files are not as published; ReCo finds no archive of a category;
            `threshold_from` is no sweep of this baseline with these settings.
    """
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    settings = settings_of(name, config)
    chosen = _chosen(name, settings, threshold, threshold_from)
    benchmark = open_benchmark(config.evaluate)
    categories = categories_of(benchmark, config)
    with open_run(config.run.out) as ledger, progress.step(name, len(benchmark)) as step:
        run = VerbRun(config, ledger, progress)
        vectors = _class_vectors(name, executor, run, categories)
        make = partial(_open, name, config, [query for _, query in categories], vectors)
        map_scenes = partial(executor.map, run, "evaluate")
        if sweep:
            parts = map_scenes(partial(Sweeper, make, config), scene_ranges(len(benchmark)))
            found = _sweep(_counted(parts, step), benchmark, config)
        else:
            scorer = partial(_open_scorer, make, chosen["threshold"], config)
            found = chosen | score_benchmark(
                partial(map_scenes, scorer), benchmark.names, benchmark, config.evaluate,
                on_scenes=step.advance,
            )  # fmt: skip
        here = {key: found[key] for key in PAPERS_SPLIT}
        found |= {"baseline": name, "settings": settings, "chosen_here": found["chosen_on"] == here}
        return _write(ledger.folder / layout.BASELINES, found)


def _chosen(
    name: str, settings: dict[str, Any], threshold: float | None, threshold_from: Place | None
) -> dict[str, Any]:
    """Return `threshold` and `chosen_on`: of a sweep, as given, or the paper's."""
    if threshold_from is not None:
        sweep = read_sweep(threshold_from, name, settings)
        on = {key: sweep[key] for key in PAPERS_SPLIT}
        return {"threshold": float(sweep["threshold"]), "chosen_on": on}
    if threshold is not None:
        return {"threshold": threshold, "chosen_on": None}
    return {"threshold": BASELINES[name].threshold, "chosen_on": PAPERS_SPLIT}


def settings_of(name: str, config: Config) -> dict[str, Any]:
    """Return what a baseline's probabilities follow from, beside images and names."""
    tree = config.tree()
    settings = {key: tree["baselines"][key] for key in BASELINES[name].settings}
    return settings | {"templates": digest(templates_of(config.categories))[:16]}


def categories_of(benchmark: Benchmark, config: Config) -> list[tuple[str, str]]:
    """Return name and query of the benchmark's categories, in its order.

    Queries are the run's; of a run file without categories those shipped with the benchmark's name.
    """
    queries: dict[str, str] = {}
    if config.categories.set or config.categories.names:
        chosen = category_set_of(config.categories)
        queries = dict(zip(chosen.names, chosen.queries, strict=True))
    elif benchmark.name in SHIPPED:
        chosen = load_category_set(benchmark.name)
        queries = dict(zip(chosen.names, chosen.queries, strict=True))
    return [(name, queries.get(name, name)) for name in benchmark.names]


def _class_vectors(
    name: str, executor: Executor, run: VerbRun, categories: Sequence[tuple[str, str]]
) -> np.ndarray | None:
    if not BASELINES[name].needs_archive:
        return None
    folder = run.ledger.folder / layout.ARCHIVE
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"{name} looks at the images of a run's archives, and {folder} has none. Run 'build' "
            "with this run file first."
        )
    archive = Archive.open(folder)
    for one, _ in categories:
        archive.category(one)
    config = run.config
    make = partial(
        reco.ClassVectors,
        archive,
        config.baselines,
        config.evaluate.device,
        templates_of(config.categories),
    )
    vectors = []
    with run.progress.step("co-segment", len(categories)) as step:
        for vector in executor.map(run, "evaluate", make, categories):
            vectors.append(vector)
            step.advance()
    return np.stack(vectors)


def _open(
    name: str, config: Config, queries: Sequence[str], vectors: np.ndarray | None
) -> Probabilities:
    return BASELINES[name].open(config, queries, vectors)


def best_category(probabilities: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the best probability of each pixel, (H, W) float32, and its label id from 1, uint16.

    `probabilities` is (C, H, W) float32.
    """
    best, category = probabilities.max(dim=0)
    return best.cpu().numpy(), (category + 1).cpu().numpy().astype(LABEL_DTYPE)


def _open_scorer(make: Callable[[], Probabilities], threshold: float, config: Config) -> Scorer:
    probabilities, benchmark = make(), open_benchmark(config.evaluate)

    def predict(image: np.ndarray) -> np.ndarray:
        return with_background(*best_category(probabilities(image)), threshold)

    return Scorer(predict, benchmark.names, benchmark, config.evaluate)


class Sweeper:
    """A baseline on the run's benchmark at all thresholds at once, some scenes at a time."""

    def __init__(self, make: Callable[[], Probabilities], config: Config) -> None:
        self._probabilities, self._benchmark = make(), open_benchmark(config.evaluate)

    def __call__(self, indices: range) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the tally of each of these scenes."""
        num_labels, tallies = len(self._benchmark.names) + 1, []
        for index in indices:
            _, image, truth = self._benchmark[index]
            best = best_category(self._probabilities(image))
            tallies.append(tally(truth, *best, num_labels, IGNORE))
        return tallies


def _counted(parts: Iterable[list[T]], step: Step) -> Iterator[list[T]]:
    """Yield the parts, and let the progress know of their scenes."""
    for part in parts:
        step.advance(len(part))
        yield part


def _sweep(
    parts: Iterator[list[tuple[np.ndarray, np.ndarray]]], benchmark: Benchmark, config: Config
) -> dict[str, Any]:
    pixels, count = Tally(len(benchmark.names) + 1), 0
    for part in parts:
        count += len(part)
        for one in part:
            pixels.add(one)
    curve = curve_of(pixels, benchmark.absent)
    here = {"benchmark": benchmark.name, "split": config.evaluate.split}
    return {
        **here,
        "names": list(benchmark.names),
        "absent": benchmark.absent,
        "num_scenes": count,
        **best_of(curve),
        "chosen_on": here,
        "curve": curve,
    }


def _write(folder: Place, found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found and the `file` it was written to."""
    kind = "-sweep" if "curve" in found else ""
    stem = f"{found['baseline']}-{slug(found['benchmark'])}-{slug(found['split'])}{kind}"
    found = {key: value for key, value in found.items() if key != "scenes"}
    write_json(folder / f"{stem}.json", found)
    if kind:
        write_file(folder / f"{stem}.svg", sweep_chart(found).encode())
    return found | {"file": str(folder / f"{stem}.json")}
