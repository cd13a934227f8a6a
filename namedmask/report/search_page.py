"""What a search found → one HTML page of links, with nothing outside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from namedmask.report.page import Html, element, note, page, table


def search_page(found: Mapping[str, Any]) -> str:
    """Return the page of what search.search found; urls and captions are escaped."""
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
            f"text, by cosine. Index {found['index']}, recall@50 "
            f"{found['recall_at_50']:.3f} on {found['measured_on']}."
        ),
        note(
            "No picture is shown and none was fetched: nobody has judged whether these images are "
            "safe. A link leads to its owner's server."
        ),
        table(("rank", "score", "link", "caption"), rows, numbers=(0, 1)),
    )


def _link(url: str) -> Html | str:
    """Return a link to a url; anything but http(s) stays text."""
    if not url.startswith(("http://", "https://")):
        return url
    return element("a", url, href=url, rel="noopener noreferrer nofollow")
