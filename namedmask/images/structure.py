"""The structure of image files: the scans of a JPEG, and files without their metadata.

An image is judged by its pixels. Cameras, editors and web servers leave films, previews, profiles
and texts in and behind a file. A search for bytes would find scans in them, and Pillow refuses an
image whose metadata are large or spoiled. The functions here read lengths and copy bytes; they
decompress nothing. If the structure is broken, they leave the rest of a file as it is.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

JPEG, PNG, GIF, RIFF = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF"
"""First bytes of a file, by format; RIFF is that of WebP."""
TIFFS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""First bytes of a TIFF and, with a plus sign, of a BigTIFF."""

_START_OF_SCAN, _END_OF_IMAGE, _COMMENT = 0xDA, 0xD9, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_LEAST = {0xE0: 16, 0xE1: 2, 0xEE: 14}
"""Smallest valid lengths of the application segments that pixels need: JFIF, EXIF and Adobe."""
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""A marker with a segment, or the end of the image. Other markers may stand between the bytes of a
scan, and libjpeg skips them there."""

_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}
"""Valid lengths of the transparency of a PNG, in bytes, by color type: gray, RGB, palette."""

_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")

_TIFF_PIXELS = frozenset(
    (
        *range(254, 267), 273, 274, *range(277, 282), 284, *range(290, 294), 317, 320,
        *range(322, 329), 332, *range(336, 342), 347, *range(512, 522), *range(529, 533), 50674,
    )
)  # fmt: skip
"""Tags that say how the pixels of a TIFF are stored, and how they are turned."""

_GIF_CONTROL = 0xF9


def has_more_scans(data: bytes, limit: int) -> bool:
    """Return whether the first image of a JPEG file has more than `limit` scans.

    Scans in a comment, in a preview, or behind the end of the image are not counted.
    """
    # a count of bytes is fast; hardly any file has more of these bytes than it may have scans
    if data.count(bytes((0xFF, _START_OF_SCAN))) <= limit:
        return False
    scans = 0
    for marker, _, _ in _segments(data):
        scans += marker == _START_OF_SCAN
        if scans > limit:
            return True
    return False


def without_misleading(data: bytes) -> bytes:
    """Return a file without those metadata that Pillow reads along with the pixels."""
    if data.startswith(PNG):
        return bare_png(data)
    if data.startswith(GIF):
        return bare_gif(data)
    return bare_tiff(data) if data.startswith(TIFFS) else data


def without_metadata(data: bytes) -> bytes | None:
    """Return a JPEG or WebP without the metadata that Pillow reads first; None for other files."""
    if data.startswith(JPEG):
        return bare_jpeg(data)
    return bare_webp(data) if data.startswith(RIFF) and data[8:12] == b"WEBP" else None


def bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG without comments and application data, except for EXIF and color spaces."""
    kept, done = [], 0
    for marker, start, end in _segments(data):
        if marker == _START_OF_SCAN:
            break
        is_needed = end - start - 2 >= _LEAST.get(marker, 1 << 16)
        if (marker in _APPLICATION or marker == _COMMENT) and not is_needed:
            kept.append(data[done:start])
            done = end
    return b"".join((*kept, data[done:]))


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each segment of the first image in a JPEG file."""
    end = 2
    while found := _MARKER.search(data, end):
        start = found.start()
        marker, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _END_OF_IMAGE:
            return
        end = start + 2 + max(2, length)
        yield marker, start, end


def bare_png(data: bytes) -> bytes:
    """Return a PNG that has only the chunks that its first picture needs, and its EXIF before them.

    An optional chunk is left out if its checksum or its length is wrong, as other decoders do.
    """
    view, chunks, exif, start = memoryview(data), [], b"", len(PNG)
    while len(head := data[start : start + 8]) == 8 and head[4:].isalpha():
        kind, end = head[4:], start + 12 + int.from_bytes(head[:4], "big")
        if kind[:1].isupper():
            chunks.append(view[start:end])
        elif kind in (b"tRNS", b"eXIf") and end <= len(data):
            content, checksum = view[start + 4 : end - 4], view[end - 4 : end]
            if zlib.crc32(content) == int.from_bytes(checksum, "big"):
                if kind == b"eXIf":
                    exif = exif or data[start:end]
                elif len(content) - 4 in _TRANSPARENCY.get(data[25], ()):
                    chunks.append(view[start:end])
        start = end
        if kind == b"IEND":
            break
    else:
        chunks.append(view[start:])
    return b"".join((PNG, *chunks[:1], exif, *chunks[1:]))


def bare_gif(data: bytes) -> bytes:
    """Return a GIF without the texts that lie before its first picture."""
    start = 13 + _colors(data[10:11])
    kept = [data[:start]]
    while data[start : start + 1] == b"!":
        end = start + 2
        while size := int.from_bytes(data[end : end + 1]):
            end += 1 + size
        end += 1
        if data[start + 1] == _GIF_CONTROL:
            kept.append(data[start:end])
        start = end
    return b"".join((*kept, data[start:]))


def _colors(flags: bytes) -> int:
    """Return the number of bytes of a GIF's color table."""
    bits = int.from_bytes(flags)
    return 3 << (bits & 7) + 1 if bits & 0x80 else 0


def bare_tiff(data: bytes) -> bytes:
    """Return a TIFF whose first picture has only the tags that say how its pixels are stored."""
    is_big = data[2:4] in (b"+\x00", b"\x00+")
    pointer, count_size, entry_size = (8, 8, 20) if is_big else (4, 2, 12)

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], "little" if data[:1] == b"I" else "big")

    directory = number(pointer, pointer)
    first = directory + count_size
    end = min(first + number(directory, count_size) * entry_size, len(data))
    entries = range(first, end, entry_size)
    kept = [data[at : at + entry_size] for at in entries if number(at, 2) in _TIFF_PIXELS]
    if len(kept) == len(entries):
        return data
    count = len(kept).to_bytes(count_size, "little" if data[:1] == b"I" else "big")
    bare = b"".join((count, *kept, bytes(pointer)))  # the pointer to a second picture is 0
    return b"".join((data[:directory], bare, data[directory + len(bare) :]))


def bare_webp(data: bytes) -> bytes:
    """Return a WebP that has only the chunks of its pixels, and whole EXIF."""
    chunks, start = [], 12
    while len(head := data[start : start + 8]) == 8:
        size = int.from_bytes(head[4:], "little")
        end = start + 8 + size + size % 2
        if head[:4] in _WEBP_PIXELS or (head[:4] == b"EXIF" and end <= len(data)):
            chunks.append(data[start:end])
        start = end
    body = b"".join((b"WEBP", *chunks))
    return RIFF + len(body).to_bytes(4, "little") + body
