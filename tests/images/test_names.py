"""Names of images: every suffix that the decoder's formats have, in any case."""

import pytest
from PIL import Image

from namedmask.images.codec import FORMATS
from namedmask.images.names import SUFFIXES, is_image_name


def test_names_suffixes_are_those_of_the_decoder():
    Image.init()
    known = Image.registered_extensions()
    assert {suffix for suffix, kind in known.items() if kind in FORMATS} <= SUFFIXES
    others = {suffix for suffix, kind in known.items() if kind not in (*FORMATS, "MPO")}
    assert not SUFFIXES & others


@pytest.mark.parametrize("name", ["a.JPG", "a.jfif", "a.b.TIFF", "a.jpe", "a/b.webp", "\udce9.png"])
def test_names_of_images_are_known(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a", "jpg", ".jpg", "a.txt", "a.jpg.txt", "a.heic", "a.jpg "])
def test_names_of_other_files_are_not(name):
    assert not is_image_name(name)
