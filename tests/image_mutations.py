"""Real photos in every format the guard reads, and ways to spoil them, by number."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 61, 47  # bytes that a header is unlikely to hold by chance

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 20_000, 0x7FFFFFFF, 0xFFFFFFFF)

Seed = tuple[str, bytes]
"""The kind of a file, such as "PNG palette", and its bytes."""


def seeds(photos: Sequence[Path]) -> list[Seed]:
    """Return each photo in each form, (61, 47) pixels."""
    made = []
    for path in photos:
        with Image.open(path) as opened:
            photo = opened.convert("RGB").resize((WIDTH, HEIGHT))
        made += [(f"{kind} {form}", data) for kind, form, data in _forms(photo)]
    return made


def _forms(photo: Image.Image) -> Iterator[tuple[str, str, bytes]]:
    def saved(kind: str, image: Image.Image = photo, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    palette = photo.quantize(32)
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    more = {"save_all": True, "append_images": [photo.rotate(9), photo.rotate(99)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo of something"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "made " * 30, zip=True)

    yield "JPEG", "baseline", saved("JPEG", quality=80)
    yield "JPEG", "progressive", saved("JPEG", progressive=True)
    yield "JPEG", "gray", saved("JPEG", photo.convert("L"))
    yield "JPEG", "CMYK", saved("JPEG", photo.convert("CMYK"))
    yield "JPEG", "EXIF", saved("JPEG", exif=exif, icc_profile=bytes(300), restart_marker_rows=1)
    yield "MPO", "three frames", saved("MPO", **more)
    yield "PNG", "RGB", saved("PNG", pnginfo=text, exif=exif)
    yield "PNG", "palette", saved("PNG", palette, transparency=bytes(range(32)), bits=8)
    yield "PNG", "RGBA", saved("PNG", clear)
    yield "PNG", "16 bit", saved("PNG", deep)
    yield "PNG", "animated", saved("PNG", clear, **more)
    yield "WEBP", "lossy", saved("WEBP", exif=exif)
    yield "WEBP", "lossless", saved("WEBP", clear, lossless=True)
    yield "WEBP", "animated", saved("WEBP", **more)
    yield "GIF", "palette", saved("GIF", palette)
    yield "GIF", "animated", saved("GIF", palette, transparency=3, disposal=2, **more)
    yield "BMP", "24 bit", saved("BMP")
    yield "BMP", "palette", saved("BMP", palette)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield "TIFF", compression, saved("TIFF", compression=compression)
    yield "TIFF", "CMYK", saved("TIFF", photo.convert("CMYK"), compression="tiff_lzw")
    yield "TIFF", "16 bit", saved("TIFF", deep)
    yield "TIFF", "float", saved("TIFF", photo.convert("F"), big_tiff=True)
    yield "TIFF", "EXIF", saved("TIFF", clear, exif=exif)
    yield "AVIF", "RGB", saved("AVIF", speed=10, exif=exif)
    yield "AVIF", "RGBA", saved("AVIF", clear, speed=10)
    yield "AVIF", "animated", saved("AVIF", speed=10, **more)


def mutated(number: int, made: Sequence[Seed]) -> Seed:
    """Return the input of this number: the name of its kind and mutation, and its bytes."""
    rng = np.random.default_rng(number)
    kind, data = made[int(rng.integers(len(made)))]
    names = []
    for _ in range(int(rng.integers(1, 4))):
        name, mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        names.append(name)
        if data:
            data = mutation(bytearray(data), rng, made[int(rng.integers(len(made)))][1])
    if kind.startswith("PNG") and rng.random() < 0.7:
        names.append("checksums mended")
        data = _with_checksums(data)
    return f"{kind}: {', '.join(names)}", bytes(data)


def _flips(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


def _header_flips(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    for place in rng.integers(0, min(len(data), 200), int(rng.integers(1, 5))):
        data[place] = int(rng.integers(0, 256))
    return bytes(data)


def _cut(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    return bytes(data[: int(rng.integers(0, len(data)))])


def _hole(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    start = int(rng.integers(0, len(data)))
    del data[start : start + int(rng.integers(1, 100))]
    return bytes(data)


def _splice(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    start = int(rng.integers(0, len(other)))
    place = int(rng.integers(0, len(data)))
    return bytes(data[:place] + other[start : start + int(rng.integers(1, 400))] + data[place:])


def _tail(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    place = int(rng.integers(0, len(data)))
    return bytes(data[:place]) + other[min(place, len(other)) :]


def _repeat(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    start = int(rng.integers(0, len(data)))
    piece = data[start : start + int(rng.integers(1, 200))]
    return bytes(data[:start] + piece * int(rng.integers(2, 9)) + data[start:])


def _length(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """Overwrite what may be a length, a count or an offset by an extreme of 2 or 4 bytes."""
    order = "<>"[int(rng.integers(2))]
    letter, limit = (("H", 0xFFFF), ("I", 0xFFFFFFFF))[int(rng.integers(2))]
    value = min(EXTREMES[int(rng.integers(len(EXTREMES)))], limit)
    packed = struct.pack(order + letter, value)
    start = int(rng.integers(0, max(1, min(len(data), 400) - 4)))
    data[start : start + len(packed)] = packed
    return bytes(data)


def _dimensions(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """Let the header claim another width or height, wherever one of them stands."""
    for side in (WIDTH, HEIGHT):
        for form in (">I", "<I", ">H", "<H"):
            wanted = EXTREMES[int(rng.integers(len(EXTREMES)))]
            size = struct.calcsize(form)
            start = data.find(struct.pack(form, side))
            if start >= 0 and rng.random() < 0.7:
                data[start : start + size] = struct.pack(form, wanted & (256**size - 1))
    return bytes(data)


def _exif(data: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    start = max(data.find(b"Exif"), data.find(b"eXIf"), data.find(b"EXIF"), data.find(b"II*\0"))
    if start < 0:
        return _header_flips(data, rng, other)
    for place in rng.integers(start + 4, start + 120, int(rng.integers(1, 30))):
        if place < len(data):
            data[place] = int(rng.integers(0, 256))
    return bytes(data)


Mutation = Callable[[bytearray, np.random.Generator, bytes], bytes]
MUTATIONS: tuple[tuple[str, Mutation], ...] = (
    ("flips", _flips),
    ("header flips", _header_flips),
    ("cut", _cut),
    ("hole", _hole),
    ("splice", _splice),
    ("tail of another", _tail),
    ("repeat", _repeat),
    ("length", _length),
    ("dimensions", _dimensions),
    ("EXIF", _exif),
)


def _with_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks' checksums hold again: else hardly one gets past them."""
    mended, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(mended)
