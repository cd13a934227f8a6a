"""A segmenter judged on a benchmark: label maps predicted, compared, summed up as plain values.

Truth and prediction are brought together by name: a benchmark may list its labels in another order
than the segmenter, and the segmenter may know more labels than the benchmark.

Method: one picture at a time at its original size, argmax, one confusion matrix over the split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from namedmask import images
from namedmask.benchmarks import Benchmark
from namedmask.config import EvaluateConfig
from namedmask.errors import InputError
from namedmask.ledger import write_file
from namedmask.metrics import ConfusionMatrix, mean_iou
from namedmask.plugins import torch_device
from namedmask.schema import BACKGROUND, IGNORE, LABEL_DTYPE

SHOWN_SCENES = 6
"""Best and worst scenes, this many each, whose predicted label maps are kept for the report."""


def evaluate(
    model: nn.Module,
    names: Sequence[str],
    benchmark: Benchmark,
    config: EvaluateConfig,
    *,
    out: Path | None = None,
    on_scene: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Return the segmenter's scores on the benchmark as plain values; None stands for no number.

    `miou` and `pixel_accuracy` over the split; `iou` by label name, `background` among them;
    `scenes`: one {name, index, miou} a sample, its mean over the labels in truth or prediction.

    Args:
        model: (B, 3, H, W) normalised images to (B, K, H, W) logits; is put into eval mode.
        names: label names without background; logit i + 1 stands for names[i].
        out: folder for predicted label maps (PNG, 16 bit, label ids of `names`) of the best and the
            worst scenes; `scenes` then says `prediction` = file name below it.
        on_scene: called with the number of scenes done.

    Raises:
        InputError: the benchmark has labels that the segmenter does not know; a broken sample; or
            the device is not there.
    """
    label_of = label_ids(benchmark.names, names)
    model = model.to(torch_device(config.device, "evaluate"))
    total, scenes = ConfusionMatrix(len(names) + 1), []
    for index in range(len(benchmark)):
        name, image, truth = benchmark[index]
        scene = ConfusionMatrix(len(names) + 1)
        scene.update(label_of[truth], predict_labels(model, image, config.max_side))
        total.merge(scene)
        scenes.append({"name": name, "index": index, "miou": _plain(scene.miou())})
        if on_scene:
            on_scene(index + 1)
    if out:
        _keep_predictions(model, benchmark, scenes, config, out)
    judged = [BACKGROUND, *label_of[1 : len(benchmark.names) + 1].tolist()]
    iou = total.iou()[judged]
    return {
        "benchmark": benchmark.name,
        "split": config.split,
        "names": list(names),
        "absent": benchmark.absent,
        "num_scenes": len(scenes),
        "miou": _plain(mean_iou(iou, benchmark.absent)),
        "pixel_accuracy": _plain(total.pixel_accuracy()),
        "iou": dict(zip(("background", *benchmark.names), map(_plain, iou), strict=True)),
        "scenes": scenes,
    }


def predict_labels(model: nn.Module, image: np.ndarray, max_side: int = 0) -> np.ndarray:
    """Return the label ids of an image, (H, W) uint16, 0 background.

    `image` is (H, W, 3) uint8 RGB; `model` is put into eval mode. With `max_side` a larger image is
    shrunk to it for the network, and the logits are brought back to the image's size before the
    argmax.
    """
    height, width = image.shape[:2]
    if 0 < max_side < max(height, width):
        scale = max_side / max(height, width)
        image = images.resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        logits = model(images.to_tensor([image]).to(device))
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        labels: np.ndarray = logits[0].argmax(dim=0).cpu().numpy()
    return labels.astype(LABEL_DTYPE)


def label_ids(from_names: Sequence[str], to_names: Sequence[str]) -> np.ndarray:
    """Return a table, (65536,) uint16, from the label ids of one list of names to another's.

    Background and the ignore id stay what they are; ids without a name become the ignore id.

    Raises:
        InputError: names that the other list lacks.
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
    """Return the best scenes, best first, and the worst, worst first; none is in both."""
    ranked = sorted(
        (scene for scene in scenes if scene["miou"] is not None),
        key=lambda scene: (-scene["miou"], scene["index"]),
    )
    worst = ranked[max(count, len(ranked) - count) :]
    return ranked[:count], worst[::-1]


def _keep_predictions(
    model: nn.Module,
    benchmark: Benchmark,
    scenes: Sequence[dict[str, Any]],
    config: EvaluateConfig,
    out: Path,
) -> None:
    """Write the label maps of the scenes worth showing; these are predicted a second time."""
    for scene in (scene for group in shown_scenes(scenes) for scene in group):
        name, image, _ = benchmark[scene["index"]]
        labels = predict_labels(model, image, config.max_side)
        scene["prediction"] = f"{scene['index']:05d}-{name.replace('/', '_')}.png"
        write_file(out / scene["prediction"], images.encode_png(labels))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)
