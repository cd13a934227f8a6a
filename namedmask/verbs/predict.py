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
from namedmask.images.limits import PREDICT_PIXELS, PREDICT_SIDE
from namedmask.images.overlay import overlay
from namedmask.run.machine import use_threads
from namedmask.schema.columns import IGNORE
from namedmask.schema.status import NO_FILE, OK
from namedmask.storage import Place


def predict_files(
    checkpoint: Place | str,
    paths: Sequence[Path | str],
    out: Path | str,
    device: str = "cpu",
    config: Config | None = None,
    max_side: int = PREDICT_SIDE,
    max_pixels: int = PREDICT_PIXELS,
) -> list[dict[str, Any]]:
    """Segment images; return one {file, status, labels or reason} per image, in order.

    `labels` maps the label names in an image to their shares of its pixels. An image that cannot be
    read or decoded has another status than `ok` and a `reason`, and nothing is written for it. For
    any other image, the overlay is written to `<stem>.png` in the folder `out`, and the label ids
    to `<stem>_labels.png` (16 bit), both at the size of the image. For a checkpoint of bare
    weights, `config` gives the network and the label names. `max_side` is as in `predict_labels`:
    the network gets a large image at this longest side, in pixels; 0: at its own size. An image of
    more than `max_pixels` pixels is not decoded.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: an image does not exist, an output would replace an image or another output, or
            the device is missing. Nothing is written.
    """
    from namedmask.config.registry import torch_device
    from namedmask.segmenter.checkpoint import load_checkpoint
    from namedmask.segmenter.predict import predict_labels

    files, out = [Path(path) for path in paths], Path(out)
    for path in files:
        if not path.exists():
            raise InputError(f"image {path} does not exist. Check the path.")
    _refuse_clashes(files, out)
    of_bare = (config.segmenter, configured_names(config.categories)) if config else ()
    model, names = load_checkpoint(checkpoint, *of_bare)
    model = model.to(torch_device(device, "predict"))
    if config:
        use_threads(config)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            image = images.decode(path.read_bytes(), max_pixels)
        except images.BadImage as error:
            rows.append({"file": str(path), "status": error.status, "reason": str(error)})
            continue
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            rows.append({"file": str(path), "status": NO_FILE, "reason": reason})
            continue
        labels = predict_labels(model, image, max_side)
        (out / f"{path.stem}.png").write_bytes(images.encode_png(overlay(image, labels, names)))
        (out / f"{path.stem}_labels.png").write_bytes(images.encode_png(labels))
        rows.append({"file": str(path), "status": OK, "labels": shares(labels, names)})
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
