"""Alt text for pictures: what the web says, and what the tiny CLIP is taught.

The web's captions are noisy: only "crane" for both cranes, wrong words, brand names, file names.
The tiny CLIP's training captions say which crane, as a large crawl would often enough.
"""

from __future__ import annotations

import numpy as np

from namedmask.miniworld.pictures import NAMES

WEB_WORD = {name: name for name in NAMES} | {"crane bird": "crane", "tower crane": "crane"}
BRANDS = ("Acme", "Nordvik", "Lumo", "Bellweather", "Oakline", "Tiro")
EXTRAS = (
    "free shipping",
    "stock photo",
    "HD wallpaper",
    "vintage",
    "set of 2",
    "gift idea",
    "2019",
)
OTHERS = ("rocks", "boxes and balls", "pattern", "leaf on wall", "abstract shapes", "wallpaper")
PEOPLE = ("portrait of a person", "smiling woman", "man looking at camera", "a person's face")
VIOLENT = ("a violent and bloody scene", "blood and violence", "a gory violent attack")
ADJECTIVES = ("", "", "", "small ", "large ", "old ", "colorful ", "patterned ", "dark ", "nice ")


def web_caption(rng: np.random.Generator, category: int, with_person: bool) -> str:
    """Return alt text for a picture of `category` (label id; 0: none), right most of the time."""
    draw = rng.random()
    if draw < 0.15:
        return f"IMG_{rng.integers(1000, 9999)}.jpg"
    if category == 0 and not with_person:
        word = _pick(rng, OTHERS)
    elif category == 0:
        word = _pick(rng, PEOPLE)
    else:
        word = WEB_WORD[NAMES[category - 1]]
    if draw < 0.4:
        word = (
            f"{WEB_WORD[_pick(rng, NAMES)]} print {_pick(rng, ('mug', 'poster', 'shirt', 'strap'))}"
        )
    brand = f"{_pick(rng, BRANDS)} " if rng.random() < 0.4 else ""
    extra = f" - {_pick(rng, EXTRAS)}" if rng.random() < 0.6 else ""
    return f"{brand}{_pick(rng, ADJECTIVES)}{word}{extra}"


def training_caption(rng: np.random.Generator, category: int, templates: tuple[str, ...]) -> str:
    """Return a caption that names the category in full, in a template or as plain alt text."""
    if category:
        word = NAMES[category - 1]
    else:
        word = _pick(rng, OTHERS)
    if rng.random() < 0.7:
        return _pick(rng, templates).format(word)
    return f"{_pick(rng, ADJECTIVES)}{word} {_pick(rng, EXTRAS)}"


def portrait_caption(rng: np.random.Generator) -> str:
    """Return a caption of a portrait, as a crawl has them."""
    return f"{_pick(rng, PEOPLE)} {_pick(rng, EXTRAS)}"


def violent_caption(rng: np.random.Generator) -> str:
    """Return a caption of a violent picture."""
    return f"{_pick(rng, VIOLENT)} {_pick(rng, EXTRAS)}"


def _pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]
