"""Miniatures of the benchmarks as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from namedmask import images
from namedmask.categories import load_category_set
from namedmask.evaluate.imagenet_s import encode_label_map
from namedmask.schema.columns import IGNORE

VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


def photo_bytes(height: int, width: int) -> bytes:
    return images.encode_jpeg(np.full((height, width, 3), 90, np.uint8))


def write_palette_png(path: Path, ids: np.ndarray) -> None:
    """Write ids as VOC does: a palette picture whose colors say nothing of the ids."""
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(list(np.random.default_rng(0).permutation(768) % 256))
    assert picture.mode == "P"
    picture.save(path)


def write_photo(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = photo_bytes(height, width)
    if path.suffix == ".png":
        data = images.encode_png(np.zeros((height, width, 3), np.uint8))
    path.write_bytes(data)


def write_ids(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(ids.astype(np.uint8)))


CROWD = {"size": [20, 30], "counts": [0, 20 * 10, 20 * 20]}  # the ten columns on the left


def imagenet_s_tree(root: Path, count: int) -> Path:
    """Write a miniature of ImageNet-S: two photos, the last label and the ignored ones in both."""
    folder = root / f"ImageNetS{count}"
    for wnid in ("n01443537", "n12998815"):
        write_photo(folder / "validation" / wnid / "ILSVRC2012_val_00000001.JPEG", 6, 8)
        write_photo(folder / "test" / wnid / "ILSVRC2012_val_00000002.JPEG", 6, 8)
        labels = np.tile([0, 1, count, IGNORE], (6, 2)).astype(np.uint16)
        path = folder / "validation-segmentation" / wnid / "ILSVRC2012_val_00000001.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_label_map(labels))
    return folder


def voc_tree(tmp_path: Path) -> Path:
    """Return a miniature VOCdevkit: two photos in val, one of them in train too."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for name in VOC_FOLDERS:
        (base / name).mkdir(parents=True)
    for stem, (height, width) in {"2007_000033": (30, 40), "2007_000042": (25, 20)}.items():
        ids = np.zeros((height, width), np.uint8)
        ids[5:10, 5:10], ids[10, 5:10], ids[0, 0] = 3, 255, 20
        (base / "JPEGImages" / f"{stem}.jpg").write_bytes(photo_bytes(height, width))
        write_palette_png(base / "SegmentationClass" / f"{stem}.png", ids)
    lists = base / "ImageSets" / "Segmentation"
    (lists / "val.txt").write_text("2007_000033\n2007_000042\n")
    (lists / "train.txt").write_text("2007_000042\n")
    return tmp_path


def folder_tree(tmp_path: Path) -> Path:
    """Return a tree of one's own: 16-bit and 8-bit label maps, PNG and JPEG photos."""
    root = tmp_path / "zoo"
    for kind in ("images", "labels"):
        (root / "test" / kind).mkdir(parents=True)
    ids = np.zeros((12, 16), np.uint16)
    ids[3:6], ids[0] = 2, 65535
    (root / "test" / "images" / "a.png").write_bytes(
        images.encode_png(np.zeros((12, 16, 3), np.uint8))
    )
    Image.fromarray(ids).save(root / "test" / "labels" / "a.png")
    (root / "test" / "images" / "b.jpg").write_bytes(photo_bytes(8, 9))
    (root / "test" / "labels" / "b.png").write_bytes(images.encode_png(np.ones((8, 9), np.uint8)))
    (root / "test" / "images" / "notes.txt").write_text("not a photo")
    (root / "benchmark.toml").write_text('names = ["zebra", "gnu"]\nignore = 65535\n')
    return root


def coco_tree(tmp_path: Path) -> Path:
    """Return a miniature of COCO: a cat (17) on a couch (63) and a crowd of people (1)."""
    for number in (1, 2):
        write_photo(tmp_path / "val2017" / f"{number:012d}.jpg", 20, 30)
    names = load_category_set("coco2017").names
    gone = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [number for number in range(1, 91) if number not in gone]
    couch, cat = [0, 10, 20, 10, 20, 20, 0, 20], [5, 12, 15, 12, 15, 16, 5, 16]
    compressed = {"size": [20, 30], "counts": images.encode_mask(np.eye(20, 30) > 0).decode()}
    shapes = [(17, 40, 0, [cat]), (63, 200, 0, [couch]), (1, 9, 1, CROWD), (90, 20, 0, compressed)]
    tree = {
        "images": [
            {"id": 70 + number, "file_name": f"{number:012d}.jpg", "height": 20, "width": 30}
            for number in (1, 2)
        ],
        "categories": [{"id": id, "name": name} for id, name in zip(ids, names, strict=True)],
        "annotations": [
            {"image_id": 71, "category_id": id, "area": area, "iscrowd": crowd,
             "segmentation": regions}
            for id, area, crowd, regions in shapes
        ],
    }  # fmt: skip
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(tree))
    return tmp_path


def coca_tree(tmp_path: Path) -> Path:
    """Return a miniature of CoCA: all folders, one photo in the first and one in the last."""
    names = load_category_set("coca").names
    for name in names:
        for part in ("image", "binary"):
            (tmp_path / part / name).mkdir(parents=True)
    for name in (names[0], names[-1]):
        write_photo(tmp_path / "image" / name / "one.jpg", 10, 12)
        write_ids(tmp_path / "binary" / name / "one.png", np.tile([0, 90, 200, 255], (10, 3)))
    return tmp_path


def cityscapes_tree(tmp_path: Path) -> Path:
    """Return a miniature of Cityscapes: a picture in each of two cities."""
    for city in ("bonn", "ulm"):
        stem = f"{city}_000000_000019"
        write_photo(tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png", 4, 6)
        ids = np.tile([0, 7, 17, 20, 24, 33], (4, 1))
        folder = tmp_path / "gtFine" / "val" / city
        write_ids(folder / f"{stem}_gtFine_labelIds.png", ids)
        write_ids(folder / f"{stem}_gtFine_instanceIds.png", ids)
    return tmp_path
