"""Score a demo run against the truth of its world; the scores are written to `summary.json`.

This is the only module that reads `WORLD/truth/`. It runs after all verbs have finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask import images as imagelib
from namedmask.archive.store import Archive, stem
from namedmask.config import Config
from namedmask.evaluate.benchmarks import folder as open_folder
from namedmask.faces.stage import Faces
from namedmask.metadata.urls import sample_id
from namedmask.metrics import ConfusionMatrix
from namedmask.miniworld import captions, pictures
from namedmask.run import layout
from namedmask.run.layout import REFINED
from namedmask.schema.status import HAS_FACE, NEAR_DUPLICATE, OK, SURPLUS

ACCEPTED = (OK, SURPLUS)
"""Statuses of the candidates that passed every check."""


@dataclass
class Truth:
    """The true contents of a world's pictures; `by_id` maps a sample id to its row."""

    folder: Path
    base: str
    rows: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: Path, base: str) -> Truth:
        """Return the truth of the world in `folder`, which is served at the url `base`."""
        return cls(folder, base, json.loads((folder / "truth" / "rows.json").read_text()))

    def __post_init__(self) -> None:
        self.by_id = {sample_id(f"{self.base}/{row['path']}"): row for row in self.rows}

    def label(self, row: dict[str, Any]) -> np.ndarray:
        """Return the label map of a row's picture, (H, W) uint8; see pictures.py."""
        path = self.folder / "truth" / "masks" / f"{row['group']:06d}.png"
        top, left = row["corner"]
        whole = imagelib.decode_gray(path.read_bytes())
        part: np.ndarray = whole[top : top + row["height"], left : left + row["width"]]
        return part


def score_demo(config: Config, world: Path, base: str) -> dict[str, Any]:
    """Return the summary of a finished demo run as plain values; docs/guide.md lists the keys.

    `base` is the url at which the folder `world` is served.
    """
    run, truth = Path(str(config.run.out)), Truth.load(world, base)
    funnels = json.loads((run / layout.FUNNELS).read_text())
    evaluation = json.loads((run / layout.EVALUATION).read_text())
    archive = Archive.open(run / layout.ARCHIVE)
    candidates = pq.read_table(run / layout.CANDIDATES)
    embedded = [
        row
        for path in sorted((run / layout.EMBEDDINGS).glob(layout.wave_files()))
        for row in pq.read_table(path, columns=["sample_id", "caption"]).to_pylist()
    ]
    entries = {name: archive.entries(name).to_pylist() for name in archive.names}
    kept = [entry for rows in entries.values() for entry in rows]
    summary = {key: funnels[key] for key in
               ("rows_in", "rows_by_status", "candidates_in", "candidates_by_status")}  # fmt: skip
    summary["archive_fill"] = min(map(len, entries.values())) / config.retrieve.archive_size
    summary |= _retrieval(truth, archive, entries, embedded, config.retrieve.archive_size)
    summary |= _near_duplicates(truth, candidates)
    summary |= _faces(truth, config, [row["sample_id"] for row in embedded])
    summary |= _masks(truth, run, archive, entries)
    summary |= {key: evaluation[key] for key in ("miou", "pixel_accuracy")}
    summary["miou_nearest_color"] = _nearest_color(archive, entries, world / "scenes")
    summary |= {
        "images_kept": len(kept),
        "mean_per_category": len(kept) / len(archive.names),
        "mean_height": float(np.mean([entry["image_height"] for entry in kept])),
        "mean_width": float(np.mean([entry["image_width"] for entry in kept])),
    }
    return {key: round(value, 4) if isinstance(value, float) else value
            for key, value in summary.items()}  # fmt: skip


def _retrieval(
    truth: Truth,
    archive: Archive,
    entries: dict[str, list[dict[str, Any]]],
    embedded: list[dict[str, Any]],
    wanted: int,
) -> dict[str, float]:
    """Return the precision of the archives, and that of two baselines that do without CLIP.

    The baselines are a random choice and a search for the category's word in the captions.
    """
    label_of = {name: pictures.NAMES.index(name) + 1 for name in archive.names}
    right = [truth.by_id[entry["sample_id"]]["category"] == label_of[name]
             for name, rows in entries.items() for entry in rows]  # fmt: skip
    category = [truth.by_id[row["sample_id"]]["category"] for row in embedded]
    shares = [np.mean([label == label_of[name] for label in category]) for name in archive.names]
    by_caption = []
    for name in archive.names:
        word = captions.WEB_WORD[name]
        hits = [
            label
            for row, label in zip(embedded, category, strict=True)
            if word in row["caption"].split()
        ]
        by_caption += [label == label_of[name] for label in hits[:wanted]]
    return {
        "retrieval_precision": float(np.mean(right)),
        "retrieval_precision_random": float(np.mean(shares)),
        "retrieval_precision_captions": float(np.mean(by_caption)),
    }


def _near_duplicates(truth: Truth, candidates: pa.Table) -> dict[str, float]:
    """Return the shares of copies and of other candidates dropped as near duplicates.

    A copy shows the same picture as an accepted candidate with a better rank. The result also has
    the number of copies.
    """
    caught = copies = dropped = others = 0
    accepted: dict[str, set[int]] = {}
    for row in candidates.sort_by([("category", "ascending"), ("rank", "ascending")]).to_pylist():
        group = truth.by_id[row["sample_id"]]["group"]
        groups = accepted.setdefault(row["category"], set())
        if row["status"] not in (*ACCEPTED, NEAR_DUPLICATE):
            continue
        if group in groups:
            copies += 1
            caught += row["status"] == NEAR_DUPLICATE
        else:
            others += 1
            dropped += row["status"] == NEAR_DUPLICATE
        if row["status"] in ACCEPTED:
            groups.add(group)
    return {
        "near_dup_recall": caught / max(copies, 1),
        "near_dup_false_drop": dropped / max(others, 1),
        "near_dup_total": copies,
    }


def _faces(truth: Truth, config: Config, sample_ids: list[str]) -> dict[str, float]:
    """Return the face filter's scores on all fetched pictures, not only on the candidates."""
    stage = Faces(config.faces)
    caught = faces = dropped = others = 0
    for start in range(0, len(sample_ids), 500):
        rows = [truth.by_id[i] for i in sample_ids[start : start + 500]]
        data = [(truth.folder / "web" / row["path"]).read_bytes() for row in rows]
        checked = stage(pa.table({"image": data, "status": [OK] * len(data)}))
        for row, status in zip(rows, checked["status"].to_pylist(), strict=True):
            if row["faces"]:
                faces, caught = faces + 1, caught + (status == HAS_FACE)
            else:
                others, dropped = others + 1, dropped + (status == HAS_FACE)
    return {
        "face_recall": caught / max(faces, 1),
        "face_false_drop": dropped / max(others, 1),
        "faces_total": faces,
        "nonfaces_total": others,
    }


def _masks(
    truth: Truth, run: Path, archive: Archive, entries: dict[str, list[dict[str, Any]]]
) -> dict[str, float]:
    """Return the mean IoU with the true object over the archive, per kind of mask.

    The kinds `otsu` and `center` are baselines without a network. `horse_rider_leak` is the share
    of the experts' horse masks that lies on riders.
    """
    saliency = _saliency_masks(run)
    kinds = ("otsu", "center", "saliency", "pseudo", "expert")
    scores: dict[str, list[float]] = {kind: [] for kind in kinds}
    rider = horse = 0
    for category in archive.categories:
        path = run / REFINED / f"{stem(category.label_id, category.name)}.parquet"
        refined = pq.read_table(path).to_pylist()
        for entry, refined_entry in zip(entries[category.name], refined, strict=True):
            label = truth.label(truth.by_id[entry["sample_id"]])
            true_mask = label == pictures.NAMES.index(category.name) + 1
            size = label.shape
            expert = imagelib.decode_mask(refined_entry["mask"], *size)
            masks = {
                "saliency": saliency[entry["sample_id"]],
                "pseudo": imagelib.decode_mask(entry["mask"], *size),
                "expert": expert,
                "center": center_mask(*size),
            }
            for kind, mask in masks.items():
                scores[kind].append(iou(mask, true_mask))
            scores["otsu"].append(
                max(iou(m, true_mask) for m in otsu_masks(imagelib.decode(entry["image"])))
            )
            if category.name == "horse":
                rider += int((expert & (label == pictures.RIDER)).sum())
                horse += int(expert.sum())
    means = {f"{kind}_mask_iou": float(np.mean(values)) for kind, values in scores.items()}
    return means | {"horse_rider_leak": rider / max(horse, 1)}


def _saliency_masks(run: Path) -> dict[str, np.ndarray]:
    masks = {}
    for path in sorted((run / layout.IMAGES).glob(layout.wave_files())):
        for row in pq.read_table(path, columns=["sample_id", "saliency"]).to_pylist():
            masks[row["sample_id"]] = imagelib.decode_gray(row["saliency"]) > 127
    return masks


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return the intersection over union of two (H, W) bool masks; it is 1 if both are empty."""
    union = int((mask | truth).sum())
    return float((mask & truth).sum()) / union if union else 1.0


def otsu_masks(image: np.ndarray) -> Iterable[np.ndarray]:
    """Yield the (H, W) bool masks that Otsu's threshold gives for an (H, W, 3) uint8 RGB image.

    Both polarities are yielded for each of the channels R, G, B, gray, H, S and V.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for channel in (*np.moveaxis(image, 2, 0), gray, *np.moveaxis(hsv, 2, 0)):
        _, mask = cv2.threshold(np.ascontiguousarray(channel), 0, 255, cv2.THRESH_OTSU)
        yield mask > 0
        yield mask == 0


def center_mask(height: int, width: int) -> np.ndarray:
    """Return a centered ellipse that spans 0.7 of each side, (H, W) bool."""
    y, x = np.ogrid[0:height, 0:width]
    inside: np.ndarray = ((x - width / 2) / (0.35 * width)) ** 2 + (
        (y - height / 2) / (0.35 * height)
    ) ** 2 < 1
    return inside


def _nearest_color(
    archive: Archive, entries: dict[str, list[dict[str, Any]]], scenes: Path
) -> float:
    """Return the test mIoU of a baseline: each pixel gets the label with the nearest mean color."""
    sums = np.zeros((len(archive.names) + 1, 4))
    for label, rows in enumerate(entries.values(), start=1):
        for entry in rows:
            image = imagelib.decode(entry["image"]).astype(np.float64)
            mask = imagelib.decode_mask(entry["mask"], *image.shape[:2])
            for target, part in ((label, image[mask]), (0, image[~mask])):
                sums[target] += (*part.sum(0), len(part))
    means = sums[:, :3] / np.maximum(sums[:, 3:], 1)
    benchmark, matrix = open_folder(scenes, "test"), ConfusionMatrix(len(means))
    for index in range(len(benchmark)):
        _, image, true_labels = benchmark[index]
        distance = ((image[:, :, None] - means) ** 2).sum(-1)
        matrix.update(true_labels, distance.argmin(-1).astype(np.uint16))
    return float(matrix.miou())
