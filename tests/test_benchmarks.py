"""Benchmark readers on trees in their published layout, made here, and on real VOC masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from namedmask import images
from namedmask.benchmarks import BENCHMARKS, folder, open_benchmark, read_label_map, voc2012
from namedmask.config import EvaluateConfig
from namedmask.errors import ConfigError, InputError
from namedmask.schema import IGNORE

VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


def photo_bytes(height: int, width: int) -> bytes:
    return images.encode_jpeg(np.full((height, width, 3), 90, np.uint8))


def write_palette_png(path: Path, ids: np.ndarray) -> None:
    """Write ids as VOC does: a palette picture whose colors say nothing of the ids."""
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(list(np.random.default_rng(0).permutation(768) % 256))
    assert picture.mode == "P"
    picture.save(path)


@pytest.fixture
def voc_tree(tmp_path) -> Path:
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


def test_voc_reads_photos_ids_and_void(voc_tree) -> None:
    benchmark = voc2012(voc_tree, "val")
    assert len(benchmark) == 2 and benchmark.absent == "skip"
    assert len(benchmark.names) == 20 and benchmark.names[2] == "bird"
    name, image, label = benchmark[1]
    assert name == "2007_000042"
    assert image.shape == (25, 20, 3) and image.dtype == np.uint8
    assert label.shape == (25, 20) and label.dtype == np.uint16
    assert np.unique(label).tolist() == [0, 3, 20, IGNORE]
    assert (label[10, 5:10] == IGNORE).all() and (label[5:10, 5:10] == 3).all()
    assert len(voc2012(voc_tree, "train")) == 1


@pytest.mark.parametrize("below", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_root_may_be_one_of_the_inner_folders(voc_tree, below) -> None:
    assert len(voc2012(voc_tree / below, "val")) == 2


@pytest.mark.parametrize("missing", VOC_FOLDERS)
def test_voc_tree_without_a_folder_names_it(voc_tree, missing) -> None:
    shutil.rmtree(voc_tree / "VOCdevkit" / "VOC2012" / missing)
    with pytest.raises(InputError, match=f"VOCdevkit/VOC2012/{missing} is missing"):
        voc2012(voc_tree, "val")


def test_voc_unknown_split_names_the_known_ones(voc_tree) -> None:
    with pytest.raises(InputError, match=r"no split 'test'.*there: train, val"):
        voc2012(voc_tree, "test")


def test_voc_missing_label_map_is_named_when_read(voc_tree) -> None:
    base = voc_tree / "VOCdevkit" / "VOC2012"
    (base / "SegmentationClass" / "2007_000042.png").unlink()
    with pytest.raises(InputError, match=r"2007_000042\.png cannot be read: No such file"):
        voc2012(voc_tree, "val")[1]


def test_voc_label_of_another_size_is_refused(voc_tree) -> None:
    base = voc_tree / "VOCdevkit" / "VOC2012"
    write_palette_png(base / "SegmentationClass" / "2007_000042.png", np.zeros((20, 25)))
    with pytest.raises(InputError, match=r"2007_000042\.png is \(20, 25\) and its photo"):
        voc2012(voc_tree, "val")[1]


def test_voc_broken_photo_is_named(voc_tree) -> None:
    base = voc_tree / "VOCdevkit" / "VOC2012"
    (base / "JPEGImages" / "2007_000033.jpg").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"2007_000033\.jpg cannot be decoded: not_an_image"):
        voc2012(voc_tree, "val")[0]


def test_voc_style_masks_of_real_photos_hold_known_ids(real_data, tmp_path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    source = real_data / "voc_style"
    shutil.copytree(source / "photos", base / "JPEGImages")
    shutil.copytree(source / "masks", base / "SegmentationClass")
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    stems = sorted(path.stem for path in (source / "masks").iterdir())
    (lists / "val.txt").write_text("\n".join(stems))
    benchmark = voc2012(tmp_path, "val")
    assert len(benchmark) == 3
    found = set()
    for index in range(3):
        name, image, label = benchmark[index]
        assert name == stems[index] and label.shape == image.shape[:2]
        found |= set(np.unique(label).tolist())
    assert {0, IGNORE} < found <= {*range(21), IGNORE}


@pytest.fixture
def folder_tree(tmp_path) -> Path:
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


def test_folder_reads_8_and_16_bit_labels(folder_tree) -> None:
    benchmark = folder(folder_tree, "test")
    assert (benchmark.name, benchmark.names, len(benchmark)) == ("zoo", ("zebra", "gnu"), 2)
    first, second = benchmark[0], benchmark[1]
    assert (first[0], second[0]) == ("a", "b")
    assert np.unique(first[2]).tolist() == [0, 2, IGNORE]
    assert np.unique(second[2]).tolist() == [1] and second[2].dtype == np.uint16


def test_folder_with_own_ignore_id_and_absent_rule(folder_tree) -> None:
    (folder_tree / "benchmark.toml").write_text(
        'names = ["zebra", "gnu"]\nignore = 255\nabsent = "zero"\n'
    )
    ids = np.full((8, 9), 255, np.uint8)
    (folder_tree / "test" / "labels" / "b.png").write_bytes(images.encode_png(ids))
    benchmark = folder(folder_tree, "test")
    assert benchmark.absent == "zero"
    assert (benchmark[1][2] == IGNORE).all()


def test_folder_label_id_without_a_name_is_refused(folder_tree) -> None:
    ids = np.full((8, 9), 3, np.uint8)
    (folder_tree / "test" / "labels" / "b.png").write_bytes(images.encode_png(ids))
    with pytest.raises(InputError, match=r"b\.png holds label id 3; .* names 1 to 2"):
        folder(folder_tree, "test")[1]


def test_folder_colored_label_map_is_refused(folder_tree) -> None:
    colors = np.zeros((8, 9, 3), np.uint8)
    (folder_tree / "test" / "labels" / "b.png").write_bytes(images.encode_png(colors))
    with pytest.raises(InputError, match="holds colors"):
        folder(folder_tree, "test")[1]


def test_folder_photo_without_label_map_is_named(folder_tree) -> None:
    (folder_tree / "test" / "labels" / "b.png").unlink()
    with pytest.raises(InputError, match=r"labels/b\.png is missing, and 0 more"):
        folder(folder_tree, "test")


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_folder_tree_without_a_folder_names_it(folder_tree, missing) -> None:
    shutil.rmtree(folder_tree / "test" / missing)
    with pytest.raises(InputError, match=f"zoo/test/{missing} is missing"):
        folder(folder_tree, "test")


def test_folder_unknown_split_names_the_known_ones(folder_tree) -> None:
    with pytest.raises(InputError, match=r"no split 'val' in .*zoo; there: test"):
        folder(folder_tree, "val")


def test_folder_without_photos_is_refused(folder_tree) -> None:
    for path in (folder_tree / "test" / "images").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"test/images holds no photo"):
        folder(folder_tree, "test")


def test_folder_without_names_file_is_refused(folder_tree) -> None:
    (folder_tree / "benchmark.toml").unlink()
    with pytest.raises(InputError, match=r"benchmark\.toml cannot be read"):
        folder(folder_tree, "test")


@pytest.mark.parametrize(
    ("text", "words"),
    [("names = []", "at least one name"), ('names = ["a", "a"]', "each once"),
     ("names = [1]", "list of names"), ("ignore = 255", "'names' must be a list"),
     ('names = ["a", "b"]\nignore = 2', "'ignore' is 2"), ('names = ["a"]\nabsent = "no"', "'no'"),
     ('names = ["a"]\nnam = 1', "'nam' is unknown"), ("names = [", "cannot be read as TOML")],
)  # fmt: skip
def test_folder_with_wrong_names_file_is_refused(folder_tree, text, words) -> None:
    (folder_tree / "benchmark.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        folder(folder_tree, "test")


def test_label_map_that_is_no_png_is_refused(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(photo_bytes(4, 4))
    with pytest.raises(InputError, match=r"a\.png cannot be decoded"):
        read_label_map(tmp_path / "a.png")


def test_open_benchmark_follows_the_config(folder_tree) -> None:
    config = EvaluateConfig(benchmark="miniworld", root=str(folder_tree), split="test")
    assert open_benchmark(config).names == ("zebra", "gnu")


def test_open_benchmark_knows_what_is_missing(folder_tree) -> None:
    with pytest.raises(ConfigError, match=r"'benchmark' and 'root'.*folder, miniworld, voc2012"):
        open_benchmark(EvaluateConfig(benchmark="voc2012"))
    with pytest.raises(ConfigError, match="Did you mean 'voc2012'"):
        open_benchmark(EvaluateConfig(benchmark="voc2021", root=str(folder_tree)))


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_refuses_an_empty_folder(name, tmp_path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        BENCHMARKS[name](tmp_path, "val")
