"""Benchmark readers on trees in their published layout, made here, and on real VOC masks."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from namedmask import images
from namedmask.config import EvaluateConfig
from namedmask.errors import ConfigError, InputError
from namedmask.evaluate.benchmarks import (
    BENCHMARKS,
    cityscapes_object,
    coca,
    coco2017,
    folder,
    open_benchmark,
    voc2012,
)
from namedmask.evaluate.imagenet_s import encode_label_map
from namedmask.evaluate.label_maps import read_label_map
from namedmask.schema.columns import IGNORE
from tests.trees import (
    VOC_FOLDERS,
    cityscapes_tree,
    coca_tree,
    coco_tree,
    folder_tree,
    imagenet_s_tree,
    photo_bytes,
    voc_tree,
    write_ids,
    write_palette_png,
)


@pytest.fixture(name="voc_tree")
def _voc_tree(tmp_path) -> Path:
    return voc_tree(tmp_path)


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


def test_voc_reading_leaves_its_folder_as_it_was(voc_tree) -> None:
    def found() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in voc_tree.rglob("*") if path.is_file()}

    before, benchmark = found(), voc2012(voc_tree, "val")
    first = [benchmark[index] for index in range(len(benchmark))]
    first[0][2][:] = 7  # what is handed out belongs to nobody else
    assert (benchmark[0][2] != 7).any()
    assert found() == before


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


@pytest.fixture(name="folder_tree")
def _folder_tree(tmp_path) -> Path:
    return folder_tree(tmp_path)


def test_folder_reads_8_and_16_bit_labels(folder_tree) -> None:
    benchmark = folder(folder_tree, "test")
    assert (benchmark.name, benchmark.names, len(benchmark)) == ("zoo", ("zebra", "gnu"), 2)
    first, second = benchmark[0], benchmark[1]
    assert (first[0], second[0]) == ("a", "b")
    assert np.unique(first[2]).tolist() == [0, 2, IGNORE]
    assert np.unique(second[2]).tolist() == [1] and second[2].dtype == np.uint16


def test_folder_hidden_files_are_left_out_and_every_suffix_is_read(folder_tree, caplog) -> None:
    photos, labels = folder_tree / "test" / "images", folder_tree / "test" / "labels"
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "@eaDir"):
        (photos / name).write_bytes(b"no photo")
    for name in ("c.JFIF", "d.jpe"):
        shutil.copy(photos / "b.jpg", photos / name)
        shutil.copy(labels / "b.png", labels / f"{name[0]}.png")
    benchmark = folder(folder_tree, "test")
    assert [sample.name for sample in benchmark.samples] == ["a", "b", "c", "d"]
    assert "1 hidden photos are left out" in caplog.text


def test_folder_names_in_two_normal_forms_are_a_pair(folder_tree) -> None:
    photos, labels = folder_tree / "test" / "images", folder_tree / "test" / "labels"
    (photos / "b.jpg").rename(photos / unicodedata.normalize("NFC", "é.jpg"))
    (labels / "b.png").rename(labels / unicodedata.normalize("NFD", "é.png"))
    assert np.unique(folder(folder_tree, "test")[1][2]).tolist() == [1]


def test_coco_hidden_photos_are_left_out(tmp_path) -> None:
    root = coco_tree(tmp_path)
    (root / "val2017" / "._000000000001.jpg").write_bytes(b"no photo")
    assert len(coco2017(root, "val")) == 2


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
    with pytest.raises(InputError, match=r"b\.png holds label id 3; expected 0 to 2, 65535"):
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
    with pytest.raises(InputError, match=r"no split 'val' in .*zoo; splits there: test"):
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
     ('names = ["a", "Background "]', "name 2 is 'Background '"),
     ('names = ["a", " a"]', "name 1 and name 2 are both"),
     ('names = ["a\\u001b[2J"]', "control characters"),
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
    with pytest.raises(ConfigError, match=r"'benchmark' and 'root'.*folder, imagenet_s_300"):
        open_benchmark(EvaluateConfig(benchmark="voc2012"))
    with pytest.raises(ConfigError, match="Did you mean 'voc2012'"):
        open_benchmark(EvaluateConfig(benchmark="voc2021", root=str(folder_tree)))


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_refuses_an_empty_folder(name, tmp_path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        BENCHMARKS[name](tmp_path, "val")


@pytest.fixture(name="coco_tree")
def _coco_tree(tmp_path) -> Path:
    return coco_tree(tmp_path)


def test_coco_draws_its_instances_small_over_large_over_crowds(coco_tree) -> None:
    benchmark = coco2017(coco_tree, "val")
    assert (len(benchmark), len(benchmark.names), benchmark.absent) == (2, 80, "skip")
    name, image, label = benchmark[0]
    assert name == "000000000001" and image.shape == (20, 30, 3)
    cat, couch = 1 + benchmark.names.index("cat"), 1 + benchmark.names.index("couch")
    assert (label[13, 8], label[12, 2], label[2, 5], label[2, 25]) == (cat, couch, 1, 0)
    assert (np.diag(label)[:12] == 80).all()  # the toothbrush, all along the diagonal
    assert not benchmark[1][2].any()


def test_coco_prefers_label_maps_made_before(coco_tree) -> None:
    maps = coco_tree / "annotations" / "semantic_segmentation_masks"
    for number in (1, 2):
        write_ids(maps / f"{number:012d}.png", np.tile([0, 80, 255], (20, 10)))
    benchmark = coco2017(coco_tree, "val")
    assert np.unique(benchmark[1][2]).tolist() == [0, 80, IGNORE]
    (maps / "000000000002.png").unlink()
    with pytest.raises(InputError, match=r"000000000002\.png is missing, and 0 more"):
        coco2017(coco_tree, "val")


def test_coco_wrong_trees_name_what_is_missing(coco_tree) -> None:
    with pytest.raises(InputError, match=r"no split 'train'.*there: val"):
        coco2017(coco_tree, "train")
    file = coco_tree / "annotations" / "instances_val2017.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"categories": tree["categories"][:1], "annotations": []}))
    with pytest.raises(InputError, match="other categories than COCO's 80: person"):
        coco2017(coco_tree, "val")
    file.write_text("{}")
    with pytest.raises(InputError, match=r"instances_val2017\.json does not hold COCO instances"):
        coco2017(coco_tree, "val")
    shutil.rmtree(coco_tree / "annotations")
    with pytest.raises(InputError, match=r"annotations is missing"):
        coco2017(coco_tree, "val")


def test_coco_instances_of_real_photos_agree_with_their_panoptic_masks(real_data, tmp_path) -> None:
    source = real_data / "coco"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").symlink_to(source / "photos")
    (tmp_path / "annotations" / "instances_train2017.json").symlink_to(
        source / "instances_train128.json"
    )
    benchmark = coco2017(tmp_path, "train")
    tree = json.loads((source / "instances_train128.json").read_text())
    ids = sorted(category["id"] for category in tree["categories"])
    right = counted = seen = 0
    for index in range(0, len(benchmark), 4):
        name, _, label = benchmark[index]
        if (source / "masks" / f"{name}.png").is_file():
            panoptic = np.asarray(Image.open(source / "masks" / f"{name}.png"))
            truth = np.zeros(256, int)
            truth[ids] = range(1, 81)
            right += int((truth[panoptic] == label).sum())
            counted, seen = counted + label.size, seen + 1
    assert seen > 10 and right / counted > 0.95


@pytest.fixture(name="coca_tree")
def _coca_tree(tmp_path) -> Path:
    return coca_tree(tmp_path)


def test_coca_labels_are_those_of_the_folder(coca_tree) -> None:
    benchmark = coca(coca_tree, "all")
    assert len(benchmark) == 2 and benchmark.absent == "skip"
    first, last = benchmark[0], benchmark[1]
    assert (first[0], last[0]) == ("Accordion/one", "whisk/one")
    assert first[2][0, :4].tolist() == [0, 0, 1, 1] and last[2][0, :4].tolist() == [0, 0, 80, 80]


def test_coca_wrong_trees_name_what_is_missing(coca_tree) -> None:
    with pytest.raises(InputError, match=r"no split 'val'.*there: all"):
        coca(coca_tree, "val")
    (coca_tree / "binary" / "whisk" / "one.png").unlink()
    with pytest.raises(InputError, match=r"binary/whisk/one\.png is missing"):
        coca(coca_tree, "all")
    for missing in ("binary/boots", "image"):
        shutil.rmtree(coca_tree / missing)
        with pytest.raises(InputError, match=f"{missing} is missing"):
            coca(coca_tree, "all")


@pytest.fixture(name="cityscapes_tree")
def _cityscapes_tree(tmp_path) -> Path:
    return cityscapes_tree(tmp_path)


def test_cityscapes_objects_are_labels_and_all_else_background(cityscapes_tree) -> None:
    benchmark = cityscapes_object(cityscapes_tree, "val")
    assert len(benchmark) == 2 and benchmark.absent == "skip"
    name, _, label = benchmark[1]
    assert name == "ulm_000000_000019_leftImg8bit"
    assert label[0].tolist() == [0, 0, 1, 4, 5, 14]
    assert [benchmark.names[i - 1] for i in (1, 4, 5, 14)] == [
        "pole", "traffic sign", "person", "bicycle",
    ]  # fmt: skip


def test_cityscapes_wrong_trees_name_what_is_missing(cityscapes_tree) -> None:
    with pytest.raises(InputError, match=r"no split 'test'.*there: val"):
        cityscapes_object(cityscapes_tree, "test")
    shutil.rmtree(cityscapes_tree / "gtFine" / "val" / "ulm")
    with pytest.raises(InputError, match=r"ulm_000000_000019_gtFine_labelIds\.png is missing"):
        cityscapes_object(cityscapes_tree, "val")
    for missing in ("gtFine/val", "gtFine", "leftImg8bit"):
        shutil.rmtree(cityscapes_tree / missing)
        with pytest.raises(InputError, match=f"{missing} is missing"):
            cityscapes_object(cityscapes_tree, "val")


@pytest.mark.parametrize("count", [50, 300, 919])
def test_imagenet_s_reads_ids_of_two_channels(tmp_path, count) -> None:
    folder = imagenet_s_tree(tmp_path, count)
    for root in (tmp_path, folder):
        benchmark = BENCHMARKS[f"imagenet_s_{count}"](root, "val")
        assert (len(benchmark), len(benchmark.names)) == (2, count)
        assert benchmark.absent == "zero" and benchmark.by_size
        name, _, label = benchmark[1]
        assert name == "n12998815/ILSVRC2012_val_00000001"
        assert label[0, :4].tolist() == [0, 1, count, IGNORE]


def test_imagenet_s_test_split_has_photos_and_no_truth(tmp_path) -> None:
    imagenet_s_tree(tmp_path, 50)
    benchmark = BENCHMARKS["imagenet_s_50"](tmp_path, "test")
    assert len(benchmark) == 2 and (benchmark[0][2] == IGNORE).all()


def test_imagenet_s_wrong_trees_name_what_is_missing(tmp_path) -> None:
    folder = imagenet_s_tree(tmp_path, 50)
    open_it = BENCHMARKS["imagenet_s_50"]
    with pytest.raises(InputError, match=r"no split 'train'.*there: test, validation"):
        open_it(tmp_path, "train")
    maps = folder / "validation-segmentation"
    path = maps / "n12998815" / "ILSVRC2012_val_00000001.png"
    path.write_bytes(encode_label_map(np.full((6, 8), 51, np.uint16)))
    with pytest.raises(InputError, match=r"holds label id 51; expected 0 to 50, 1000"):
        open_it(tmp_path, "val")[1]
    path.unlink()
    with pytest.raises(InputError, match=r"n12998815/ILSVRC2012_val_00000001\.png is missing"):
        open_it(tmp_path, "val")
    shutil.rmtree(maps)
    with pytest.raises(InputError, match=r"ImageNetS50/validation-segmentation is missing"):
        open_it(tmp_path, "val")
    shutil.rmtree(folder / "validation")
    with pytest.raises(InputError, match=r"ImageNetS50/validation is missing"):
        open_it(tmp_path, "val")
