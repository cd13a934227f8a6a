"""Write the hits of a search as one HTML page of links that loads nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from namedmask.report.page import Html, element, note, page, table


def search_page(result: Mapping[str, Any]) -> str:
    """Return the HTML page of a result of `verbs.search.search`; urls and captions are escaped."""
    text, hits = result["text"], result["hits"]
    rows = [
        (str(hit["rank"]), f"{hit['score']:.4f}", _link(hit["url"]), hit["caption"] or "")
        for hit in hits
    ]
    return page(
        f"NamedMask: {text}",
        element("h1", text),
        note(
            f"These are the {len(hits)} of {result['vectors']:,} images whose vectors have the "
            f"highest cosine with this text. The index is {result['index']}; its recall@50 is "
            f"{result['recall_at_50']:.3f} on {result['measured_on']}."
        ),
        note(
            "The images have not been fetched and are not shown, because nobody has checked that "
            "they are safe. A link opens the image on the server of its owner."
        ),
        table(("rank", "score", "link", "caption"), rows, numbers=(0, 1)),
    )


def _link(url: str) -> Html | str:
    """Return a link to an http(s) url; any other url is returned as text."""
    if not url.startswith(("http://", "https://")):
        return url
    return element("a", url, href=url, rel="noopener noreferrer nofollow")
