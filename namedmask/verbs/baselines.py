"""The baselines MaskCLIP and ReCo, scored on the same splits and in the same way as the segmenter.

Neither baseline predicts background, so a pixel whose best probability is below a threshold is
background (evaluate/thresholds.py). The result names the split on which the threshold was chosen,
because a score on that same split is optimistic. A new baseline is one line in `BASELINES`.

Method: thresholds of 0.25 (MaskCLIP) and 0.9 (ReCo) on all benchmarks, each the best on VOC2012
train; the categories of the benchmark.
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
"""A function from an image (H, W, 3) uint8 RGB to category probabilities (C, H, W) float32."""

PAPERS_SPLIT = {"benchmark": "voc2012", "split": "train"}
"""The split on which the paper chose its thresholds. Method: VOC2012 train."""


@dataclass(frozen=True)
class Baseline:
    """A baseline in the table `BASELINES`."""

    threshold: float  # the paper's
    settings: tuple[str, ...]  # keys of [baselines] that its probabilities depend on
    open: Callable[[Config, Sequence[str], np.ndarray | None], Probabilities]
    """Takes the config, C queries and, if `needs_archive`, category vectors (C, E) float32."""
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
    """Return a baseline's scores on the benchmark, without the scores of single scenes.

    The result is also written to a file in the folder `baselines` of the run, together with a chart
    for a sweep. Without a sweep, the scores are those of `score_benchmark`. A sweep has `miou` and
    `pixel_accuracy` at the best threshold. Further keys are:

    * `baseline`, and `settings` that its probabilities depend on.
    * `threshold`: the probability below which a pixel is background.
    * `chosen_on`: the {benchmark, split} on which the threshold was chosen; None if not known.
    * `chosen_here`: whether `chosen_on` is the split that is scored.
    * `curve`, only for a sweep: {threshold, miou, pixel_accuracy} for each of the 20 thresholds.
    * `file`: the path of the file.

    Args:
        name: a name in `BASELINES`.
        config: config of the run.
        progress: displays the number of scored scenes.
        executor: runs the baseline.
        sweep: whether to score at all 20 thresholds in one pass.
        threshold: in [0, 1]; None: the paper's threshold.
        threshold_from: file of a sweep whose best threshold is used, not `threshold`.

    Raises:
        ConfigError: the baseline, the benchmark or the model is unknown.
        CheckpointError: weights cannot be loaded.
        InputError: the benchmark's files are not as published, a category has no archive for ReCo,
            a sweep finds no labels, or `threshold_from` is not a sweep of this baseline with these
            settings.
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
            result = _sweep(_counted(parts, step), benchmark, config)
        else:
            scorer = partial(_open_scorer, make, chosen["threshold"], config)
            result = chosen | score_benchmark(
                partial(map_scenes, scorer), benchmark.names, benchmark, config.evaluate,
                on_scenes=step.advance,
            )  # fmt: skip
        here = {key: result[key] for key in PAPERS_SPLIT}
        is_here = result["chosen_on"] == here
        result |= {"baseline": name, "settings": settings, "chosen_here": is_here}
        return _write(ledger.folder / layout.BASELINES, result)


def _chosen(
    name: str, settings: dict[str, Any], threshold: float | None, threshold_from: Place | None
) -> dict[str, Any]:
    """Return `threshold` and `chosen_on`: of a sweep, of the caller, or of the paper."""
    if threshold_from is not None:
        sweep = read_sweep(threshold_from, name, settings)
        split = {key: sweep[key] for key in PAPERS_SPLIT}
        return {"threshold": float(sweep["threshold"]), "chosen_on": split}
    if threshold is not None:
        return {"threshold": threshold, "chosen_on": None}
    return {"threshold": BASELINES[name].threshold, "chosen_on": PAPERS_SPLIT}


def settings_of(name: str, config: Config) -> dict[str, Any]:
    """Return the settings that a baseline's probabilities depend on, as plain values by key."""
    tree = config.tree()
    settings = {key: tree["baselines"][key] for key in BASELINES[name].settings}
    return settings | {"templates": digest(templates_of(config.categories))[:16]}


def categories_of(benchmark: Benchmark, config: Config) -> list[tuple[str, str]]:
    """Return (name, query) of the benchmark's categories, in the benchmark's order.

    The queries come from the run's category set or, if the run file has no categories, from the
    shipped category set with the benchmark's name. A category without a query there has its name as
    its query.
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
            f"{name} needs the images of a run's archives, and {folder} has none. Run 'build' "
            "with this run file first."
        )
    archive = Archive.open(folder)
    for category, _ in categories:
        archive.category(category)  # raises if there is no such archive
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
    """Return each pixel's best probability, (H, W) float32, and its label id, (H, W) uint16.

    `probabilities` is (C, H, W) float32; category c has label id c + 1.
    """
    best, category = probabilities.max(dim=0)
    return best.cpu().numpy(), (category + 1).cpu().numpy().astype(LABEL_DTYPE)


def _open_scorer(make: Callable[[], Probabilities], threshold: float, config: Config) -> Scorer:
    probabilities, benchmark = make(), open_benchmark(config.evaluate)

    def predict(image: np.ndarray) -> np.ndarray:
        return with_background(*best_category(probabilities(image)), threshold)

    return Scorer(predict, benchmark.names, benchmark, config.evaluate)


class Sweeper:
    """A function that runs a baseline on scenes and counts their pixels for all thresholds."""

    def __init__(self, make: Callable[[], Probabilities], config: Config) -> None:
        self._probabilities, self._benchmark = make(), open_benchmark(config.evaluate)

    def __call__(self, indices: range) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return one `tally` (evaluate/thresholds.py) per scene of the benchmark in `indices`."""
        num_labels, tallies = len(self._benchmark.names) + 1, []
        for index in indices:
            _, image, truth = self._benchmark[index]
            best = best_category(self._probabilities(image))
            tallies.append(tally(truth, *best, num_labels, IGNORE))
        return tallies


def _counted(parts: Iterable[list[T]], step: Step) -> Iterator[list[T]]:
    """Yield the parts; advance the progress by the number of scenes in each part."""
    for part in parts:
        step.advance(len(part))
        yield part


def _sweep(
    parts: Iterator[list[tuple[np.ndarray, np.ndarray]]], benchmark: Benchmark, config: Config
) -> dict[str, Any]:
    pixels, count = Tally(len(benchmark.names) + 1), 0
    for part in parts:
        count += len(part)
        for scene in part:
            pixels.add(scene)
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


def _write(folder: Place, result: dict[str, Any]) -> dict[str, Any]:
    """Write a result without its scenes; return what was written, with the path as `file`."""
    kind = "-sweep" if "curve" in result else ""
    stem = f"{result['baseline']}-{slug(result['benchmark'])}-{slug(result['split'])}{kind}"
    result = {key: value for key, value in result.items() if key != "scenes"}
    write_json(folder / f"{stem}.json", result)
    if kind:
        write_file(folder / f"{stem}.svg", sweep_chart(result).encode())
    return result | {"file": str(folder / f"{stem}.json")}
