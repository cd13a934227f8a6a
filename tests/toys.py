"""Small parts that take the places of the networks, by dotted path, and a small web to feed them.

A picture is a bright disk on a dark, noisy ground; its color is its category. A face is a magenta
square. So what the loop should do with each picture is known, and takes milliseconds.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from namedmask.images.codec import resize

SIDE = 48
GRID = 6
COLORS = {"red": (230, 40, 40), "green": (40, 210, 40), "blue": (50, 60, 235)}
MAGENTA = (255, 0, 255)

HANG, HANG_S = 504, 4.0
"""Status of a picture that comes too late, and how late."""


class ThumbnailEmbedder:
    """An image is its thumbnail, a text the color it names all over; both about a middle gray."""

    dim = 3 * GRID * GRID

    def embed_images(self, images: list[np.ndarray]) -> np.ndarray:
        small = np.stack([resize(image, GRID, GRID) for image in images]).astype(np.float32)
        return self._unit(small.reshape(len(images), -1))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        named = [
            next((c for word, c in COLORS.items() if word in text), (255,) * 3) for text in texts
        ]
        tiles = np.tile(np.array(named, np.float32), (1, GRID * GRID))
        return self._unit(tiles)

    def _unit(self, vectors: np.ndarray) -> np.ndarray:
        centered = vectors - 40.0
        return centered / np.linalg.norm(centered, axis=1, keepdims=True)


class MagentaFaces:
    """A face wherever there is enough magenta."""

    side = 64

    def detect(self, image: np.ndarray) -> np.ndarray:
        away = np.abs(image.astype(int) - np.array(MAGENTA)).sum(2)
        rows, columns = np.nonzero(away < 90)
        if len(rows) < 12:
            return np.empty((0, 5), np.float32)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9]
        return np.array([box], np.float32)


class BrightSaliency:
    """What is brighter than the ground stands out."""

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return [np.clip((image.max(2).astype(np.float32) - 60) / 140, 0, 1) for image in images]


def embedder(config: Any) -> ThumbnailEmbedder:
    return ThumbnailEmbedder()


def face_detector(config: Any) -> MagentaFaces:
    return MagentaFaces()


def saliency_detector(config: Any) -> BrightSaliency:
    return BrightSaliency()


def disk(color: tuple[int, int, int], seed: int, *, face: bool = False) -> np.ndarray:
    """Return a picture (48, 48, 3) uint8 RGB: a disk somewhere, of some size."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 50, (SIDE, SIDE, 3), dtype=np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    center, radius = rng.uniform(16, SIDE - 16, 2), rng.uniform(8, 15)
    picture[(y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2] = color
    if face:
        picture[1:13, 1:13] = MAGENTA
    return picture


def jpeg(picture: np.ndarray, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        web = self.server.web
        with web.lock:
            web.hits[self.path] += 1
        time.sleep(web.delay_s)
        status = web.trouble.get(self.path, 0)
        if status == HANG:
            time.sleep(HANG_S)
        body = None if status else web.files.get(self.path)
        self.send_response(200 if body else status or 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    web: SmallWeb

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that did not wait."""


@dataclass
class SmallWeb:
    """Pictures on a real server, and the metadata that tells of them."""

    files: dict[str, bytes] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    delay_s: float = 0.0
    trouble: dict[str, int] = field(default_factory=dict)  # path → status it has now, or HANG
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, body: bytes | None, *, punsafe: float = 0.0) -> None:
        """Add a row, and the file it points to unless `body` is None: a dead link."""
        if body is not None:
            self.files[f"/{name}"] = body
        self.rows.append({"url": f"{self.url}/{name}", "caption": name, "punsafe": punsafe})

    def write_metadata(self, path: Path) -> Path:
        """Write the rows as a parquet file; return its path."""
        pq.write_table(pa.Table.from_pylist(self.rows), path)
        return path


def fill(web: SmallWeb, colors: dict[str, tuple[int, int, int]], each: int) -> None:
    """Add, for each color, `each` good pictures and trouble of every kind, well mixed."""
    for number in range(each):
        for index, (word, color) in enumerate(colors.items()):
            seed = 1000 * index + number
            web.add(f"{word}-{number}.jpg", jpeg(disk(color, seed)))
            if number % 4 == 0:
                web.add(f"{word}-face-{number}.jpg", jpeg(disk(color, seed + 300, face=True)))
                web.add(f"{word}-dead-{number}.jpg", None)
            if number % 5 == 0:
                web.add(f"{word}-copy-{number}.jpg", jpeg(disk(color, seed), quality=60))
    web.add("page.jpg", b"<html>not a picture</html>")
    web.add("unsafe.jpg", jpeg(disk((200, 200, 200), 77)), punsafe=0.9)
    web.rows.append(dict(web.rows[0]))


@contextmanager
def filled_web(each: int = 12) -> Iterator[SmallWeb]:
    """A web with `each` good pictures of every color, and its trouble."""
    with SmallWeb() as web:
        fill(web, COLORS, each)
        yield web
