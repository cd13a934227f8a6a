"""Draw captions (alt texts) for the pictures of the mini world and of the training collection.

The captions of the web are noisy: they say "crane" for both cranes, and hold wrong words, brand
names and file names. The captions that the tiny CLIP is trained on say which crane is shown, as
many captions in a large crawl do.
"""

from __future__ import annotations

import numpy as np

from namedmask.miniworld.pictures import NAMES

WEB_WORD = {name: name for name in NAMES} | {"crane bird": "crane", "tower crane": "crane"}
"""Word for each category in the captions of the web."""

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
    """Return a noisy caption for a picture of `category`, a label id or 0 for no category.

    15 % of the captions are file names, and 25 % name a category drawn at random.
    """
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
    """Return a caption with the full name of `category`, a label id or 0 for no category.

    70 % of the captions fill one of the `templates`; the others look like alt text.
    """
    if category:
        word = NAMES[category - 1]
    else:
        word = _pick(rng, OTHERS)
    if rng.random() < 0.7:
        return _pick(rng, templates).format(word)
    return f"{_pick(rng, ADJECTIVES)}{word} {_pick(rng, EXTRAS)}"


def portrait_caption(rng: np.random.Generator) -> str:
    """Return a caption for a portrait."""
    return f"{_pick(rng, PEOPLE)} {_pick(rng, EXTRAS)}"


def violent_caption(rng: np.random.Generator) -> str:
    """Return a caption for a violent picture."""
    return f"{_pick(rng, VIOLENT)} {_pick(rng, EXTRAS)}"


def _pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]
