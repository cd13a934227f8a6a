"""Draw a small web: pictures with urls, LAION-like metadata, and known kinds of trouble.

    WORLD/web/…            files of the server: pictures, metadata.parquet, routes.json
    WORLD/scenes/SPLIT/…   labeled scenes for `select` and `test` (benchmark layout `folder`)
    WORLD/truth/rows.json  one record per metadata row: category, trouble, group of copies, faces
    WORLD/truth/masks/…    label maps of the archive-like photos (PNG, see pictures.py)

Only truth.py reads `truth/`; no stage does.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from namedmask import images as imagelib
from namedmask.miniworld import captions, pictures
from namedmask.schema.columns import BACKGROUND

HOSTS = ("127.0.0.1", "localhost")
COLUMNS = ("URL", "TEXT", "WIDTH", "HEIGHT", "NSFW", "similarity", "punsafe", "pwatermark")
SPAWN = multiprocessing.get_context("spawn")  # fork is not safe with OpenCV's threads
UNSEEN = 0.5
"""Probability that a surface is from a texture family that no model was trained on."""

TROUBLE = {
    "http_404": 0.05, "http_410": 0.02, "timeout": 0.012, "reset": 0.015, "not_an_image": 0.03,
    "truncated": 0.02, "redirect": 0.02, "unsafe": 0.05, "violent": 0.02, "opted_out": 0.02,
    "duplicate_url": 0.03, "near_duplicate": 0.07,
}  # fmt: skip
"""Share of the rows with each kind of trouble.

Near duplicates and repeated urls are extra rows. Rows should get a vector if they have no trouble,
or are redirected, violent or near duplicates.
"""


@dataclass(frozen=True)
class World:
    """Folder, size and seed of a drawn world."""

    folder: Path
    per_category: int
    seed: int


@dataclass
class Row:
    """The truth of one metadata row."""

    path: str
    category: int  # label id; 0 for no category
    kind: str  # photo | portrait | clutter
    trouble: str = ""
    group: int = -1  # rows of one group show the same picture
    faces: list[tuple[float, float, float, float]] = field(default_factory=list)
    caption: str = ""
    width: int = 0
    height: int = 0
    corner: tuple[int, int] = (0, 0)  # (top, left) of a cropped copy in its original, pixels


def build_world(folder: Path, seed: int, per_category: int = 110, scenes: int = 120) -> World:
    """Draw and write a world, unless `folder` holds a world with the same parameters already.

    `per_category` is the number of photos per category, `scenes` the number of scenes per split.
    """
    stamp = folder / "world.json"
    wanted = {"seed": seed, "per_category": per_category, "scenes": scenes, "version": 2}
    if not (stamp.exists() and json.loads(stamp.read_text()) == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "web").mkdir(parents=True)
        (folder / "truth" / "masks").mkdir(parents=True)
        rows = _draw_rows(folder, seed, per_category)
        _write_metadata(folder, seed, rows)
        for split in ("select", "test"):
            _write_scenes(folder / "scenes", split, seed, scenes)
        stamp.write_text(json.dumps(wanted))
    return World(folder, per_category, seed)


def _draw_rows(folder: Path, seed: int, per_category: int) -> list[Row]:
    count = len(pictures.NAMES)
    kinds = [("photo", c) for c in range(1, count + 1) for _ in range(per_category)]
    kinds += [("portrait", 0)] * (per_category * 2) + [("clutter", 0)] * (per_category * 3)
    rng = np.random.default_rng((seed, 1))
    tasks = [(folder, seed, i, *kinds[j]) for i, j in enumerate(rng.permutation(len(kinds)))]
    with ProcessPoolExecutor(2, SPAWN) as pool:
        rows = list(pool.map(_draw_row, tasks, chunksize=64))
    return rows + _copies(folder, rows, np.random.default_rng((seed, 2)))


def _draw_row(task: tuple[Path, int, int, str, int]) -> Row:
    folder, seed, index, kind, category = task
    rng = np.random.default_rng((seed, 3, index))
    height, width = (int(side) for side in rng.integers(104, 169, 2))
    trouble = str(rng.choice([*TROUBLE, ""], p=_shares()))
    if trouble in ("near_duplicate", "duplicate_url"):
        trouble = ""
    if kind == "portrait":
        picture = pictures.portrait(rng, height, width, UNSEEN)
    else:
        share = 0.1 if kind == "photo" else 0.0
        picture = pictures.photo(rng, category, height, width, UNSEEN, person_share=share)
    if trouble == "violent":
        picture = pictures.splatter(picture, rng)
    data = imagelib.encode_jpeg(picture.pixels(), int(rng.integers(75, 96)))
    path = f"photos/{index:06d}.jpg"
    _save(folder, path, data)
    cv2.imwrite(str(folder / "truth" / "masks" / f"{index:06d}.png"), picture.label)
    caption = captions.violent_caption(rng) if trouble == "violent" else captions.web_caption(
        rng, category, bool(picture.faces))  # fmt: skip
    return Row(path, category, kind, trouble, index, picture.faces, caption, width, height)


def _copies(folder: Path, rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """Return extra rows: repeated urls, and re-encoded, slightly cropped copies with new urls."""
    sound = [row for row in rows if not row.trouble]
    extra = []
    for number in range(int(len(rows) * TROUBLE["near_duplicate"])):
        row = sound[int(rng.integers(len(sound)))]
        picture = imagelib.decode((folder / "web" / row.path).read_bytes())
        height, width = picture.shape[:2]
        top, left = (int(rng.integers(0, max(1, side // 32 + 1))) for side in (height, width))
        cropped = picture[top : height - top or None, left : width - left or None]
        path = f"mirror/{number:06d}.jpg"
        _save(
            folder,
            path,
            imagelib.encode_jpeg(np.ascontiguousarray(cropped), int(rng.integers(60, 90))),
        )
        moved = [(a - left, b - top, c - left, d - top) for a, b, c, d in row.faces]
        size = {"height": cropped.shape[0], "width": cropped.shape[1], "corner": (top, left)}
        extra.append(replace(row, path=path, trouble="near_duplicate", faces=moved, **size))
    for _ in range(int(len(rows) * TROUBLE["duplicate_url"])):
        row = sound[int(rng.integers(len(sound)))]
        extra.append(replace(row, trouble="duplicate_url"))
    return extra


def _write_metadata(folder: Path, seed: int, rows: list[Row]) -> None:
    """Write the noisy LAION-like metadata, the server's routes, and the truth."""
    rng = np.random.default_rng((seed, 4))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    routes = {}
    for row in rows:
        unsafe = row.trouble == "unsafe"
        swapped, blank = rng.random() < 0.05, rng.random() < 0.03
        size = (row.height, row.width) if swapped else (row.width, row.height)
        columns["URL"].append(f"{{base}}/{row.path}")
        columns["TEXT"].append(row.caption)
        columns["WIDTH"].append(0 if blank else size[0])
        columns["HEIGHT"].append(0 if blank else size[1])
        columns["NSFW"].append(
            "NSFW" if unsafe and rng.random() < 0.3 else str(rng.choice(["UNLIKELY", "UNSURE"]))
        )
        punsafe = rng.uniform(0.6, 1) if unsafe else rng.uniform(0, 0.4)
        columns["punsafe"].append(punsafe if unsafe or rng.random() > 0.04 else None)
        columns["similarity"].append(6016.0 if rng.random() < 0.003 else rng.uniform(0.28, 0.45))
        columns["pwatermark"].append(rng.random())
        if row.trouble and row.trouble not in (
            "near_duplicate",
            "duplicate_url",
            "unsafe",
            "violent",
        ):
            routes[row.path] = row.trouble
    pq.write_table(pa.table(columns), folder / "web" / "metadata.parquet")
    (folder / "web" / "routes.json").write_text(json.dumps(routes))
    (folder / "truth" / "rows.json").write_text(json.dumps([asdict(row) for row in rows]))


def _write_scenes(folder: Path, split: str, seed: int, count: int) -> None:
    names = ", ".join(f'"{name}"' for name in pictures.NAMES)
    for kind in ("images", "labels"):
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.toml").write_text(f"names = [{names}]\nignore = 255\n")
    tasks = [(folder, split, seed, index) for index in range(count)]
    with ProcessPoolExecutor(2, SPAWN) as pool:
        list(pool.map(_write_scene, tasks, chunksize=16))


def _write_scene(task: tuple[Path, str, int, int]) -> None:
    folder, split, seed, index = task
    stream = {"select": 5, "test": 6}[split]
    rng = np.random.default_rng((seed, stream, index))
    unseen = UNSEEN if split == "test" else 0.0
    height, width = (int(side) for side in rng.integers(144, 193, 2))
    picture = pictures.scene(rng, height, width, unseen)
    label = picture.label.copy()
    label[label >= pictures.RIDER] = BACKGROUND
    (folder / split / "images" / f"{index:04d}.png").write_bytes(
        imagelib.encode_png(picture.pixels())
    )
    (folder / split / "labels" / f"{index:04d}.png").write_bytes(imagelib.encode_png(label))


def _save(folder: Path, path: str, data: bytes) -> None:
    target = folder / "web" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _shares() -> list[float]:
    shares = list(TROUBLE.values())
    return [*shares, 1 - sum(shares)]
