"""Draw the mini world's categories, people, faces and clutter as polygons in a unit box.

A shape is a list of parts in painting order. A part is a pair (points, tone): points are (N, 2)
float64 (x, y), about in [-1, 1], with y pointing down; tone is the index of one of the object's
surfaces. Every call draws another pose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Part = tuple[np.ndarray, int]
Shape = list[Part]
Rng = np.random.Generator


def oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    """Return an ellipse as a polygon of 28 points, (28, 2); `turn` is in radians."""
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack([rx * np.cos(t), ry * np.sin(t)], 1)
    c, s = np.cos(turn), np.sin(turn)
    result: np.ndarray = points @ np.array([[c, s], [-s, c]]) + (x, y)
    return result


def bar(x0: float, y0: float, x1: float, y1: float, w0: float, w1: float = 0.0) -> np.ndarray:
    """Return a tapered bar, (4, 2), with half widths `w0` and `w1` at its ends (0: the same)."""
    a, b = np.array([x0, y0]), np.array([x1, y1])
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
    side = np.array([-along[1], along[0]])
    w1 = w1 or w0
    return np.stack([a + side * w0, b + side * w1, b - side * w1, a - side * w0])


def curve(points: list[tuple[float, float]], w0: float, w1: float) -> list[np.ndarray]:
    """Return a thick line through `points` as overlapping bars and round joints, (N, 2) each."""
    widths = np.linspace(w0, w1, len(points))
    parts = []
    for (x0, y0), (x1, y1), a, b in zip(points, points[1:], widths, widths[1:], strict=False):
        parts += [bar(x0, y0, x1, y1, a, b), oval(x1, y1, b, b)]
    return parts


def crane_bird(rng: Rng) -> Shape:
    """Return a wading bird: oval body, long bent neck, thin beak, two long legs."""
    lean, fat = rng.uniform(-0.15, 0.15), rng.uniform(0.2, 0.28)
    body = [
        (oval(-0.05, 0.0, 0.42, fat, 0.35 + lean), 0),
        (bar(-0.35, 0.0, -0.75, 0.25, 0.16, 0.04), 1),
    ]
    bend = rng.uniform(0.1, 0.3)
    neck = curve([(0.25, -0.1), (0.35 + bend, -0.35), (0.3, -0.65), (0.4, -0.85)], 0.1, 0.07)
    head = [(oval(0.45, -0.86, 0.13, 0.1), 1), (bar(0.5, -0.86, 0.95, -0.8 + lean, 0.05, 0.01), 2)]
    stride = rng.uniform(0.05, 0.3)
    legs = [
        (bar(-0.05, 0.2, -0.05 + stride, 0.95, 0.045), 2),
        (bar(0.1, 0.2, 0.1 - stride, 0.95, 0.045), 2),
    ]
    return legs + body + [(part, 0) for part in neck] + head


def tower_crane(rng: Rng) -> Shape:
    """Return a building crane: mast, long jib, counterweight, cab, hook."""
    at, jib = rng.uniform(-0.35, -0.1), rng.uniform(0.7, 1.0)
    top = -0.6
    mast = [(bar(at, 0.95, at, top, 0.09), 0), (bar(at - 0.25, 0.95, at + 0.25, 0.95, 0.06), 2)]
    arm = [(bar(at - 0.5, top, jib, top, 0.075, 0.05), 1), (bar(at, top - 0.3, at, top, 0.05), 0)]
    stays = [
        (bar(at, top - 0.28, jib * 0.8, top, 0.025), 0),
        (bar(at, top - 0.28, at - 0.45, top, 0.025), 0),
    ]
    hook = rng.uniform(0.2, 0.9) * jib
    load = [
        (bar(hook, top, hook, 0.0, 0.02), 0),
        (bar(hook - 0.12, 0.06, hook + 0.12, 0.06, 0.1), 2),
    ]
    return mast + stays + arm + [(bar(at - 0.5, top + 0.1, at - 0.28, top + 0.1, 0.14), 2)] + load


def horse(rng: Rng) -> Shape:
    """Return a horse: barrel body, four legs, neck, head, tail."""
    lift = rng.uniform(-0.1, 0.1)
    legs: Shape = []
    for x in (-0.5, -0.33, 0.28, 0.45):
        swing = rng.uniform(-0.18, 0.18)
        legs += [
            (bar(x, 0.2, x + swing, 0.6, 0.1, 0.07), 1),
            (bar(x + swing, 0.58, x + swing * 0.6, 0.95, 0.06), 1),
        ]
    body = [(oval(0.0, 0.08, 0.62, 0.26), 0), (oval(-0.4, 0.05, 0.24, 0.27), 0)]
    neck = [
        (bar(0.42, 0.05, 0.72, -0.48 + lift, 0.2, 0.12), 0),
        (bar(0.36, -0.1, 0.62, -0.55 + lift, 0.06), 2),
    ]
    head = [(bar(0.68, -0.52 + lift, 0.98, -0.25 + lift, 0.13, 0.08), 0)]
    tail = [(part, 2) for part in curve([(-0.6, 0.0), (-0.8, 0.15), (-0.85, 0.5)], 0.07, 0.04)]
    return tail + legs + body + neck + head


def rider(rng: Rng) -> Shape:
    """Return a rider of a horse, seen from behind or in a helmet, so without a face."""
    lean = rng.uniform(-0.1, 0.15)
    leg = [(bar(0.0, -0.1, 0.12, 0.3, 0.1, 0.07), 1), (bar(0.12, 0.28, 0.02, 0.5, 0.07), 2)]
    torso = [
        (bar(0.0, -0.05, lean, -0.55, 0.15, 0.18), 0),
        (bar(lean, -0.5, 0.35, -0.2, 0.07, 0.05), 0),
    ]
    return leg + torso + [(oval(lean + 0.02, -0.76, 0.15, 0.16), 2)]


def fish(rng: Rng) -> Shape:
    """Return a fish: lens body, forked tail, fins, eye."""
    fat = rng.uniform(0.3, 0.45)
    t = np.linspace(0, np.pi, 16)
    x = np.cos(t) * 0.75
    lens = np.concatenate([np.stack([x, -np.sin(t) * fat], 1), np.stack([-x, np.sin(t) * fat], 1)])
    fork = rng.uniform(0.3, 0.5)
    tail = np.array([[-0.55, 0.0], [-1.0, -fork], [-0.82, 0.0], [-1.0, fork]])
    fins = np.array([[0.2, -fat * 0.8], [-0.3, -fat - 0.25], [-0.35, -fat * 0.7]])
    return [(tail, 1), (fins, 1), (fins * (1, -1), 1), (lens, 0), (oval(0.5, -0.08, 0.07, 0.07), 2)]


def car(rng: Rng) -> Shape:
    """Return a car from the side: body, cabin, windows, two wheels."""
    roof, nose = rng.uniform(-0.55, -0.35), rng.uniform(0.25, 0.5)
    body = np.array([[-0.95, 0.35], [-0.95, -0.05], [0.7, -0.08], [0.97, 0.1], [0.97, 0.35]])
    cabin = np.array([[-0.75, -0.05], [-0.5, roof], [nose - 0.15, roof], [nose + 0.15, -0.05]])
    pane = np.array([[-0.6, -0.08], [-0.43, roof + 0.09], [-0.1, roof + 0.09], [-0.1, -0.08]])
    panes = [
        (pane, 2),
        (np.array([[0.0, -0.08], [0.0, roof + 0.09], [nose - 0.2, roof + 0.09], [nose, -0.08]]), 2),
    ]
    wheels: Shape = []
    for x in (-0.55, 0.55):
        wheels += [(oval(x, 0.38, 0.23, 0.23), 1), (oval(x, 0.38, 0.1, 0.1), 2)]
    return [(body, 0), (cabin, 0), *panes, *wheels]


def teapot(rng: Rng) -> Shape:
    """Return a teapot: round body, spout, looped handle, lid."""
    wide = rng.uniform(0.48, 0.6)
    spout = [(bar(0.35, 0.3, 0.92, -0.3, 0.15, 0.06), 1)]
    loop = [(-0.4, -0.15), (-0.8, -0.3), (-0.95, 0.05), (-0.75, 0.4), (-0.4, 0.45)]
    handle = [(part, 1) for part in curve(loop, 0.07, 0.07)]
    lid = [(oval(0.0, -0.34, 0.3, 0.1), 2), (oval(0.0, -0.5, 0.09, 0.1), 2)]
    return (
        spout
        + handle
        + [(oval(0.0, 0.15, wide, 0.5), 0), (bar(-0.35, 0.66, 0.35, 0.66, 0.06), 2)]
        + lid
    )


def chair(rng: Rng) -> Shape:
    """Return a chair in three-quarter view: back, seat, four legs."""
    skew, high = rng.uniform(0.15, 0.35), rng.uniform(-0.95, -0.75)
    seat = np.array([[-0.55, 0.1], [0.35, 0.1], [0.35 + skew, 0.3], [-0.55 + skew, 0.3]])
    back = np.array([[-0.55, 0.12], [-0.6, high], [0.3, high], [0.35, 0.12]])
    feet = [(-0.5, 0.1), (0.32, 0.1), (0.3 + skew, 0.28), (-0.5 + skew, 0.28)]
    legs = [(bar(x, y, x * 1.03, y + 0.65, 0.06), 1) for x, y in feet]
    slot = np.array([[-0.42, -0.15], [-0.44, high + 0.2], [0.18, high + 0.2], [0.2, -0.15]])
    return [*legs, (back, 0), (slot, 2), (seat, 1)]


def guitar(rng: Rng) -> Shape:
    """Return a guitar: two-lobed body, sound hole, long neck, head."""
    waist = rng.uniform(0.28, 0.34)
    body = [(oval(0.0, 0.6, 0.42, 0.34), 0), (oval(0.0, 0.15, waist, 0.26), 0)]
    neck = [(bar(0.0, 0.2, 0.0, -0.8, 0.065, 0.05), 1), (bar(0.0, -0.78, 0.0, -1.0, 0.1, 0.12), 2)]
    return body + neck + [(oval(0.0, 0.3, 0.12, 0.12), 2), (bar(-0.14, 0.72, 0.14, 0.72, 0.04), 2)]


def umbrella(rng: Rng) -> Shape:
    """Return an open umbrella: scalloped dome, stick, hooked handle."""
    high = rng.uniform(0.7, 0.9)
    t = np.linspace(np.pi, 2 * np.pi, 20)
    dome = np.stack([0.95 * np.cos(t), high * np.sin(t)], 1)
    hem = [[0.63, 0.12], [0.32, -0.02], [0.0, 0.12], [-0.32, -0.02], [-0.63, 0.12]]
    hook = curve([(0.0, 0.7), (0.06, 0.9), (0.22, 0.9), (0.26, 0.75)], 0.05, 0.05)
    wedge = np.array([[0.0, -high], [0.32, -0.02], [0.0, 0.12], [-0.32, -0.02]])
    stick = [(bar(0.0, 0.0, 0.0, 0.72, 0.045), 2), *[(part, 2) for part in hook]]
    return [*stick, (np.concatenate([dome, hem]), 0), (wedge, 1)]


def butterfly(rng: Rng) -> Shape:
    """Return a butterfly: four wings with spots, slim body, feelers."""
    spread, low = rng.uniform(0.4, 0.55), rng.uniform(0.3, 0.42)
    parts: Shape = []
    for side in (-1, 1):
        parts += [(oval(side * 0.5, -0.35, spread * 0.95, 0.42, side * -0.6), 0)]
        parts += [(oval(side * 0.4, 0.4, low, 0.36, side * 0.7), 1)]
        parts += [
            (oval(side * 0.55, -0.38, 0.16, 0.16), 2),
            (bar(0.0, -0.5, side * 0.2, -0.9, 0.025), 2),
        ]
    return [*parts, (oval(0.0, 0.0, 0.09, 0.6), 2)]


def mushroom(rng: Rng) -> Shape:
    """Return a mushroom: domed cap with spots, thick stem."""
    high, wide = rng.uniform(0.65, 0.95), rng.uniform(0.14, 0.22)
    t = np.linspace(np.pi, 2 * np.pi, 20)
    cap = np.stack([0.85 * np.cos(t), high * np.sin(t) + 0.02], 1)
    stem = np.array([[-wide, 0.0], [wide, 0.0], [wide * 1.6, 0.92], [-wide * 1.6, 0.92]])
    spots = [
        (oval(x, y * high, 0.11, 0.1), 2) for x, y in ((-0.4, -0.4), (0.1, -0.65), (0.45, -0.3))
    ]
    return [(stem, 1), (cap, 0), (bar(-0.8, 0.03, 0.8, 0.03, 0.06), 1), *spots]


def sailboat(rng: Rng) -> Shape:
    """Return a sailboat: hull, mast, two sails."""
    lean, belly = rng.uniform(-0.08, 0.08), rng.uniform(0.55, 0.75)
    hull = np.array([[-0.9, 0.45], [0.95, 0.45], [0.65, 0.85], [-0.6, 0.85]])
    main = np.array([[0.0 + lean, -0.95], [0.06, 0.35], [belly, 0.35]])
    jib = np.array([[-0.05 + lean, -0.8], [-0.06, 0.35], [-0.75, 0.35]])
    return [
        (bar(0.0, 0.5, lean, -1.0, 0.04), 2),
        (main, 1),
        (jib, 1),
        (hull, 0),
        (bar(-0.8, 0.52, 0.85, 0.52, 0.04), 2),
    ]


def airplane(rng: Rng) -> Shape:
    """Return an airplane from above: fuselage, swept wings, tailplane."""
    sweep, slim = rng.uniform(0.2, 0.45), rng.uniform(0.1, 0.14)
    wings: Shape = []
    for side in (-1, 1):
        wing = [[0.0, -0.25], [side * 0.95, sweep - 0.2], [side * 0.95, sweep], [0.0, 0.15]]
        wings += [(np.array(wing), 1), (oval(side * 0.45, 0.0 + sweep * 0.25, 0.07, 0.14), 2)]
        wings += [
            (np.array([[0.0, 0.6], [side * 0.38, 0.82], [side * 0.38, 0.92], [0.0, 0.82]]), 1)
        ]
    return [*wings, (oval(0.0, 0.0, slim, 0.97), 0), (oval(0.0, -0.72, slim * 0.6, 0.09), 2)]


def cactus(rng: Rng) -> Shape:
    """Return a cactus: ribbed trunk with two raised arms, pot."""
    left, right = rng.uniform(-0.3, 0.2), rng.uniform(-0.45, 0.1)
    arms = curve([(0.0, left + 0.35), (-0.48, left + 0.3), (-0.5, left - 0.25)], 0.12, 0.11)
    arms += curve([(0.0, right + 0.35), (0.48, right + 0.3), (0.5, right - 0.3)], 0.12, 0.11)
    trunk = [bar(0.0, 0.65, 0.0, -0.8, 0.2, 0.17), oval(0.0, -0.8, 0.17, 0.17)]
    pot = np.array([[-0.38, 0.55], [0.38, 0.55], [0.28, 0.97], [-0.28, 0.97]])
    return [(part, 0) for part in arms + trunk] + [(bar(0.0, 0.5, 0.0, -0.85, 0.04), 1), (pot, 2)]


CATEGORIES: dict[str, Callable[[Rng], Shape]] = {
    "crane bird": crane_bird,
    "tower crane": tower_crane,
    "horse": horse,
    "fish": fish,
    "car": car,
    "teapot": teapot,
    "chair": chair,
    "guitar": guitar,
    "umbrella": umbrella,
    "butterfly": butterfly,
    "mushroom": mushroom,
    "sailboat": sailboat,
    "airplane": airplane,
    "cactus": cactus,
}
"""The function that draws each category, by name, in label order (1 to 14)."""


def clutter(rng: Rng) -> Shape:
    """Return a box, ball, leaf, star or rock, which belongs to no category."""
    kind = rng.integers(5)
    if kind == 0:
        wide = rng.uniform(0.5, 0.9)
        return [
            (bar(0, -0.7, 0, 0.7, wide), 0),
            (bar(0, -0.7, 0, 0.7, 0.1), 1),
            (bar(-wide, 0, wide, 0, 0.1), 1),
        ]
    if kind == 1:
        return [(oval(0, 0, 0.8, 0.8), 0), (oval(0, 0, 0.8, 0.25, rng.uniform(0, 3)), 1)]
    if kind == 2:
        return [(oval(0, 0, 0.9, 0.4, rng.uniform(0, 3)), 0)]
    t = np.linspace(0, 2 * np.pi, 10, endpoint=False)
    if kind == 3:
        radius = np.where(np.arange(10) % 2, 0.4, 0.95)
    else:
        radius = rng.uniform(0.55, 0.95, 10)
    return [(np.stack([radius * np.cos(t), radius * np.sin(t)], 1), 0)]


def bust(rng: Rng) -> Shape:
    """Return shoulders and hair around a head at the origin; `face` draws the face."""
    wide = rng.uniform(1.0, 1.5)
    coat = np.array([[-wide, 3.2], [-wide, 1.7], [-0.4, 1.1], [0.4, 1.1], [wide, 1.7], [wide, 3.2]])
    hair = oval(0, -0.25, 0.95, rng.uniform(0.95, 1.25))
    return [(coat, 0), (hair, 1)]


def face(rng: Rng) -> tuple[Shape, np.ndarray]:
    """Return a face of half height 1, and its outline as (28, 2) points.

    The tones of the face are skin, white, dark, lips and nose, in this order.
    """
    wide = rng.uniform(0.68, 0.82)
    outline = oval(0, 0.05, wide, 1.0)
    parts: Shape = [(bar(0, 0.7, 0, 1.35, 0.3), 0), (outline, 0)]
    for side in (-1, 1):
        x, y = side * rng.uniform(0.28, 0.34), rng.uniform(-0.2, -0.1)
        parts += [
            (oval(x, y, 0.17, 0.1), 1),
            (oval(x + rng.uniform(-0.05, 0.05), y, 0.075, 0.085), 2),
        ]
        parts += [(bar(x - 0.17, y - 0.2, x + 0.17, y - 0.2, 0.04), 2)]
    parts += [(np.array([[0.0, -0.05], [-0.1, 0.3], [0.1, 0.3]]), 4)]
    parts += [(oval(0, 0.57, rng.uniform(0.2, 0.34), rng.uniform(0.05, 0.12)), 3)]
    return parts, outline
