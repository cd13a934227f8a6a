"""Labeled splits to judge a segmenter on, each read from the folders it is published in.

A benchmark is a sequence of (sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16); its
label id i + 1 is `names[i]`, 0 is background, and whatever the benchmark ignores is 65535.
To add one: a function (root, split) → Benchmark, and a line in `BENCHMARKS`, or a dotted path.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from namedmask import images
from namedmask.categories import load_category_set
from namedmask.config import EvaluateConfig
from namedmask.errors import ConfigError, InputError, unknown_name
from namedmask.metrics import Absent
from namedmask.plugins import resolve
from namedmask.schema import IGNORE, LABEL_DTYPE
from namedmask.storage import Place

VOC_IGNORE = 255

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

LABEL_MODES = ("1", "L", "P", "I;16")
"""Pillow's names for one number a pixel; for a palette image that is the index."""


class Benchmark(Protocol):
    """A labeled split."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Label names without background; label id i + 1 is `names[i]`."""

    @property
    def absent(self) -> Absent:
        """What a label counts that occurs nowhere."""

    def __len__(self) -> int:
        """Return how many samples there are."""

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Return sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16."""


@dataclass(frozen=True)
class LabeledFiles:
    """A benchmark whose samples are one photo and one label map each."""

    name: str
    names: tuple[str, ...]
    absent: Absent
    ignore_id: int  # in the files
    pairs: tuple[tuple[Path, Path], ...]  # photo, label map

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Return sample name, image (H, W, 3) uint8 RGB, label map (H, W) uint16.

        Raises:
            InputError: a file is missing or broken, sizes differ, or a label id has no name.
        """
        photo_path, label_path = self.pairs[index]
        try:
            image = images.decode(_read(photo_path))
        except images.BadImage as error:
            raise InputError(f"{photo_path} cannot be decoded: {error}.") from error
        label = read_label_map(label_path)
        if label.shape != image.shape[:2]:
            raise InputError(
                f"{label_path} is {label.shape} and its photo {photo_path} {image.shape[:2]}; "
                "expected one size. Give the label map that was made for this photo."
            )
        label[label == self.ignore_id] = IGNORE
        known = label[label != IGNORE]
        if known.size and known.max() > len(self.names):
            raise InputError(
                f"{label_path} holds label id {known.max()}; benchmark '{self.name}' names 1 to "
                f"{len(self.names)} and ignores {self.ignore_id}."
            )
        return photo_path.stem, image, label


def voc2012(root: Path, split: str) -> Benchmark:
    """Return a split of PASCAL VOC 2012: `train`, `val`, `trainval`.

    `root` holds VOCdevkit/VOC2012, or is one of these two folders.

    Raises:
        InputError: a folder or the split's list is missing.
    """
    starts = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    folder = next((start for start in starts if (start / "JPEGImages").is_dir()), starts[0])
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        _require_folder(folder / part, "voc2012")
    lists = folder / "ImageSets" / "Segmentation"
    if not (lists / f"{split}.txt").is_file():
        raise _no_split("voc2012", split, [path.stem for path in lists.glob("*.txt")], lists)
    stems = (lists / f"{split}.txt").read_text(encoding="utf-8").split()
    pairs = (
        (folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png")
        for stem in stems
    )
    names = load_category_set("voc2012").names
    return LabeledFiles("voc2012", names, "skip", VOC_IGNORE, _some(pairs, lists / f"{split}.txt"))


def folder(root: Path, split: str) -> Benchmark:
    """Return a split of your own: photos, label maps, and one file that names the label ids.

    `root/benchmark.toml` holds `names` (label id i + 1 is names[i]), and may hold `ignore` (label
    id in the files that counts nowhere, 65535) and `absent` ("skip" or "zero"). The photos are
    `root/<split>/images/*`, their label maps `root/<split>/labels/<same stem>.png` of 8 or 16 bit.

    Raises:
        InputError: a folder, the file, or a label map is missing.
        ConfigError: the file does not say what it should.
    """
    names, ignore_id, absent = _read_names(root / "benchmark.toml")
    if not (root / split).is_dir():
        raise _no_split("folder", split, [path.parent.name for path in root.glob("*/images")], root)
    photos, labels = root / split / "images", root / split / "labels"
    for part in (photos, labels):
        _require_folder(part, "folder")
    found = sorted(path for path in photos.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES)
    pairs = _some(((path, labels / f"{path.stem}.png") for path in found), photos)
    missing = [label for _, label in pairs if not label.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} is missing, and {len(missing) - 1} more label maps of photos in "
            f"{photos}. Every photo needs a label map of its own name."
        )
    return LabeledFiles(root.name, names, absent, ignore_id, pairs)


BENCHMARKS: dict[str, Callable[[Path, str], Benchmark]] = {
    "folder": folder,
    "miniworld": folder,
    "voc2012": voc2012,
}


def open_benchmark(config: EvaluateConfig) -> Benchmark:
    """Return the benchmark that the `evaluate` section names.

    Raises:
        ConfigError: none is named, or an unknown one, or no root.
        InputError: its folders are not as published.
    """
    if not config.benchmark or not config.root:
        raise ConfigError(
            "evaluate: 'benchmark' and 'root' say what to judge on; got "
            f"benchmark '{config.benchmark}' and root '{config.root}'. Known benchmarks: "
            f"{', '.join(sorted(BENCHMARKS))}."
        )
    make = resolve("benchmark", config.benchmark, BENCHMARKS)
    return make(Path(config.root), config.split)


def read_label_map(path: Place) -> np.ndarray:
    """Return the label ids in a PNG of 8 or 16 bit or with a palette, (H, W) uint16.

    Raises:
        InputError: no such file, not decodable, or colors instead of ids.
    """
    try:
        with Image.open(io.BytesIO(_read(path)), formats=("PNG",)) as image:
            image.load()
            mode, array = image.mode, np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"label map {path} cannot be decoded: {error}") from error
    if mode not in LABEL_MODES:
        raise InputError(
            f"label map {path} holds colors (mode {mode}); expected one label id a pixel, in a PNG "
            "of 8 or 16 bit or with a palette."
        )
    return array.astype(LABEL_DTYPE)


def _read_names(path: Path) -> tuple[tuple[str, ...], int, Absent]:
    try:
        tree: Mapping[str, Any] = tomllib.loads(_read(path).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
            f"{path}: 'names' must be at least one name, each once, without background; got "
            f"{names!r}."
        )
    if not isinstance(ignore_id, int) or not len(names) < ignore_id <= IGNORE:
        raise ConfigError(
            f"{path}: 'ignore' is {ignore_id!r}; expected a label id above the {len(names)} names, "
            f"at most {IGNORE}."
        )
    if absent not in (None, "skip", "zero"):
        raise ConfigError(f"{path}: 'absent' is {absent!r}; expected 'skip' or 'zero'.")
    return tuple(names), ignore_id, absent or "skip"


def _read(path: Place) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error


def _some(pairs: Iterable[tuple[Path, Path]], place: Path) -> tuple[tuple[Path, Path], ...]:
    some = tuple(pairs)
    if not some:
        raise InputError(f"{place} holds no photo; expected at least one. Choose another split.")
    return some


def _require_folder(path: Path, benchmark: str) -> None:
    if not path.is_dir():
        raise InputError(
            f"folder {path} is missing; benchmark '{benchmark}' is read in the layout it is "
            "published in. Point evaluate.root at it."
        )


def _no_split(benchmark: str, split: str, known: Sequence[str], place: Path) -> InputError:
    listed = ", ".join(sorted(known)) or "none"
    return InputError(
        f"benchmark '{benchmark}' has no split '{split}' in {place}; there: {listed}. "
        "Set evaluate.split to one of them."
    )
