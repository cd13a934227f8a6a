"""Label maps drawn over their pictures with the names on the regions, and files segmented."""

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
from namedmask.schema.columns import IGNORE
from namedmask.storage import Place


def predict_files(
    checkpoint: Place,
    paths: Sequence[Path],
    out: Path,
    device: str = "cpu",
    config: Config | None = None,
) -> list[dict[str, Any]]:
    """Segment pictures; return one {file, labels: {name: share of the pixels}} each, in order.

    Writes `<stem>.png`, the overlay, and `<stem>_labels.png`, the label ids in 16 bit, to `out`.
    `config` says what a checkpoint of bare weights does not: its network and its categories.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: a picture cannot be read, or two have one stem; nothing is written then.
    """
    from namedmask.config.registry import torch_device
    from namedmask.segmenter.checkpoint import load_checkpoint
    from namedmask.segmenter.predict import predict_labels

    _refuse_clashes(paths, out)
    for path in paths:
        _read_picture(path)
    told = (config.segmenter, configured_names(config.categories)) if config else ()
    model, names = load_checkpoint(checkpoint, *told)
    model = model.to(torch_device(device, "predict"))
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
    """Return the share of the pixels by label name, `background` too, largest first."""
    label_ids, counts = np.unique(labels[labels != IGNORE], return_counts=True)
    called = ("background", *names)
    found = {called[i]: int(n) / labels.size for i, n in zip(label_ids, counts, strict=True)}
    return {name: round(found[name], 6) for name in sorted(found, key=lambda one: -found[one])}


def _read_picture(path: Path) -> np.ndarray:
    try:
        return images.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"picture {path} cannot be read: {error.strerror}.") from error
    except images.BadImage as error:
        raise InputError(
            f"picture {path} cannot be decoded: {error}. Give a JPEG, PNG, WebP, GIF, BMP, TIFF or "
            "AVIF file."
        ) from error


def _refuse_clashes(paths: Sequence[Path], out: Path) -> None:
    """Raise InputError where one picture's output would replace another's, or a picture itself."""
    maker: dict[Path, Path] = {}
    for path in paths:
        for written in (out / f"{path.stem}.png", out / f"{path.stem}_labels.png"):
            other = maker.setdefault(written, path)
            if other is not path:
                raise InputError(
                    f"{other} and {path} would both be written to {written}. Segment them one "
                    "after the other, with another --out."
                )
    sources = {path.resolve() for path in paths}
    for written, path in maker.items():
        if written.resolve() in sources:
            raise InputError(f"segmenting {path} would replace {written}. Give another --out.")
