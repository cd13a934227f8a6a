"""`namedmask search`: the images of a run's store that are closest to a text.

The text goes through the text side of `embed.model` as it is typed, or through the prompt templates
of the run, as a category's name would. Nothing is fetched and no picture shown: of most images in
the store nobody knows whether they are safe, and the links are all that is kept of them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from namedmask.categories import templates_of
from namedmask.config import Config
from namedmask.embed import TextSide
from namedmask.errors import InputError
from namedmask.jobs import Job
from namedmask.ledger import Ledger
from namedmask.progress import Progress
from namedmask.report.page import Html, element, note, page, table
from namedmask.search_index import RECALL_AT, open_index
from namedmask.storage import Place
from namedmask.stores import EmbeddingStore

AS_TYPED = ("{}",)


def config_of_run(run: Place, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a run file, or of a run folder wherever it lies now.

    Raises:
        InputError: it is neither, or a key or value in it is wrong.
    """
    if not run.is_dir():
        return Config.load(run, overrides)
    if not (run / "run.toml").is_file():
        raise InputError(
            f"{run} holds no run: run.toml is missing. Give a run file, or the folder that run.out "
            "named."
        )
    return Config.load(run / "run.toml", [f"run.out={json.dumps(str(run))}", *overrides])


def search(
    config: Config, text: str, k: int, progress: Progress, *, templates: bool = False
) -> dict[str, Any]:
    """Return the `k` images of the run closest to a text, best first, and how they were found.

    The index is made when there is none for the run's vectors; see search_index.py.

    Raises:
        InputError: the text is empty, k below 1, or the run has no vectors.
        ConfigError: the vectors were made with other settings, or search.kind is not for so few.
        MissingExtraError: faiss is not installed.
    """
    if not text.strip():
        raise InputError("the text to search for is empty. Say in words what the image shows.")
    if k < 1:
        raise InputError(f"search needs k of at least 1; got {k}.")
    ledger = Ledger(config.run.out)
    ledger.finished("embed", Job(config, ledger, progress).settings("embed"))
    clock = _Clock()
    text_side = _TextSide(config)
    index, manifest, made = open_index(
        config.run.out, EmbeddingStore(ledger), config.search, text_side.as_typed, progress
    )
    clock.lap("make" if made else "load")
    prompts = templates_of(config.categories) if templates else AS_TYPED
    (query,) = text_side(text, prompts)
    clock.lap("text")
    scores, rows = index.search(query, k)
    found = index.rows.table(rows)
    clock.lap("search")
    return {
        "text": text,
        "prompts": len(prompts),
        "vectors": len(index.rows),
        "index": manifest["kind"],
        "made_because": made,
        f"recall_at_{RECALL_AT}": manifest[f"recall_at_{RECALL_AT}"],
        "measured_on": manifest["measured_on"],
        "seconds": clock.seconds,
        "hits": [
            {"rank": rank, "score": round(float(score), 6), **row}
            for rank, (score, row) in enumerate(zip(scores, found.to_pylist(), strict=True))
        ],
    }


def search_page(found: dict[str, Any]) -> str:
    """Return what was found as one HTML page of links, with nothing outside it."""
    text, hits = found["text"], found["hits"]
    rows = [
        (str(hit["rank"]), f"{hit['score']:.4f}", _link(hit["url"]), hit["caption"] or "")
        for hit in hits
    ]
    return page(
        f"NamedMask: {text}",
        element("h1", text),
        note(
            f"The {len(hits)} of {found['vectors']:,} images whose vectors are closest to this "
            f"text, by cosine. {recall_line(found)}"
        ),
        note(
            "No picture is shown and none was fetched: nobody has judged whether these images are "
            "safe. A link leads to its owner's server."
        ),
        table(("rank", "score", "link", "caption"), rows, numbers=(0, 1)),
    )


def recall_line(found: dict[str, Any]) -> str:
    """Return what is known of how well the index finds."""
    recall, target = found[f"recall_at_{RECALL_AT}"], found["measured_on"]
    return f"Index {found['index']}, recall@{RECALL_AT} {recall:.3f} on {target}."


def _link(url: str) -> Html | str:
    """Return a link to a url; anything but http(s) stays text."""
    if not url.startswith(("http://", "https://")):
        return url
    return element("a", url, href=url, rel="noopener noreferrer nofollow")


class _TextSide:
    """The text side of the embedder, loaded when it is first asked."""

    def __init__(self, config: Config) -> None:
        self._config = config.embed
        self._loaded: TextSide | None = None

    def __call__(self, text: str, prompts: Sequence[str]) -> np.ndarray:
        """Return the vector (1, D) of a text over prompt templates."""
        return self._features([text], prompts)

    def as_typed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors (C, D) float32 of texts, each as it is."""
        return self._features(texts, AS_TYPED)

    def _features(self, texts: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        self._loaded = self._loaded or TextSide(self._config)
        return self._loaded([(texts, prompts)])[0]


class _Clock:
    """Seconds of one thing after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note what passed since the last lap."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now
