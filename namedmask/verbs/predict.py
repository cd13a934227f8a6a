"""The command `predict`, which segments image files and draws the label names on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from namedmask import images
from namedmask.categories import configured_names
from namedmask.config import Config
from namedmask.errors import InputError
from namedmask.images.overlay import overlay
from namedmask.run.machine import use_threads
from namedmask.schema.columns import IGNORE
from namedmask.storage import Place


def predict_files(
    checkpoint: Place,
    paths: Sequence[Path],
    out: Path,
    device: str = "cpu",
    config: Config | None = None,
) -> list[dict[str, Any]]:
    """Segment images; return one {file, labels: {name: share of the pixels}} per image, in order.

    Per image, the overlay is written to `<stem>.png` in the folder `out`, and the label ids to
    `<stem>_labels.png` (16 bit). For a checkpoint of bare weights, `config` gives the network and
    the label names.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: an image cannot be read, an output would replace an image or another output, or
            the device is missing. Nothing is written.
    """
    from namedmask.config.registry import torch_device
    from namedmask.segmenter.checkpoint import load_checkpoint
    from namedmask.segmenter.predict import predict_labels

    _refuse_clashes(paths, out)
    for path in paths:
        _read_picture(path)
    of_bare = (config.segmenter, configured_names(config.categories)) if config else ()
    model, names = load_checkpoint(checkpoint, *of_bare)
    model = model.to(torch_device(device, "predict"))
    if config:
        use_threads(config)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in paths:
        image = _read_picture(path)
        labels = predict_labels(model, image)
        (out / f"{path.stem}.png").write_bytes(images.encode_png(overlay(image, labels, names)))
        (out / f"{path.stem}_labels.png").write_bytes(images.encode_png(labels))
        rows.append({"file": str(path), "labels": shares(labels, names)})
    return rows


def shares(labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return the share of all pixels by label name, largest first, for labels with a pixel.

    `labels` is (H, W) uint16; label id 0 is `background`, and label id i + 1 is `names[i]`. Ignored
    pixels belong to no label, so the shares may sum to less than 1.
    """
    label_ids, counts = np.unique(labels[labels != IGNORE], return_counts=True)
    label_names = ("background", *names)
    share = {label_names[i]: int(n) / labels.size for i, n in zip(label_ids, counts, strict=True)}
    return {name: round(share[name], 6) for name in sorted(share, key=lambda name: -share[name])}


def _read_picture(path: Path) -> np.ndarray:
    try:
        return images.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"image {path} cannot be read: {error.strerror}.") from error
    except images.BadImage as error:
        raise InputError(
            f"image {path} cannot be decoded: {error}. Give a JPEG, PNG, WebP, GIF, BMP, TIFF or "
            "AVIF file."
        ) from error


def _refuse_clashes(paths: Sequence[Path], out: Path) -> None:
    """Raise InputError if an output would replace the output of another image, or an image."""
    image_of: dict[Path, Path] = {}
    for path in paths:
        for written in (out / f"{path.stem}.png", out / f"{path.stem}_labels.png"):
            other = image_of.setdefault(written, path)
            if other is not path:
                raise InputError(
                    f"{other} and {path} would both be written to {written}. Segment them in two "
                    "calls, each with its own --out."
                )
    sources = {path.resolve() for path in paths}
    for written, path in image_of.items():
        if written.resolve() in sources:
            raise InputError(f"segmenting {path} would replace {written}. Give another --out.")
