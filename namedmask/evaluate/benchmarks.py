"""Benchmarks to score a segmenter on, each read from the folder layout in which it is published.

To add a benchmark, write a function (root, split) → Benchmark (label_maps.py). Add the function to
`BENCHMARKS`, or name it by its dotted path in `evaluate.benchmark`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from namedmask.categories import load_category_set, refuse_label_names
from namedmask.config import EvaluateConfig
from namedmask.config.registry import resolve
from namedmask.errors import ConfigError, InputError, unknown_name
from namedmask.evaluate import imagenet_s
from namedmask.evaluate.coco_instances import read_instances
from namedmask.evaluate.label_maps import (
    Benchmark,
    LabeledFiles,
    Sample,
    id_table,
    photos_in,
    read_bytes,
    read_labels,
    samples_of,
)
from namedmask.metrics import Absent
from namedmask.schema.columns import IGNORE
from namedmask.storage.texts import text_of

EIGHT_BIT_IGNORE = 255
"""Value of ignored pixels in VOC's label maps, and in the COCO label maps of the method."""

CITYSCAPES_OBJECTS = (17, 18, 19, 20, *range(24, 34))
"""Ids of the object classes in the files of Cityscapes, in the order of the category set."""


def voc2012(root: Path, split: str) -> Benchmark:
    """Return a split of PASCAL VOC 2012: `train`, `val` or `trainval`.

    `root` is the folder that holds VOCdevkit/VOC2012, or VOCdevkit, or VOC2012 itself.

    Raises:
        InputError: a folder or the list of the split is missing.
    """
    folder = _first_folder(root, ("VOCdevkit/VOC2012", "VOC2012", "."), "JPEGImages")
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        _require_folder(folder / part, "voc2012")
    lists = folder / "ImageSets" / "Segmentation"
    if not (lists / f"{split}.txt").is_file():
        raise _no_split("voc2012", split, [path.stem for path in lists.glob("*.txt")], lists)
    names = load_category_set("voc2012").names
    read = partial(read_labels, table=_plain_table(names, EIGHT_BIT_IGNORE))
    photos, labels = folder / "JPEGImages", folder / "SegmentationClass"
    stems = _lines(lists / f"{split}.txt")
    samples = (Sample(stem, photos / f"{stem}.jpg", labels / f"{stem}.png", read) for stem in stems)
    return LabeledFiles("voc2012", names, "skip", _require_samples(samples, lists / f"{split}.txt"))


def _lines(path: Path) -> list[str]:
    try:
        return text_of(read_bytes(path)).split()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 or UTF-16: {error}. Convert it.") from error


def coco2017(root: Path, split: str) -> Benchmark:
    """Return a split of COCO 2017 with its 80 categories of objects: `val` or `train`.

    `root` holds the photos in val2017, and in annotations either the folder
    semantic_segmentation_masks of 8 bit PNGs (1 to 80, 255 ignored), which takes precedence, or
    the published instances_val2017.json. Method: such PNGs; how they were made is not published.
    From the instances, a pixel gets the category of the smallest object that covers it; crowds lie
    below all objects. Objects that cannot be drawn are left out and counted.

    Raises:
        InputError: a folder or file is missing, or the categories are not COCO's 80.
    """
    names, photos = load_category_set("coco2017").names, root / f"{split}2017"
    _require_folder(root / "annotations", "coco2017")
    if not photos.is_dir():
        known = [path.name.removesuffix("2017") for path in root.glob("*2017")]
        raise _no_split("coco2017", split, known, photos)
    paths = photos_in(photos, "*.jpg")
    maps, left_out = root / "annotations" / "semantic_segmentation_masks", 0
    if maps.is_dir():
        read = partial(read_labels, table=_plain_table(names, EIGHT_BIT_IGNORE))
        pairs = ((photo, maps / f"{photo.stem}.png") for photo in paths)
        samples = samples_of(pairs, read)
    else:
        file = root / "annotations" / f"instances_{split}2017.json"
        instances = read_instances(file, names)
        draw = instances.label_map
        samples = [Sample(photo.stem, photo, file, partial(draw, photo.name)) for photo in paths]
        left_out = instances.left_out
    checked = _require_samples(samples, photos)
    return LabeledFiles("coco2017", names, "skip", checked, objects_left_out=left_out)


def coca(root: Path, split: str) -> Benchmark:
    """Return CoCA, whose only split is `all`: image/<category>/*.jpg, binary/<category>/*.png.

    Differs: the method takes only gray level 255 as the object, which leaves smoothed edges as ids
    without a meaning; here the object begins at 128.

    Raises:
        InputError: a folder or a label map is missing.
    """
    for part in ("image", "binary"):
        _require_folder(root / part, "coca")
    if split != "all":
        raise _no_split("coca", split, ["all"], root)
    names, samples = load_category_set("coca").names, []
    for label, name in enumerate(names, start=1):
        photos, masks = root / "image" / name, root / "binary" / name
        for folder in (photos, masks):
            _require_folder(folder, "coca")
        table = id_table({id: label if id >= 128 else 0 for id in range(256)})
        pairs = ((photo, masks / f"{photo.stem}.png") for photo in photos_in(photos, "*.jpg"))
        samples += samples_of(pairs, partial(read_labels, table=table), _name_with_folder)
    return LabeledFiles("coca", names, "skip", _require_samples(samples, root / "image"))


def cityscapes_object(root: Path, split: str) -> Benchmark:
    """Return a split of the objects in Cityscapes, `val` or `train`; the rest is background.

    `root` holds leftImg8bit and gtFine. In gtFine, only the files *_gtFine_labelIds.png are read.

    Raises:
        InputError: a folder or a label map is missing.
    """
    for part in ("leftImg8bit", "gtFine"):
        _require_folder(root / part, "cityscapes_object")
    photos, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not photos.is_dir():
        known = [path.name for path in (root / "leftImg8bit").iterdir() if path.is_dir()]
        raise _no_split("cityscapes_object", split, known, root / "leftImg8bit")
    _require_folder(labels, "cityscapes_object")
    table = id_table({id: label for label, id in enumerate(CITYSCAPES_OBJECTS, start=1)}, other=0)
    pairs = []
    for photo in photos_in(photos, "*/*_leftImg8bit.png"):
        stem = photo.stem.removesuffix("_leftImg8bit")
        pairs.append((photo, labels / photo.parent.name / f"{stem}_gtFine_labelIds.png"))
    samples = samples_of(pairs, partial(read_labels, table=table))
    names = load_category_set("cityscapes_object").names
    return LabeledFiles("cityscapes_object", names, "skip", _require_samples(samples, photos))


def imagenet_s_split(root: Path, split: str, count: int) -> Benchmark:
    """Return a split of ImageNet-S with 50, 300 or 919 categories: `val`, `train-semi` or `test`.

    `root` is the folder ImageNetS50 (300, 919) or holds it. The folder has validation/<wnid>/*.JPEG
    and validation-segmentation/<wnid>/*.png. The truth of `test` is not published. If its folder is
    missing, all pixels are ignored, so that predictions can still be exported.

    Raises:
        InputError: a folder or a label map is missing.
    """
    name, published = f"imagenet_s_{count}", {"val": "validation"}.get(split, split)
    folder = _first_folder(root, (f"ImageNetS{count}", "."), "validation")
    if not (folder / published).is_dir():
        _require_folder(folder / "validation", name)
        known = [path.name.removesuffix("-segmentation") for path in folder.glob("*-segmentation")]
        raise _no_split(name, split, [*known, "test"], folder)
    photos, maps = folder / published, folder / f"{published}-segmentation"
    names = load_category_set(name).names
    table = _plain_table(names, imagenet_s.PNG_IGNORE)
    pairs = [
        (photo, maps / photo.parent.name / f"{photo.stem}.png")
        for photo in photos_in(photos, "*/*.JPEG")
    ]
    if published == "test" and not maps.is_dir():
        samples = [Sample(_name_with_folder(photo), photo, label, None) for photo, label in pairs]
    else:
        _require_folder(maps, name)
        read = partial(read_labels, table=table, read=_read_colored)
        samples = samples_of(pairs, read, _name_with_folder)
    return LabeledFiles(name, names, "zero", _require_samples(samples, photos), by_size=True)


def folder(root: Path, split: str) -> Benchmark:
    """Return a split of your own benchmark: photos, label maps, and a file with the label names.

    `root/benchmark.toml` holds `names` (label id i + 1 is names[i]). It may hold `ignore` (the id
    of ignored pixels in the files, by default 65535) and `absent` ("skip" or "zero"). The photos
    are `root/<split>/images/*`, their label maps `root/<split>/labels/<same stem>.png` of 8 or 16
    bit.

    Raises:
        InputError: a folder, benchmark.toml or a label map is missing.
        ConfigError: benchmark.toml has wrong contents.
    """
    names, ignore_id, absent = _read_names(root / "benchmark.toml")
    if not (root / split).is_dir():
        raise _no_split("folder", split, [path.parent.name for path in root.glob("*/images")], root)
    photos, labels = root / split / "images", root / split / "labels"
    for part in (photos, labels):
        _require_folder(part, "folder")
    pairs = ((path, labels / f"{path.stem}.png") for path in photos_in(photos))
    samples = samples_of(pairs, partial(read_labels, table=_plain_table(names, ignore_id)))
    return LabeledFiles(root.name, names, absent, _require_samples(samples, photos))


BENCHMARKS: dict[str, Callable[[Path, str], Benchmark]] = {
    "cityscapes_object": cityscapes_object,
    "coca": coca,
    "coco2017": coco2017,
    "folder": folder,
    "imagenet_s_50": partial(imagenet_s_split, count=50),
    "imagenet_s_300": partial(imagenet_s_split, count=300),
    "imagenet_s_919": partial(imagenet_s_split, count=919),
    "miniworld": folder,
    "voc2012": voc2012,
}
"""Functions from (root, split) to a benchmark, by the benchmark's name."""


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """Return the benchmark that the `evaluate` section names.

    Raises:
        ConfigError: the section names no benchmark, an unknown one, or no root.
        InputError: the folders of the benchmark do not have the published layout.
    """
    if not config.benchmark or not config.root:
        raise ConfigError(
            "evaluate: expected 'benchmark' and 'root', a name and the benchmark's folder; got "
            f"benchmark '{config.benchmark}' and root '{config.root}'. Set both; known benchmarks: "
            f"{', '.join(sorted(BENCHMARKS))}."
        )
    make = resolve("benchmark", config.benchmark, BENCHMARKS)
    return make(Path(config.root), config.split)


def _read_names(path: Path) -> tuple[tuple[str, ...], int, Absent]:
    try:
        tree: Mapping[str, Any] = tomllib.loads(text_of(read_bytes(path)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
    known = ("names", "ignore", "absent")
    for key in tree:
        if key not in known:
            raise unknown_name(f"{path}: key", key, known)
    names, ignore_id, absent = tree.get("names"), tree.get("ignore", IGNORE), tree.get("absent")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{path}: 'names' must be a list of names; got {names!r}.")
    if not names or len({*names, "background"}) != len(names) + 1:
        raise ConfigError(
            f"{path}: 'names' must hold at least one name, each once, without background; got "
            f"{names!r}."
        )
    refuse_label_names(f"{path}: 'names'", names)
    if not isinstance(ignore_id, int) or not len(names) < ignore_id <= IGNORE:
        raise ConfigError(
            f"{path}: 'ignore' is {ignore_id!r}; expected a label id above the {len(names)} names, "
            f"at most {IGNORE}."
        )
    if absent not in (None, "skip", "zero"):
        raise ConfigError(f"{path}: 'absent' is {absent!r}; expected 'skip' or 'zero'.")
    return tuple(names), ignore_id, absent or "skip"


def _plain_table(names: Sequence[str], ignore_id: int) -> np.ndarray:
    """Return the id table of files that hold the label ids themselves and one id to ignore."""
    return id_table({label: label for label in range(len(names) + 1)} | {ignore_id: IGNORE})


def _read_colored(path: Path) -> np.ndarray:
    try:
        return imagenet_s.decode_ids(read_bytes(path))
    except ValueError as error:
        raise InputError(f"label map {path} cannot be decoded: {error}") from error


def _name_with_folder(photo: Path) -> str:
    return f"{photo.parent.name}/{photo.stem}"


def _first_folder(root: Path, names: Sequence[str], subfolder: str) -> Path:
    """Return the first of the folders `names` in `root` that has `subfolder`, else the first."""
    folders = [root / name for name in names]
    return next((folder for folder in folders if (folder / subfolder).is_dir()), folders[0])


def _require_samples(samples: Iterable[Sample], path: Path) -> tuple[Sample, ...]:
    checked = tuple(samples)
    if not checked:
        raise InputError(f"{path} holds no photo; expected at least one. Choose another split.")
    return checked


def _require_folder(path: Path, benchmark: str) -> None:
    if not path.is_dir():
        raise InputError(
            f"folder {path} is missing; benchmark '{benchmark}' is read in its published layout. "
            "Set evaluate.root to the folder that holds it."
        )


def _no_split(benchmark: str, split: str, known: Sequence[str], path: Path) -> InputError:
    listed = ", ".join(sorted(known)) or "none"
    return InputError(
        f"benchmark '{benchmark}' has no split '{split}' in {path}; splits there: {listed}. "
        "Set evaluate.split to one of them."
    )
