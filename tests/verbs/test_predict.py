"""Overlays that can be read, and files segmented from a real checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from namedmask import images
from namedmask.categories import load_category_set
from namedmask.cli.app import main
from namedmask.errors import CheckpointError, InputError
from namedmask.evaluate.label_maps import read_label_map
from namedmask.images.overlay import color_of, overlay
from namedmask.schema.columns import IGNORE
from namedmask.segmenter.checkpoint import load_checkpoint, save_checkpoint
from namedmask.segmenter.deeplab import deeplabv3plus_tiny
from namedmask.segmenter.predict import predict_labels
from namedmask.verbs.predict import predict_files, shares

NAMES = ("zebra", "tower crane")


def scene(height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Return a gray picture and labels: a zebra left, a crane right, a strip ignored."""
    labels = np.zeros((height, width), np.uint16)
    labels[20:100, 10:60], labels[20:100, 90:150], labels[110:] = 1, 2, IGNORE
    return np.full((height, width, 3), 100, np.uint8), labels


def test_overlay_leaves_background_whitens_ignored_and_tints_regions() -> None:
    image, labels = scene()
    before = image.copy(), labels.copy()
    drawn = overlay(image, labels, NAMES)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == before[0]).all() and (labels == before[1]).all()
    assert (drawn[5:15] == 100).all()
    assert (drawn[112:] == 255).all()
    for row, column, label_id in ((30, 20, 1), (30, 140, 2)):
        tint = drawn[row, column].astype(int) - 100
        assert (np.sign(tint) == np.sign(np.array(color_of(label_id)) - 100)).all()


def test_overlay_writes_the_name_inside_its_region() -> None:
    image, labels = scene(240, 320)
    labels[:] = 0
    labels[40:200, 60:260] = 1
    with_name = overlay(image, labels, ("zebra", "x"))
    other_name = overlay(image, labels, ("tower crane", "x"))
    rows, columns = np.nonzero((with_name != other_name).any(axis=2))
    assert rows.size > 50
    assert rows.min() >= 40 and rows.max() < 200
    assert columns.min() >= 60 and columns.max() < 260


def test_overlay_outlines_follow_the_border() -> None:
    image, labels = scene()
    drawn = overlay(image, labels, NAMES)
    assert tuple(drawn[60, 10]) == color_of(1)
    assert tuple(drawn[60, 149]) == color_of(2)


def test_overlay_names_every_large_region_and_no_speck() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    labels = np.zeros((200, 300), np.uint16)
    labels[20:180, 10:110], labels[20:180, 190:290], labels[100, 150] = 1, 1, 2
    drawn = overlay(image, labels, NAMES)
    is_text = (drawn == 0).all(axis=2) | (drawn == 255).all(axis=2)
    assert is_text[:, 10:110].any() and is_text[:, 190:290].any()
    assert not is_text[:, 120:180].any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (16, 16)], ids=str)
def test_overlay_of_odd_sizes_and_long_names_is_drawn(shape) -> None:
    labels = np.ones(shape, np.uint16)
    drawn = overlay(np.zeros((*shape, 3), np.uint8), labels, ("a name longer than any picture",))
    assert drawn.shape == (*shape, 3)


def test_overlay_of_background_alone_is_the_picture() -> None:
    image, labels = scene()
    assert (overlay(image, np.zeros_like(labels), NAMES) == image).all()


def test_overlay_refuses_other_sizes_and_nameless_labels() -> None:
    image, labels = scene()
    with pytest.raises(InputError, match=r"\(120, 160, 3\) and \(100, 160\)"):
        overlay(image, labels[:100], NAMES)
    with pytest.raises(InputError, match="label id 2 has no name"):
        overlay(image, labels, NAMES[:1])


def test_colors_of_the_first_labels_are_far_apart() -> None:
    colors = [np.array(color_of(label_id)) for label_id in range(1, 21)]
    least = min(np.abs(a - b).sum() for a, b in itertools.combinations(colors, 2))
    assert least > 60


def test_shares_add_up_largest_first() -> None:
    _, labels = scene()
    found = shares(labels, NAMES)
    assert list(found) == ["background", "tower crane", "zebra"]
    assert sum(found.values()) == pytest.approx(110 / 120, abs=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("segmenter") / "checkpoint.pt"
    model = deeplabv3plus_tiny(3)
    save_checkpoint(path, model, name="deeplabv3plus_tiny", names=NAMES)
    return path


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, encode in zip(paths, (images.encode_png, images.encode_jpeg), strict=True):
        path.write_bytes(encode(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)))
    return paths


def test_files_get_an_overlay_a_label_map_and_a_row(checkpoint, pictures, tmp_path) -> None:
    out = tmp_path / "new" / "predictions"
    rows = predict_files(checkpoint, pictures, out)
    assert [row["file"] for row in rows] == [str(path) for path in pictures]
    model, names = load_checkpoint(checkpoint)
    for row, path in zip(rows, pictures, strict=True):
        image = images.decode(path.read_bytes())
        labels = read_label_map(out / f"{path.stem}_labels.png")
        assert (labels == predict_labels(model, image)).all()
        drawn = images.decode((out / f"{path.stem}.png").read_bytes())
        assert (drawn == overlay(image, labels, names)).all()
        assert row["labels"] == shares(labels, names)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("kind", [Path, str])
def test_bad_pictures_are_rows_of_their_own_and_good_ones_are_written(
    checkpoint, pictures, tmp_path, kind
) -> None:
    bad, cut, folder = tmp_path / "bad.jpg", tmp_path / "cut.jpg", tmp_path / "folder.jpg"
    bad.write_bytes(b"<html>not found</html>")
    cut.write_bytes(pictures[1].read_bytes()[:300])
    folder.mkdir()
    asked = [bad, pictures[0], cut, folder, pictures[1]]
    rows = predict_files(kind(checkpoint), [kind(path) for path in asked], kind(tmp_path / "out"))
    assert [row["status"] for row in rows] == ["not_an_image", "ok", "truncated", "no_file", "ok"]
    assert "Is a directory" in rows[3]["reason"]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["one.png", "one_labels.png", "two.png", "two_labels.png"]


def test_missing_picture_is_named_before_anything_is_written(
    checkpoint, pictures, tmp_path
) -> None:
    with pytest.raises(InputError, match=r"gone\.jpg does not exist"):
        predict_files(checkpoint, [*pictures, tmp_path / "gone.jpg"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predict_with_a_bad_picture_exits_1_and_with_a_bad_device_2(
    checkpoint, pictures, tmp_path, capsys
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    asked = ["predict", checkpoint, bad, pictures[0], "--json", "--out", tmp_path / "out"]
    assert main([str(word) for word in asked]) == 1
    out, err = capsys.readouterr()
    assert [row["status"] for row in json.loads(out)] == ["not_an_image", "ok"]
    assert err.startswith(f"error: 1 of 2 images could not be segmented, the first of them {bad}")
    assert main([*map(str, asked), "--device", "tpu"]) == 2
    assert "predict.device is 'tpu'; expected 'cpu' or 'cuda'" in capsys.readouterr().err


def test_two_pictures_of_one_stem_are_refused(checkpoint, pictures, tmp_path) -> None:
    twin = tmp_path / "sub" / "one.jpg"
    twin.parent.mkdir()
    twin.write_bytes(pictures[1].read_bytes())
    with pytest.raises(InputError, match=r"both be written to .*out/one\.png"):
        predict_files(checkpoint, [*pictures, twin], tmp_path / "out")


def test_a_picture_is_never_replaced_by_its_overlay(checkpoint, pictures, tmp_path) -> None:
    before = pictures[0].read_bytes()
    with pytest.raises(InputError, match=r"would replace .*one\.png"):
        predict_files(checkpoint, pictures, tmp_path)
    assert pictures[0].read_bytes() == before


def test_checkpoint_that_is_none_is_refused(pictures, tmp_path) -> None:
    with pytest.raises(CheckpointError):
        predict_files(pictures[0], pictures, tmp_path / "out")


def test_bare_weights_are_drawn_with_the_names_of_a_set(pictures, tmp_path, capsys) -> None:
    model = deeplabv3plus_tiny(21)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    asked = ["predict", str(tmp_path / "bare.pt"), str(pictures[0]), "--json", "--out",
             str(tmp_path / "out"), "--set", "segmenter.name=deeplabv3plus_tiny"]  # fmt: skip
    assert main(asked) == 2
    assert "bare weights of 21 labels, background included" in capsys.readouterr().err
    assert main([*asked, "--set", "voc2012"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    labels = predict_labels(model, images.decode(pictures[0].read_bytes()))
    assert row["labels"] == shares(labels, load_category_set("voc2012").names)
    assert main([*asked, "--set", "voc2021"]) == 2
    assert "Did you mean 'voc2012'" in capsys.readouterr().err
