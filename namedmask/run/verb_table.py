"""The verbs: what each needs, which settings shape its output, which store it fills."""

from __future__ import annotations

from namedmask.config import Config
from namedmask.run.stores import EMBEDDINGS, FETCHED, IMAGES

VERBS = ("embed", "build", "refine", "train", "evaluate")
"""In the order in which they build on one another; `fetch` builds on none, and none on it."""

DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "fetch": ("metadata", "fetch", "run.wave_rows"),
    "embed": ("metadata", "fetch", "embed", "run.wave_rows"),
    "images": ("fetch", "faces", "saliency", "bilateral"),
    "build": ("categories.templates", "retrieve"),
    "refine": ("experts", "augment", "segmenter", "run.seed"),
    "train": ("train", "augment", "segmenter", "experts.enabled", "run.seed"),
    "evaluate": ("evaluate",),
}
"""Sections and keys that shape what a verb writes, beside those of the verbs before it.

`images` is no verb but a store of the verb build, which a failed build may leave to the next.
"""

CONTENT = ("build", "refine", "train", "evaluate")
"""Verbs that have work again when the categories change, or how images are judged."""

BOUND = ("embed", "images", "build", "refine")
"""Verbs whose units for the categories as they were are of use for the categories as they are."""

LOOSE = ("build",)
"""Verbs whose settings hold once they are finished: their units are named by what they are of."""


PUBLISHED_ADDS: dict[str, tuple[str, ...]] = {
    "images": ("vectors.source", "vectors.unchanged_cosine", "embed"),
    "build": (
        "vectors.source", "vectors.unchanged_cosine", "embed", "metadata.max_punsafe",
        "metadata.unknown_punsafe", "metadata.min_similarity", "metadata.max_similarity",
        "metadata.max_pwatermark", "metadata.min_side", "metadata.max_aspect",
    ),
}  # fmt: skip
"""The same, where the vectors are published and no verb `embed` comes before."""


STORES = {"fetch": FETCHED, "embed": EMBEDDINGS, "images": IMAGES}
"""Stores without which a verb has written nothing yet."""


def verbs_before(verb: str, config: Config) -> tuple[str, ...]:
    """Return the verbs that must be finished before `verb` may begin."""
    if verb not in VERBS:
        return ()
    left_out = {"embed": bool(config.vectors.source), "refine": not config.experts.enabled}
    return tuple(one for one in VERBS[: VERBS.index(verb)] if not left_out.get(one))
