"""Label maps in files: ids through a table, photos as their label map has them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from namedmask import images
from namedmask.errors import InputError
from namedmask.evaluate.label_maps import LabeledFiles, Sample, id_table, read_bytes, read_labels
from namedmask.schema.columns import IGNORE


def test_labels_are_what_the_table_says(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(np.array([[0, 7], [9, 255]], np.uint8)))
    labels = read_labels(path, id_table({0: 0, 7: 1, 9: 2, 255: IGNORE}))
    assert labels.dtype == np.uint16 and labels.tolist() == [[0, 1], [2, IGNORE]]
    assert read_labels(path, id_table({7: 1}, other=0)).tolist() == [[0, 1], [0, 0]]


def test_id_that_the_table_lacks_is_named_with_those_it_has(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(images.encode_png(np.array([[0, 5]], np.uint8)))
    table = id_table({0: 0, 1: 1, 2: 2, 7: 3, 255: IGNORE})
    with pytest.raises(InputError, match=r"a\.png holds label id 5; expected 0 to 2, 7, 255\."):
        read_labels(path, table)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"none\.png cannot be read: No such file"):
        read_bytes(tmp_path / "none.png")


def turned_photo(turn: int) -> bytes:
    """Return a stored image of 8 rows and 12 columns, red above, with an EXIF orientation."""
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:4, :, 0] = 250
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    Image.fromarray(picture).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(("shape", "red"), [((12, 8), 6), ((8, 12), 0)])
def test_turned_photo_is_taken_as_its_label_map_has_it(tmp_path, shape, red) -> None:
    (tmp_path / "a.png").write_bytes(turned_photo(6))
    sample = Sample("a", tmp_path / "a.png", tmp_path, lambda _: np.zeros(shape, np.uint16))
    _, image, label = LabeledFiles("one", ("x",), "skip", (sample,))[0]
    assert image.shape[:2] == label.shape == shape
    assert image[0, red, 0] > 200


def test_unpublished_truth_is_ignored_everywhere(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(images.encode_png(np.zeros((5, 6, 3), np.uint8)))
    sample = Sample("a", tmp_path / "a.png", tmp_path / "none.png", None)
    _, _, label = LabeledFiles("one", ("x",), "skip", (sample,))[0]
    assert label.shape == (5, 6) and (label == IGNORE).all()
