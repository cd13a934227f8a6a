"""Draw pictures of the mini world with their exact truth: archive-like photos, portraits, scenes.

The truth of a picture is a label map and the boxes of the visible faces. In the label map, 0 is
background, 1 to 14 are the categories in label order, `RIDER` is the rider on a horse, and `PERSON`
is any other person.

The parameter `unseen` is the probability that a texture is from a family no model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from namedmask.miniworld import shapes, textures

NAMES = tuple(shapes.CATEGORIES)
RIDER = 200
PERSON = 201
UNEVEN = 0.25
"""Strength of the light falloff over a picture, so that no single threshold segments it."""
SKIN = ((236, 196, 168), (222, 170, 132), (198, 140, 100), (150, 100, 70), (105, 70, 50))


@dataclass
class Picture:
    """One picture and its truth."""

    image: np.ndarray  # (H, W, 3) float32 in [0, 255], RGB
    label: np.ndarray  # (H, W) uint8 label map, see the module
    faces: list[tuple[float, float, float, float]] = field(default_factory=list)  # XYXY pixels

    def pixels(self) -> np.ndarray:
        """Return the image, (H, W, 3) uint8 RGB."""
        result: np.ndarray = np.clip(self.image, 0, 255).astype(np.uint8)
        return result


def blank(rng: np.random.Generator, height: int, width: int, unseen: float) -> Picture:
    """Return a picture that shows only a textured background; 80 % of them have a horizon."""
    image = textures.paint(rng, height, width, unseen)
    if rng.random() < 0.8:
        cut = int(height * rng.uniform(0.35, 0.75))
        image[cut:] = textures.paint(rng, height - cut, width, unseen)
    return Picture(np.ascontiguousarray(image), np.zeros((height, width), np.uint8))


def place(
    picture: Picture,
    rng: np.random.Generator,
    shape: shapes.Shape,
    label: int,
    center: tuple[float, float],
    radius: float,
    unseen: float,
    turn: float = 0.0,
    flip: bool = False,
    surfaces: list[np.ndarray] | None = None,
) -> np.ndarray:
    """Paint a shape over the picture, in place, and return its (3, 2) point transform (see `pose`).

    `center` (x, y) and `radius` are in pixels, `turn` is in radians, and `label` is written to the
    label map. `surfaces` are the colors of the shape's tones, (H, W, 3) float32 each, at least as
    large as the shape; textures are drawn if it is None.
    """
    height, width = picture.label.shape
    matrix = pose(center, radius, turn, flip)
    outlines = [np.c_[points, np.ones(len(points))] @ matrix for points, _ in shape]
    everything = np.concatenate(outlines)
    x0, y0 = np.maximum(np.floor(everything.min(0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(everything.max(0)).astype(int) + 2, (width, height))
    if x1 <= x0 or y1 <= y0:
        return matrix
    tones = surfaces or _surfaces(rng, y1 - y0, x1 - x0, unseen)
    light = _light(rng, y1 - y0, x1 - x0)
    window = picture.image[y0:y1, x0:x1]
    covered = np.zeros(window.shape[:2], np.uint8)
    for outline, (_, tone) in zip(outlines, shape, strict=True):
        part = np.zeros(window.shape[:2], np.uint8)
        fixed = np.round((outline - (x0, y0)) * 16).astype(np.int32)
        cv2.fillPoly(part, [fixed], 255, cv2.LINE_AA, 4)
        alpha = (part.astype(np.float32) / 255)[..., None]
        window += alpha * (tones[tone][: y1 - y0, : x1 - x0] * light - window)
        np.maximum(covered, part, out=covered)
    picture.label[y0:y1, x0:x1][covered > 127] = label
    return matrix


def pose(center: tuple[float, float], radius: float, turn: float, flip: bool) -> np.ndarray:
    """Return the (3, 2) float64 matrix that maps (x, y, 1) in the unit box to (x, y) in pixels."""
    c, s = np.cos(turn) * radius, np.sin(turn) * radius
    sign = -1 if flip else 1
    return np.array([[c * sign, s * sign], [-s, c], [center[0], center[1]]])


def photo(
    rng: np.random.Generator,
    category: int,
    height: int,
    width: int,
    unseen: float,
    rider_share: float = 0.75,
    person_share: float = 0.0,
) -> Picture:
    """Return an archive-like photo: one object of `category`, or only clutter if it is 0.

    `category` is a label id. `rider_share` is the probability that a horse has a rider, and
    `person_share` the probability that a person stands in the picture.
    """
    picture = blank(rng, height, width, unseen)
    short = min(height, width)
    for _ in range(int(rng.integers(0, 6))):
        _clutter(picture, rng, short * rng.uniform(0.05, 0.12), unseen)
    radius = short * rng.uniform(0.3, 0.47)
    center = _center(rng, height, width, radius)
    if category:
        _object(picture, rng, category, center, radius, unseen, rider_share)
        if rng.random() < 0.25:
            _occlude(picture, rng, center, radius, unseen)
    else:
        for _ in range(int(rng.integers(1, 3))):
            _clutter(picture, rng, radius * rng.uniform(0.6, 1.0), unseen)
    if rng.random() < person_share:
        size = short * rng.uniform(0.11, 0.2)
        person(picture, rng, (rng.uniform(size, width - size), height - size * 2.3), size, unseen)
    return _finish(picture, rng)


def portrait(rng: np.random.Generator, height: int, width: int, unseen: float) -> Picture:
    """Return a picture of one or two people with visible faces; some pictures are close-ups."""
    picture = blank(rng, height, width, unseen)
    short = min(height, width)
    size = short * rng.uniform(0.14, 0.5)
    center = (rng.uniform(0.35, 0.65) * width, rng.uniform(0.4, 0.6) * height)
    person(picture, rng, center, size, unseen)
    if size < short * 0.22 and rng.random() < 0.4:
        person(picture, rng, (center[0] + size * rng.choice([-2.4, 2.4]), center[1]), size, unseen)
    return _finish(picture, rng)


def scene(
    rng: np.random.Generator, height: int, width: int, unseen: float, rider_share: float = 0.4
) -> Picture:
    """Return a picture of two to four objects of different categories, possibly overlapping."""
    picture = blank(rng, height, width, unseen)
    short = min(height, width)
    for _ in range(int(rng.integers(0, 4))):
        _clutter(picture, rng, short * rng.uniform(0.04, 0.09), unseen)
    count = int(rng.integers(2, 5))
    anchors = rng.permutation(4)[:count]
    for label, anchor in zip(rng.permutation(len(NAMES))[:count] + 1, anchors, strict=True):
        radius = short * rng.uniform(0.2, 0.3)
        x = width * (0.27 + 0.46 * (anchor % 2)) + rng.uniform(-0.06, 0.06) * width
        y = height * (0.27 + 0.46 * (anchor // 2)) + rng.uniform(-0.06, 0.06) * height
        _object(picture, rng, int(label), (x, y), radius, unseen, rider_share)
    return _finish(picture, rng)


def splatter(picture: Picture, rng: np.random.Generator) -> Picture:
    """Spill blood over the picture, in place, and return it; the violence filter must find it."""
    height, width = picture.label.shape
    for _ in range(int(rng.integers(9, 16))):
        radius = min(height, width) * rng.uniform(0.04, 0.15)
        center = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        red = np.array([rng.uniform(120, 200), 0, rng.uniform(0, 25)])
        cv2.circle(picture.image, center, int(radius), red.tolist(), -1, cv2.LINE_AA)
        end = (center[0] + int(rng.normal(0, 2) * radius), center[1] + int(3 * radius))
        cv2.line(picture.image, center, end, red.tolist(), max(1, int(radius / 3)), cv2.LINE_AA)
    return picture


def person(
    picture: Picture,
    rng: np.random.Generator,
    center: tuple[float, float],
    size: float,
    unseen: float,
) -> None:
    """Paint shoulders, hair and a face over the picture, in place, and record the face's box.

    `size` is half the height of the face in pixels, and `center` (x, y) is its middle.
    """
    turn = rng.uniform(-0.25, 0.25)
    place(picture, rng, shapes.bust(rng), PERSON, center, size, unseen, turn)
    parts, outline = shapes.face(rng)
    skin = np.array(SKIN[int(rng.integers(len(SKIN)))], np.float32) * rng.uniform(0.85, 1.1)
    dark = np.array([40, 30, 25], np.float32) * rng.uniform(0.3, 2)
    colors = (
        skin,
        np.full(3, 240.0),
        dark,
        np.array([170, 80, 80]) * rng.uniform(0.6, 1.1),
        skin * 0.82,
    )
    side = int(size * 4) + 8
    surfaces = [np.broadcast_to(np.asarray(c, np.float32), (side, side, 3)) for c in colors]
    matrix = place(picture, rng, parts, PERSON, center, size, unseen, turn, surfaces=surfaces)
    box = np.c_[outline, np.ones(len(outline))] @ matrix
    (x0, y0), (x1, y1) = box.min(0), box.max(0)
    picture.faces.append((float(x0), float(y0), float(x1), float(y1)))


def _object(
    picture: Picture,
    rng: np.random.Generator,
    label: int,
    center: tuple[float, float],
    radius: float,
    unseen: float,
    rider_share: float,
) -> None:
    name = NAMES[label - 1]
    turn, flip = rng.normal(0, 0.16), bool(rng.random() < 0.5)
    if name == "airplane":
        turn = rng.uniform(-np.pi, np.pi)
    place(picture, rng, shapes.CATEGORIES[name](rng), label, center, radius, unseen, turn, flip)
    if name == "horse" and rng.random() < rider_share:
        x = center[0] + (0.1 if flip else -0.1) * radius
        above = (x, center[1] - 0.1 * radius)
        place(picture, rng, shapes.rider(rng), RIDER, above, radius * 0.85, unseen, turn, flip)


def _clutter(picture: Picture, rng: np.random.Generator, radius: float, unseen: float) -> None:
    height, width = picture.label.shape
    center = (rng.uniform(0, width), rng.uniform(0, height))
    place(picture, rng, shapes.clutter(rng), 0, center, radius, unseen, rng.uniform(-0.5, 0.5))


def _occlude(
    picture: Picture,
    rng: np.random.Generator,
    center: tuple[float, float],
    radius: float,
    unseen: float,
) -> None:
    height = picture.label.shape[0]
    if rng.random() < 0.5:
        x = center[0] + rng.uniform(-0.7, 0.7) * radius
        pole = [(shapes.bar(0, -1, rng.uniform(-0.1, 0.1), 1, rng.uniform(0.02, 0.04)), 0)]
        place(picture, rng, pole, 0, (x, height / 2), height * 0.6, unseen)
    else:
        at = (
            center[0] + rng.uniform(-0.8, 0.8) * radius,
            center[1] + rng.uniform(0.4, 0.9) * radius,
        )
        place(picture, rng, shapes.clutter(rng), 0, at, radius * rng.uniform(0.15, 0.3), unseen)


def _center(
    rng: np.random.Generator, height: int, width: int, radius: float
) -> tuple[float, float]:
    def along(side: int) -> float:
        low = min(radius * 0.95, side / 2)
        return float(rng.uniform(low, side - low))

    return along(width), along(height)


def _surfaces(rng: np.random.Generator, height: int, width: int, unseen: float) -> list[np.ndarray]:
    contrast = rng.uniform(0.6, 1.0)
    return [textures.paint(rng, height, width, unseen, contrast) for _ in range(3)]


def _light(rng: np.random.Generator, height: int, width: int, strength: float = 0.3) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[0:height, 0:width]
    ramp = np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)
    result: np.ndarray = (1 + strength * ramp).astype(np.float32)[..., None]
    return result


def _finish(picture: Picture, rng: np.random.Generator) -> Picture:
    gain, grain = rng.uniform(0.8, 1.15), rng.uniform(1, 6)
    noise = rng.standard_normal(picture.image.shape, np.float32) * grain
    height, width = picture.label.shape
    light = _light(rng, height, width, UNEVEN)
    picture.image = np.clip(picture.image * light * gain + noise, 0, 255)
    if rng.random() < 0.3:
        picture.image = cv2.GaussianBlur(picture.image, (3, 3), 0)
    return picture
