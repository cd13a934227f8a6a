"""Bytes to arrays and back: odd files, hostile files, sizes, masks."""

import contextlib
import gzip
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from pycocotools import mask as coco_mask

from namedmask import images
from namedmask.images import codec
from namedmask.images.codec import BadImage, decode


def photo(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return images.resize(coarse, height, width)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mean_difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).mean()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_decode_each_format_gives_rgb(kind):
    array = decode(saved(Image.fromarray(photo()), kind))
    assert array.shape == (48, 64, 3)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    assert mean_difference(array, photo()) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_exif_orientation_gives_upright_image(orientation):
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16] = (255, 0, 0)  # top left
    upright[16:, 32:] = (0, 0, 255)  # bottom right
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}.get(orientation)
    stored = Image.fromarray(upright)
    if undo:
        stored = stored.transpose(codec._UPRIGHT[undo])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "JPEG", exif=exif, quality=95)
    assert mean_difference(decode(data), upright) < 5
    assert images.size_of(data) == (32, 48)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_decode_exif_orientation_is_that_of_size_of_in_every_format(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo()
    data = saved(Image.fromarray(stored), kind, exif=exif)
    assert images.size_of(data) == (64, 48)
    assert mean_difference(decode(data), np.rot90(stored, -1)) < 12
    assert decode(data, longest_side=16).shape == (16, 12, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_decode_broken_exif_keeps_pixels():
    data = saved(Image.fromarray(photo()), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert decode(data).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
def test_decode_animation_gives_first_frame(kind):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert mean_difference(decode(data), np.full((10, 20, 3), (255, 0, 0))) < 3


def test_decode_cmyk_gives_rgb():
    data = saved(Image.fromarray(photo()).convert("CMYK"), "JPEG", quality=95)
    assert mean_difference(decode(data), photo()) < 12
    assert decode(data, longest_side=16).shape == (12, 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode_sixteen_bit_gray_is_scaled_not_clipped(kind):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (8, 1))
    array = decode(saved(Image.fromarray(ramp), kind))
    assert np.array_equal(array[0, :, 0], np.arange(256))


def test_decode_float_tiff_is_scaled_by_its_range():
    ramp = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (8, 1))
    assert np.array_equal(decode(saved(Image.fromarray(ramp), "TIFF"))[0, :, 1], np.arange(256))


def test_decode_transparency_lies_over_white():
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    gray = Image.new("LA", (8, 8), (0, 0))
    assert (decode(saved(clear, "PNG")) == 255).all()
    assert (decode(saved(half, "PNG")) == 127).all()
    assert (decode(saved(gray, "PNG")) == 255).all()


def test_decode_palette_with_alpha_lies_over_white():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert (decode(saved(palette, "PNG")) == (0, 255, 0)).all()
    assert (decode(saved(palette, "PNG", transparency=b"\xff\x00")) == 255).all()
    assert (decode(saved(palette, "GIF", transparency=1)) == 255).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"<html><body>404</body></html>",
        b"<svg xmlns='a'/>",
        b"<?xml version='1.0'?><!DOCTYPE svg><svg xmlns='http://www.w3.org/2000/svg'/>",
        gzip.compress(b"<svg xmlns='a'/>"),
        b"%PDF-1.4",
        b"%!PS",
    ],
)
def test_decode_no_raster_image_is_not_an_image(data):
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.status == "not_an_image"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_decode_cut_file_is_truncated(kind, share):
    data = saved(Image.fromarray(photo(200, 300)), kind)
    with pytest.raises(BadImage) as caught:
        decode(data[: max(12, int(len(data) * share))])
    assert caught.value.status == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_decode_cut_jpeg_scaled_agrees_with_unscaled():
    data = saved(Image.fromarray(photo(96, 128)), "JPEG", quality=90)

    def verdict(part, side):
        try:
            decode(part, longest_side=side)
        except BadImage as error:
            return error.status
        return "ok"

    for length in range(4, len(data) + 1, 7):
        assert verdict(data[:length], 0) == verdict(data[:length], 8), length


def test_decode_huge_header_fails_before_pixels():
    header = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
    header[16:24] = (50_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage) as caught:
        decode(bytes(header))
    assert caught.value.status == "too_many_pixels"


def test_decode_jpeg_of_countless_scans_fails_before_pixels():
    data = saved(Image.fromarray(photo(480, 640)), "JPEG", progressive=True)
    assert decode(data).shape == (480, 640, 3)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last:-2] * 4000 + data[-2:]
    with pytest.raises(BadImage, match=r"too_many_scans: 640 × 480 in more than 100 scans"):
        decode(bomb)
    few = data[:last] + data[last:-2] * 50 + data[-2:]
    assert decode(few).shape == (480, 640, 3)
    with pytest.raises(BadImage, match="too_many_scans"):
        decode(few, max_pixels=2 * 480 * 640)


def test_decode_tiff_of_huge_tiles_fails_before_pixels():
    values = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: 12_000, 323: 12_000,
              324: 8, 325: 1}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    data = b"II*\0" + struct.pack("<I", 9) + b"x" + struct.pack("<H", 10) + entries + bytes(4)
    with pytest.raises(BadImage, match="tiles of more than 50000000") as caught:
        decode(data)
    assert caught.value.status == "too_many_pixels"


def test_decode_tiff_in_strips_with_text_for_a_tile_width_keeps_pixels():
    values = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries += [struct.pack("<HHI4s", 322, 2, 4, b"big"), struct.pack("<HHII", 323, 4, 1, 5)]
    head = b"II*\0" + struct.pack("<I", 9) + b"x" + struct.pack("<H", len(entries))
    assert (decode(head + b"".join(entries) + bytes(4)) == ord("x")).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"])
def test_decode_header_that_claims_too_much_is_too_many_pixels(kind):
    data = bytearray(saved(Image.new("RGB", (61, 47)), kind))
    order = ">" if kind in ("PNG", "JPEG") else "<"
    form = order + ("I" if kind in ("PNG", "BMP") else "H")
    for side in (61, 47):
        place = data.index(struct.pack(form, side))
        data[place : place + struct.calcsize(form)] = struct.pack(form, 16_000)
    if kind == "PNG":
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage) as caught:
        decode(bytes(data))
    assert caught.value.status == "too_many_pixels"


def test_decode_max_pixels_is_inclusive():
    data = saved(Image.new("RGB", (10, 10)), "PNG")
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(BadImage, match="at most 99"):
        decode(data, max_pixels=99)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(600, 800), (801, 347), (100, 100), (1, 500)])
def test_decode_longest_side_bounds_size_and_keeps_aspect(kind, size):
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = saved(Image.fromarray(photo(*size)), kind, **options)
    array = decode(data, longest_side=100)
    assert max(array.shape[:2]) == 100
    scale = min(1, 100 / max(size))
    expected = images.resize(photo(*size), *(max(1, round(side * scale)) for side in size))
    assert array.shape == expected.shape
    assert mean_difference(array, expected) < 6


def test_decode_longest_side_never_enlarges():
    assert decode(saved(Image.fromarray(photo()), "JPEG"), longest_side=500).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((160, 240), (40, 60)),  # an eighth would be less than asked for
        ((320, 480), (40, 60)),
        ((162, 240), (81, 120)),  # 162 has no whole quarter
        ((161, 240), (161, 240)),
        ((30, 500), (30, 500)),
    ],
)
def test_decode_coarse_halves_jpegs_down_to_the_least_side(size, expected):
    data = saved(Image.fromarray(photo(*size)), "JPEG", quality=95, subsampling=0)
    array = images.decode_coarse(data, 40)
    assert array.shape == (*expected, 3)
    assert mean_difference(array, images.resize(decode(data), *expected)) < 2
    png = saved(Image.fromarray(photo(*size)), "PNG")
    assert np.array_equal(images.decode_coarse(png, 40), decode(png))


def test_decode_coarse_gives_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(photo(160, 240)), "JPEG", exif=exif)
    assert images.decode_coarse(data, 40).shape == (60, 40, 3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]))
def test_decode_mutated_bytes_raise_bad_image_only(seed, kind):
    rng = np.random.default_rng(seed)
    data = bytearray(saved(Image.fromarray(photo(24, 32)), kind))
    for place in rng.integers(0, len(data), 4):
        data[place] = rng.integers(0, 256)
    try:
        array = decode(bytes(data), max_pixels=100_000)
    except BadImage as error:
        assert error.status in ("not_an_image", "truncated", "too_many_pixels")
    else:
        assert array.ndim == 3


def test_encode_jpeg_round_trip_stays_close():
    assert mean_difference(decode(images.encode_jpeg(photo())), photo()) < 4
    assert images.encode_jpeg(photo()) == images.encode_jpeg(photo())


def test_encode_png_round_trip_is_exact():
    assert np.array_equal(decode(images.encode_png(photo())), photo())
    gray = photo()[..., 0]
    assert np.array_equal(images.decode_gray(images.encode_png(gray)), gray)


def test_decode_gray_palette_gives_indices():
    index = np.arange(64, dtype=np.uint8).reshape(8, 8)
    picture = Image.fromarray(index)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert picture.mode == "P"
    assert np.array_equal(images.decode_gray(saved(picture, "PNG")), index)


def test_decode_gray_cut_file_is_truncated():
    with pytest.raises(BadImage, match="truncated"):
        images.decode_gray(images.encode_png(photo()[..., 0])[:60])


def test_resize_shrinking_averages_a_checkerboard():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = images.resize(np.stack([board] * 3, -1), 8, 8)
    assert np.abs(small.astype(int) - 128).max() <= 1


def test_resize_one_side_up_other_down_still_averages():
    board = np.tile((np.arange(64) % 2 * 255).astype(np.uint8), (4, 1))
    assert np.abs(images.resize(board, 16, 8).astype(int) - 128).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_resize_nearest_brings_no_new_value(dtype):
    labels = np.random.default_rng(0).integers(0, 2, (7, 9)).astype(dtype)
    labels = labels * np.array(65535 if dtype == np.uint16 else 1, dtype)
    out = images.resize(labels, 20, 5, nearest=True)
    assert out.shape == (20, 5)
    assert out.dtype == dtype
    assert set(np.unique(out)) <= set(np.unique(labels))
    twice = images.resize(labels, 14, 18, nearest=True)
    assert np.array_equal(twice[::2, ::2], labels)


def test_resize_same_size_returns_a_copy():
    image = photo()
    out = images.resize(image, 48, 64)
    assert np.array_equal(out, image)
    assert not np.shares_memory(out, image)


@pytest.mark.parametrize("size", [(100, 333), (333, 100), (50, 50), (480, 641)])
def test_resize_shorter_side_then_center_crop_gives_square(size):
    out = images.resize_shorter_side(photo(*size), 96)
    assert min(out.shape[:2]) == 96
    assert abs(max(out.shape[:2]) / 96 - max(size) / min(size)) < 0.02
    assert images.center_crop(out, 96).shape == (96, 96, 3)


def test_center_crop_takes_the_middle():
    image = np.arange(25, dtype=np.uint8).reshape(5, 5)
    assert images.center_crop(image, 1)[0, 0] == 12
    with pytest.raises(ValueError, match="5 × 5"):
        images.center_crop(image, 6)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: images.encode_jpeg(image, 40),
        lambda image: images.encode_png(images.resize(image, 60, 80)),
        lambda image: images.encode_png(images.resize(image, 300, 400)),
        lambda image: images.encode_png((image * 0.8 + 20).astype(np.uint8)),
    ],
)
def test_hash_of_hardly_changes_when_an_image_is_saved_otherwise(change):
    for seed in range(10):
        image = photo(120, 160, seed)
        first, second = images.hash_of(images.encode_png(image)), images.hash_of(change(image))
        assert (first ^ second).bit_count() <= 8
        assert 0 <= first < 2**64


def test_hash_of_different_images_is_far_apart():
    hashes = [images.hash_of(images.encode_png(photo(120, 160, seed))) for seed in range(20)]
    apart = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(apart) > 12
    assert 28 < np.mean(apart) < 36


def test_hash_of_a_plain_area_is_a_hash():
    assert images.hash_of(images.encode_png(np.full((9, 7, 3), 200, np.uint8))) < 2**64


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
def test_mask_round_trip_is_exact(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = images.encode_mask(mask)
    assert isinstance(counts, bytes)
    out = images.decode_mask(counts, height, width)
    assert out.dtype == bool
    assert np.array_equal(out, mask)


@pytest.mark.parametrize("size", [(5, 4), (6, 6), (5, 6)])
def test_decode_mask_of_another_size_raises(size):
    counts = images.encode_mask(np.eye(5, dtype=bool))
    with pytest.raises(ValueError, match="RLE"):
        images.decode_mask(counts, *size)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under numpy 2
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
def test_decode_mask_agrees_with_pycocotools(height, width, seed):
    coarse = np.random.default_rng(seed).random((5, 4)) < 0.5
    mask = images.resize(coarse, height, width, nearest=True)
    counts = images.encode_mask(mask)
    reference = coco_mask.decode({"size": [height, width], "counts": counts})
    assert np.array_equal(images.decode_mask(counts, height, width), reference.astype(bool))


@settings(deadline=None)
@given(st.binary(max_size=12))
def test_decode_mask_any_bytes_give_a_mask_or_value_error(counts):
    with contextlib.suppress(ValueError):
        assert images.decode_mask(counts, 5, 7).shape == (5, 7)


RING = [[2, 2, 12, 2, 12, 9, 2, 9], [20, 4, 26, 4, 23, 11]]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under numpy 2
def test_draw_regions_agrees_with_pycocotools_in_all_three_forms():
    listed = {"size": [14, 30], "counts": [14 * 3, 14 * 5, 14 * 22]}
    packed = coco_mask.frPyObjects(listed, 14, 30)
    text = packed | {"counts": packed["counts"].decode()}
    polygons = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(RING, 14, 30)))
    assert polygons.sum() > 80
    assert np.array_equal(images.draw_regions(RING, 14, 30), polygons.astype(bool))
    for regions in (listed, packed, text):
        mask = images.draw_regions(regions, 14, 30)
        assert mask.dtype == bool and mask[:, 3:8].all() and mask.sum() == 14 * 5


@pytest.mark.parametrize(
    "regions", [[], [[1, 2]], ["ab"], "ab", {"size": [9, 9], "counts": [81]}, {"counts": "1"}]
)
def test_draw_regions_of_something_else_raises(regions):
    with pytest.raises(ValueError, match=r"polygon|RLE"):
        images.draw_regions(regions, 14, 30)


def test_decode_as_stored_ignores_exif_orientation():
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 9, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).shape == (9, 4, 3)
    assert decode(buffer.getvalue(), upright=False).shape == (4, 9, 3)


def test_to_tensor_normalises_channels_first():
    tensor = images.to_tensor([np.full((4, 6, 3), 255, np.uint8), np.zeros((4, 6, 3), np.uint8)])
    assert tuple(tensor.shape) == (2, 3, 4, 6)
    mean, std = np.array(images.IMAGENET_MEAN), np.array(images.IMAGENET_STD)
    assert np.allclose(tensor[0, :, 0, 0].numpy(), (1 - mean) / std, atol=1e-6)
    assert np.allclose(tensor[1, :, 3, 5].numpy(), -mean / std, atol=1e-6)


def test_decode_real_photos_give_their_listed_size(real_data):
    paths = sorted((real_data / "imagenet50").glob("*.JPEG"))[:20]
    assert paths
    for path in paths:
        data = path.read_bytes()
        assert decode(data).shape[:2] == images.size_of(data)
