"""Scores of a segmenter on a benchmark, from predicted label maps to a dict of plain values.

Labels of truth and prediction are matched by name. A benchmark may list its labels in another order
than the segmenter, and the segmenter may know more labels than the benchmark.

Method: one image at a time at its original size, argmax, one confusion matrix over the split.
ImageNet-S adds scores by size, scores at boundaries, and the share of images in which the right
category is found (imagenet_s.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from namedmask import images
from namedmask.config import Config, EvaluateConfig
from namedmask.config.registry import torch_device
from namedmask.errors import InputError
from namedmask.evaluate import imagenet_s
from namedmask.evaluate.benchmarks import open_benchmark
from namedmask.evaluate.label_maps import Benchmark
from namedmask.metrics import ConfusionMatrix, mean_iou
from namedmask.schema.columns import BACKGROUND, IGNORE, LABEL_DTYPE
from namedmask.segmenter.checkpoint import load_checkpoint
from namedmask.segmenter.predict import predict_labels
from namedmask.storage import Place, place_of
from namedmask.storage.files import write_file

SHOWN_SCENES = 6
"""Number of best and of worst scenes whose predicted label maps are kept for the report."""

SCENES = 32
"""Number of scenes that a process scores at a time."""

IMAGE_SCORES = {"f_measure": imagenet_s.f_measure, "image_accuracy": imagenet_s.image_accuracy}
"""Scores of ImageNet-S that are computed per image and averaged over the images."""


def score_benchmark(
    parts_of: Callable[[Sequence[range]], Iterable[Part]],
    names: Sequence[str],
    benchmark: Benchmark,
    config: EvaluateConfig,
    *,
    out: Place | None = None,
    on_scenes: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return the scores on a benchmark as plain values; an undefined score is None.

    `miou` and `pixel_accuracy` cover the split. `iou` has one IoU per label name, including
    `background`. `scenes` has one {name, index, miou} per sample, where `miou` is the mean over the
    labels in its truth or prediction. ImageNet-S adds `miou_s`, `miou_ms`, `miou_ml`, `miou_l`,
    `boundary_miou`, and the means over scenes `f_measure` and `image_accuracy`. If the truth has
    objects that cannot be drawn, `objects_left_out` is their number.

    Args:
        parts_of: a function from ranges of scenes to the results of a `Scorer` for each range, in
            any order, such as a plain `map` or processes on a cluster.
        names: label names without background; label id i + 1 stands for names[i].
        benchmark: the benchmark to score on.
        config: the `evaluate` section.
        out: folder for predicted label maps (PNG, 16 bit, label ids of `names`) of the best and the
            worst scenes; their entries in `scenes` then have the file name as `prediction`.
        on_scenes: called with the number of scenes that were just scored.

    Raises:
        InputError: the segmenter does not know a label of the benchmark, or a sample is broken.
    """

    def parts() -> Iterator[Part]:
        for part in parts_of(scene_ranges(len(benchmark))):
            if on_scenes:
                on_scenes(len(part.scenes))
            yield part

    return sum_up(parts(), names, benchmark, config, out)


@dataclass(frozen=True)
class Part:
    """The results for some scenes: a confusion matrix, scores per scene, and label maps to show."""

    total: ConfusionMatrix
    overlaps: np.ndarray  # (5, 3, K) int64, see imagenet_s.sum_scores; zeros for other benchmarks
    scenes: list[dict[str, Any]]  # {name, index, miou}, and `IMAGE_SCORES`
    predictions: dict[int, bytes]  # index → PNG, 16 bit, (H, W) label ids


class Scorer:
    """A callable that predicts and scores the label maps of some scenes of a benchmark.

    `predict` maps an image (H, W, 3) uint8 RGB to label ids of `names`, (H, W) uint16.

    Raises:
        InputError: `names` lacks a label of the benchmark.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        names: Sequence[str],
        benchmark: Benchmark,
        config: EvaluateConfig,
    ) -> None:
        self._predict = predict
        self._benchmark, self._config = benchmark, config
        self._num_labels = len(names) + 1
        self._label_of = label_ids(benchmark.names, names)
        self._id_of = np.full(self._num_labels, BACKGROUND, LABEL_DTYPE)
        self._id_of[self._label_of[: len(benchmark.names) + 1]] = np.arange(
            len(benchmark.names) + 1
        )

    def __call__(self, indices: Iterable[int]) -> Part:
        """Return the results for the scenes with these indices.

        Raises:
            InputError: a sample is broken.
        """
        total, scenes, predictions = ConfusionMatrix(self._num_labels), [], {}
        overlaps = _no_overlaps(self._num_labels)
        for index in indices:
            name, image, truth = self._benchmark[index]
            predicted = self._predict(image)
            truth = self._label_of[truth]
            scene = ConfusionMatrix(self._num_labels)
            scene.update(truth, predicted)
            total.merge(scene)
            entry = {"name": name, "index": index, "miou": _plain(scene.miou())}
            if self._benchmark.by_size:
                overlaps[:-1] += imagenet_s.size_overlaps(scene.counts)
                overlaps[-1] += imagenet_s.boundary_overlap(truth, predicted, self._num_labels)
                entry |= {key: _plain(score(scene.counts)) for key, score in IMAGE_SCORES.items()}
            scenes.append(entry)
            predictions[index] = images.encode_png(predicted)
            self._export(name, predicted)
        shown = {scene["index"] for group in shown_scenes(scenes) for scene in group}
        shown_predictions = {index: predictions[index] for index in sorted(shown)}
        return Part(total, overlaps, scenes, shown_predictions)

    def _export(self, name: str, predicted: np.ndarray) -> None:
        if self._config.export:
            path = place_of(self._config.export) / f"{name}.png"
            write_file(path, imagenet_s.encode_label_map(self._id_of[predicted]))


def open_scorer(checkpoint: Place, config: Config) -> Scorer:
    """Return the scorer of a checkpoint's segmenter on the configured benchmark.

    Raises:
        CheckpointError, ConfigError, InputError: as `load_checkpoint`, `open_benchmark`, `Scorer`.
    """
    model, names = load_checkpoint(checkpoint, config.segmenter)
    predict = predictor_of(model, config.evaluate)
    return Scorer(predict, names, open_benchmark(config.evaluate), config.evaluate)


def predictor_of(model: nn.Module, config: EvaluateConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from an image to the label map that `model` predicts on its device.

    Raises:
        InputError: the device is missing.
    """
    model = model.to(torch_device(config.device, "evaluate"))
    return partial(predict_labels, model, max_side=config.max_side)


def scene_ranges(count: int) -> list[range]:
    """Return ranges of `SCENES` scenes that together cover all scenes; the last may be shorter."""
    return [range(start, min(start + SCENES, count)) for start in range(0, count, SCENES)]


def sum_up(
    parts: Iterable[Part],
    names: Sequence[str],
    benchmark: Benchmark,
    config: EvaluateConfig,
    out: Place | None,
) -> dict[str, Any]:
    """Return the scores of all scenes together; only one of `parts` is in memory at a time."""
    total, overlaps = ConfusionMatrix(len(names) + 1), _no_overlaps(len(names) + 1)
    scenes: list[dict[str, Any]] = []
    predictions: dict[int, bytes] = {}
    for part in parts:
        total.merge(part.total)
        overlaps += part.overlaps
        scenes += part.scenes
        predictions |= part.predictions
    scenes.sort(key=lambda scene: scene["index"])
    if out:
        for scene in (scene for group in shown_scenes(scenes) for scene in group):
            scene["prediction"] = f"{scene['index']:05d}-{scene['name'].replace('/', '_')}.png"
            write_file(out / scene["prediction"], predictions[scene["index"]])
    label_of = label_ids(benchmark.names, names)
    labels = [BACKGROUND, *label_of[1 : len(benchmark.names) + 1].tolist()]
    iou = total.iou()[labels]
    further = _further_scores(overlaps, scenes, labels) if benchmark.by_size else {}
    left_out = getattr(benchmark, "objects_left_out", 0)
    return {
        "benchmark": benchmark.name,
        "split": config.split,
        "names": list(names),
        "absent": benchmark.absent,
        "num_scenes": len(scenes),
        **({"objects_left_out": left_out} if left_out else {}),
        "miou": _plain(mean_iou(iou, benchmark.absent)) if total.counts.any() else None,
        "pixel_accuracy": _plain(total.pixel_accuracy()),
        **further,
        "iou": dict(zip(("background", *benchmark.names), map(_plain, iou), strict=True)),
        "scenes": scenes,
    }


def _no_overlaps(num_labels: int) -> np.ndarray:
    return np.zeros((len(imagenet_s.SIZES) + 1, 3, num_labels), np.int64)


def _further_scores(
    overlaps: np.ndarray, scenes: Sequence[dict[str, Any]], labels: Sequence[int]
) -> dict[str, float | None]:
    scores = imagenet_s.sum_scores(overlaps, labels)
    for key in IMAGE_SCORES:
        values = [scene[key] for scene in scenes if scene[key] is not None]
        scores[key] = float(np.mean(values)) if values else float("nan")
    return {key: _plain(score) for key, score in scores.items()}


def label_ids(from_names: Sequence[str], to_names: Sequence[str]) -> np.ndarray:
    """Return a table, (65536,) uint16, from label ids of `from_names` to those of `to_names`.

    Background and the ignore id do not change; ids without a name become the ignore id.

    Raises:
        InputError: `to_names` lacks a name of `from_names`.
    """
    position = {name: number for number, name in enumerate(to_names, start=1)}
    lacking = [name for name in from_names if name not in position]
    if lacking:
        raise InputError(
            f"the benchmark has labels that the segmenter lacks: {', '.join(lacking)}. It knows "
            f"{', '.join(to_names)}. Evaluate on a benchmark of these names, or train on the "
            "benchmark's category set."
        )
    table = np.full(IGNORE + 1, IGNORE, LABEL_DTYPE)
    table[: len(from_names) + 1] = [BACKGROUND, *(position[name] for name in from_names)]
    return table


def shown_scenes(
    scenes: Sequence[dict[str, Any]], count: int = SHOWN_SCENES
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the best scenes, best first, and the worst, worst first; no scene is in both."""
    ranked = sorted(
        (scene for scene in scenes if scene["miou"] is not None),
        key=lambda scene: (-scene["miou"], scene["index"]),
    )
    worst = ranked[max(count, len(ranked) - count) :]
    return ranked[:count], worst[::-1]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
