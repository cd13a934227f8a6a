"""COCO's files of instances: the objects of each photo, drawn as label maps.

Such files are also written by other programs. An object that cannot be drawn is left out and
counted: its polygon has no area or impossible coordinates, its RLE does not fit its photo, or it
names a photo or a category that the file does not list.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from namedmask import images
from namedmask.errors import InputError
from namedmask.evaluate.label_maps import read_bytes
from namedmask.schema.columns import LABEL_DTYPE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """An object: its label id, its area in pixels (infinite: a crowd; None: unknown), and form."""

    label: int
    area: float | None
    regions: Any


@dataclass(frozen=True)
class Instances:
    """The objects in a file of instances."""

    path: Path
    sizes: Mapping[str, Any]  # file name → (height, width) as in the file
    shapes: Mapping[str, Sequence[Shape]]  # file name → objects
    left_out: int  # number of objects that cannot be drawn

    def label_map(self, name: str, _path: Path) -> np.ndarray:
        """Return the label map, (H, W) uint16, of the photo with a file name.

        Raises:
            InputError: the file does not list the photo, or lists it with an impossible size.
        """
        if name not in self.sizes:
            raise InputError(
                f"{self.path} lists no photo {name}. Use the annotations of its split."
            )
        given = self.sizes[name]
        size = _size(given)
        if size is None:
            raise InputError(
                f"{self.path}: photo {name} has height and width {given}; expected whole numbers "
                "of pixels. Correct them, or remove the photo."
            )
        labels = np.zeros(size, LABEL_DTYPE)
        areas = [
            float(images.draw_regions(shape.regions, *size).sum())
            if shape.area is None
            else shape.area
            for shape in self.shapes[name]
        ]
        for number in sorted(range(len(areas)), key=lambda number: -areas[number]):
            shape = self.shapes[name][number]
            labels[images.draw_regions(shape.regions, *size)] = shape.label
        return labels


def read_instances(path: Path, names: Sequence[str]) -> Instances:
    """Return the objects in a file of instances whose categories have the label names `names`.

    A line of the log says how many objects cannot be drawn, and why the first of them cannot.

    Raises:
        InputError: the file does not hold COCO instances, or not those of these categories.
    """
    try:
        tree = json.loads(read_bytes(path))
        categories = sorted(tree["categories"], key=lambda category: int(category["id"]))
        label_of = {_key(category["id"]): label for label, category in enumerate(categories, 1)}
        given = [category["name"] for category in categories]
        photos = {_key(image["id"]): image["file_name"] for image in tree["images"]}
        sizes = {
            image["file_name"]: (image.get("height"), image.get("width"))
            for image in tree["images"]
        }
        entries = list(tree["annotations"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} does not hold COCO instances: {error!r}.") from error
    if given != list(names):
        listed = ", ".join(map(str, given[:5]))
        raise InputError(f"{path} has other categories than COCO's 80: {listed}, …")
    shapes: dict[str, list[Shape]] = {name: [] for name in sizes}
    problems = []
    for number, entry in enumerate(entries):
        try:
            name, shape = photos[_key(entry["image_id"])], _shape(entry, label_of)
            if (size := _size(sizes[name])) is not None:
                images.refuse_regions(shape.regions, *size)
            shapes[name].append(shape)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is not there" if isinstance(error, KeyError) else error
            problems.append(f"annotation {number + 1}: {reason}")
    if problems:
        _log.warning(
            "%s: %d of %d objects cannot be drawn and are left out; %s",
            path, len(problems), len(entries), problems[0],
        )  # fmt: skip
    return Instances(path, sizes, shapes, len(problems))


def _shape(entry: Any, label_of: Mapping[Any, int]) -> Shape:
    area = entry.get("area")
    is_number = isinstance(area, int | float) and 0 <= area < np.inf
    if _key(entry.get("iscrowd") or 0) not in (0, False):
        area, is_number = np.inf, True
    label = label_of[_key(entry["category_id"])]
    return Shape(label, float(area) if is_number else None, entry["segmentation"])


def _key(value: Any) -> Any:
    """Return an id as a key, by which 1, 1.0 and "1" are equal."""
    try:
        return int(value) if float(value) == int(value) else value
    except (ValueError, TypeError, OverflowError):
        return str(value)


def _size(sides: tuple[Any, Any]) -> tuple[int, int] | None:
    """Return (height, width) if both are whole positive numbers of a size that can be drawn."""
    height, width = (_key(side) for side in sides)
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        return None
    return (height, width) if height * width <= images.MAX_MASK_PIXELS else None
